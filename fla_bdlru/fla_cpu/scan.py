"""The recurrences behind the baseline ops, on padded batches: chunkwise, step by step, and elementwise."""

import torch
from torch.autograd import forward_ad

from fla_bdlru.fla_cpu.common import are_for_numba, check_shape, full_precision, is_batched, upcast
from fla_bdlru.fla_cpu.documents import check_documents, run_documents
from fla_bdlru.ops.common.autograd import as_input

# Steps a chunk, or up to half as many more than that: a scalar decay needs one [C, C] matrix, a decay per key channel a
# [C, C, K] tensor.
SCALAR_CHUNK = 32
VECTOR_CHUNK = 8


@full_precision
def chunk_linear_attention(q, k, v, beta, g, initial_state, final=True) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Linear attention with decay, and the delta rule if `beta` is given; returns o and the final state.

        S' = exp(g_t) S_{t-1},   u_t = v_t   or   beta_t (v_t - S'^T k_t),
        S_t = S' + k_t u_t^T,    o_t = S_t^T q_t

    q (scaled), k: [B, H, T, K], v, o: [B, H, T, V], beta: [B, H, T, 1], g: [B, H, T, 1 or K], states: [B, H, K, V]. An initial
    state of None is zero; with `final=False` nobody asks for the final one, and None comes in its place.
    """
    if k.shape[2] == 0:
        o, state = _no_steps(v, k.transpose(-1, -2) @ v if initial_state is None else initial_state, q, k, beta, g)
        return o, state if final else None
    if are_for_numba(q, k, v, beta, g, initial_state):
        from fla_bdlru.fla_cpu.native_scan import LinearAttention

        rows = [None if t is None else t.transpose(1, 2) for t in (q, k, v, beta, None if g is None else g.exp())]
        rows[3] = None if beta is None else rows[3][..., 0]
        # copied here, where the copies are part of the graph: what is saved has to tell what it depends on
        o, state = LinearAttention.apply(*(None if t is None else as_input(t) for t in (*rows, initial_state)))
        return o.transpose(1, 2), state if final else None
    return by_chunks(q, k, v, beta, g, initial_state, final)


def _no_steps(v, state, *inputs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """No output and the state as it is; both depend on every input, so that each has a gradient, as after other steps."""
    nothing = sum(t.sum() for t in inputs if t is not None)
    return v + nothing, state + nothing


def by_chunks(q, k, v, beta, g, initial_state, final=True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`chunk_linear_attention` of one or more steps in PyTorch's operators."""
    size = VECTOR_CHUNK if g is not None and g.shape[-1] > 1 else SCALAR_CHUNK
    count = max(1, (2 * k.shape[2] + size) // (2 * size))
    # of equal size: one step in a chunk of its own would cost as much as a whole chunk; tensor_split's backward is quadratic
    least, more = divmod(k.shape[2], count)
    sizes = [least + 1] * more + [least] * (count - more)
    chunks = [[None] * count if t is None else t.split(sizes, 2) for t in (q, k, v, beta, g)]
    outputs, state = [], initial_state
    if state is None and final:  # a step from nothing costs what any step does: it is counted (layers.measure)
        state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    for i, (c_q, c_k, c_v, c_beta, c_g) in enumerate(zip(*chunks), 1):
        between = since = until = None
        if c_g is not None:
            # In float64: the sums cancel in `between`, and so do their gradients.
            total = _sums(c_g)
            # from the chunk's start to step i, from step i to its end, from step j to step i
            since, until = total.to(q.dtype).exp(), (total[:, :, -1:] - total).to(q.dtype).exp()
            between = _decay_between(total, q.dtype)
        u = c_v
        if c_beta is not None:
            # (I + A) u = beta (v - what the state at the chunk's start predicts), A strictly lower triangular
            A = c_beta * _scores(c_k, c_k, between).tril(-1)
            rhs = c_beta * (c_v if state is None else c_v - _times(c_k, since) @ state)
            u = torch.linalg.solve_triangular(A, rhs, upper=False, unitriangular=True)
        o = _scores(c_q, c_k, between).tril() @ u
        outputs.append(o if state is None else _times(c_q, since) @ state + o)
        if final or i < count:
            update = _times(c_k, until).transpose(-1, -2) @ u
            decayed = state if state is None or since is None else since[:, :, -1, :, None] * state
            state = update if decayed is None else decayed + update
    return outputs[0] if count == 1 else torch.cat(outputs, 2), state if final else None


def _times(x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return x if factor is None else x * factor


def _sums(g: torch.Tensor) -> torch.Tensor:
    """Sums of log decays over time, axis 2, in float64; less than -1e3, whose exp is 0, would swallow those that follow."""
    return g.double().clamp_min(-1e3).cumsum(2)


def _decay_between(total: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """exp(total_i - total_j) for j <= i, else 0; [B, H, C, 1 or K] to [B, H, C, C, 1 or K]."""
    C = total.shape[2]
    future = torch.ones(C, C, dtype=torch.bool, device=total.device).triu(1)[..., None]
    # masked before the exponential, where the difference can be large
    return (total[:, :, :, None] - total[:, :, None]).to(dtype).masked_fill(future, -torch.inf).exp()


def _scores(q: torch.Tensor, k: torch.Tensor, between: torch.Tensor | None) -> torch.Tensor:
    """sum_c q_i[c] k_j[c] between_ij[c]: [B, H, C, C]."""
    if between is None or between.shape[-1] == 1:
        scores = q @ k.transpose(-1, -2)
        return scores if between is None else scores * between[..., 0]
    return (q[:, :, :, None] * k[:, :, None] * between).sum(-1)


@full_precision
def attention_matrix(q: torch.Tensor, k: torch.Tensor, g: torch.Tensor | None, scale: float | None) -> torch.Tensor:
    """The causal [B, H, T, T] matrix that linear attention multiplies `v` with; q, k: [B, T, H, K], g: [B, T, H]."""
    q, k = (upcast(t).transpose(1, 2) for t in (q, k))
    between = None if g is None else _decay_between(_sums(g.transpose(1, 2)[..., None]), q.dtype)
    return _scores(q * (q.shape[-1] ** -0.5 if scale is None else scale), k, between).tril()


def step_linear_attention(q, k, v, beta, g, gv, a, b, initial_state) -> tuple[torch.Tensor, torch.Tensor]:
    """`chunk_linear_attention` one step at a time, with more.

    `beta` and `gv` (a decay of the value axis) may be [B, H, T, V]; a and b, as k, add b_t (a_t^T S_{t-1}) to S_t.
    """
    if k.shape[2] == 0:
        return _no_steps(v, initial_state, q, k, beta, g, gv, a, b)
    steps = [[None] * k.shape[2] if t is None else t.unbind(2) for t in (q, k, v, beta, g, gv, a, b)]
    outputs, state = [], initial_state
    for q_t, k_t, v_t, beta_t, g_t, gv_t, a_t, b_t in zip(*steps):
        low_rank = None if a_t is None else b_t[..., None] * (a_t[..., None, :] @ state)
        if g_t is not None:
            state = state * g_t.exp()[..., None]
        if gv_t is not None:
            state = state * gv_t.exp()[..., None, :]
        if beta_t is not None:
            v_t = beta_t * (v_t - (k_t[..., None, :] @ state)[..., 0, :])
        update = k_t[..., None] * v_t[..., None, :]
        state = state + (update if low_rank is None else update + low_rank)
        outputs.append((q_t[..., None, :] @ state)[..., 0, :])
    return torch.stack(outputs, 2), state


class _LinearScan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t over axis 1, one fused operation a step."""

    @staticmethod
    def forward(ctx, a, b, initial_state):
        # a, b, h: [B, T, ...]; initial_state: [B, ...]
        h = torch.empty_like(b)
        previous = initial_state
        for a_t, b_t, h_t in zip(a.unbind(1), b.unbind(1), h.unbind(1)):
            previous = torch.addcmul(b_t, a_t, previous, out=h_t)
        ctx.save_for_backward(a, h, initial_state)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h, initial_state = ctx.saved_tensors
        carry, steps = torch.zeros_like(initial_state), list(zip(a.unbind(1), dh.unbind(1)))
        if torch.is_grad_enabled() or is_batched(dh):  # somebody takes the derivative of this, too, or takes many at once
            sums = []
            for a_t, dh_t in reversed(steps):
                sums.append(dh_t + carry)
                carry = a_t * sums[-1]
            db = torch.stack(sums[::-1], 1) if sums else dh
        else:
            db = torch.empty_like(h)
            for (a_t, dh_t), db_t in zip(reversed(steps), reversed(db.unbind(1))):
                torch.add(dh_t, carry, out=db_t)
                carry = a_t * db_t
        da = db * torch.cat([initial_state[:, None], h], 1)[:, :-1]
        return da, db, carry


def linear_scan(a: torch.Tensor, b: torch.Tensor, initial_state: torch.Tensor) -> torch.Tensor:
    """Every h_t = a_t * h_{t-1} + b_t, elementwise; a, b, h: [B, T, ...], initial_state: [B, ...]."""
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        states = [initial_state]
        for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
            states.append(torch.addcmul(b_t, a_t, states[-1]))
        return torch.stack(states[1:], 1) if len(states) > 1 else b
    return _LinearScan.apply(a.contiguous(), b.contiguous(), initial_state)


def check_heads(q, k, v, beta=None, g=None, gk=None, gv=None, low_rank=(None, None)) -> None:
    """Raises `ValueError` unless the inputs have the shapes that `linear_attention` documents."""
    shape, of_v = q.shape, v.shape
    if len(shape) != 4 or len(of_v) != 4:
        name, axes, t = ("q", "[B, T, H, K]", q) if len(shape) != 4 else ("v", "[B, T, HV, V]", v)
        raise ValueError(f"{name} must have shape {axes}; got {list(t.shape)}.")
    check_shape("k", k, shape)
    (B, T, H, K), (_, _, HV, V) = shape, of_v
    if HV == 0 or H == 0 or HV % H != 0:
        raise ValueError(f"q and k have {H} heads, and v has {HV}; v's have to be a multiple of the others'.")
    heads = B, T, HV
    check_shape("v", v, (*heads, V))
    check_shape("beta", beta, heads, of_v)
    check_shape("g", g, heads)
    check_shape("gv", gv, of_v)
    for name, t in ("gk", gk), ("a", low_rank[0]), ("b", low_rank[1]):
        check_shape(name, t, (*heads, K))


L2NORM_EPS = 1e-6


def l2norm(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().sum(-1, keepdim=True) + L2NORM_EPS).rsqrt()


# its options bear FLA's names, so that `binding.SHARED` go on as they come
@full_precision
def linear_attention(
    q, k, v, beta=None, g=None, gk=None, gv=None, low_rank=(None, None), scale=None, initial_state=None,
    output_final_state=False, use_qk_l2norm_in_kernel=False, reverse=False, state_v_first=False, cu_seqlens=None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Linear attention in FLA's layout, with any of its decays, grouped values and the delta rule.

    q, k: [B, T, H, K], v: [B, T, HV, V] with HV a multiple of H, states: [N, HV, K, V] ([N, HV, V, K] with `state_v_first`).
    beta (delta rule): [B, T, HV] or [B, T, HV, V]. Log decays: g of the whole state [B, T, HV], gk of its keys
    [B, T, HV, K], gv of its values [B, T, HV, V]. `low_rank`: a and b, [B, T, HV, K], which add b (a^T S) to the decayed
    state S; without `beta` and `gv`. `scale` of q: K ** -0.5 by default.

    Returns o [B, T, HV, V] in the type of `v` and, if asked for, the final state in fp32.
    """
    check_heads(q, k, v, beta, g, gk, gv, low_rank)
    (H, K), (HV, V) = q.shape[2:], v.shape[2:]
    check_documents(q, cu_seqlens, initial_state)
    if initial_state is not None:
        check_shape("initial_state", initial_state, (len(initial_state), HV, *((V, K) if state_v_first else (K, V))))
    dtype = v.dtype
    q, k, v, beta, g, gk, gv, a, b = (None if t is None else upcast(t) for t in (q, k, v, beta, g, gk, gv, *low_rank))
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    q = q * (K**-0.5 if scale is None else scale)
    if HV > H:
        q, k = (t.repeat_interleave(HV // H, 2) for t in (q, k))
    if beta is not None and beta.dim() == 3:
        beta = beta[..., None]
    if g is not None:
        g = g[..., None]
        gk = g if gk is None else gk + g
    state = None if initial_state is None else upcast(initial_state)
    state = state.transpose(-1, -2) if state is not None and state_v_first else state

    def turn(t):  # [N, T, HV, ...] to [N, HV, T, ...]
        return None if t is None else t.transpose(1, 2).flip(2) if reverse else t.transpose(1, 2)

    def run(*inputs):
        *tensors, state = inputs
        q, k, v, beta, gk, gv, a, b = map(turn, tensors)
        if a is None and gv is None and (beta is None or beta.shape[-1] == 1):
            o, state = chunk_linear_attention(q, k, v, beta, gk, state, output_final_state)
        else:
            state = v.new_zeros(*v.shape[:2], K, V) if state is None else state
            o, state = step_linear_attention(q, k, v, beta, gk, gv, a, b, state)
        return (o.flip(2) if reverse else o).transpose(1, 2), state

    o, state = run_documents(run, (q, k, v, beta, gk, gv, a, b), state, cu_seqlens)
    o = o.to(dtype).contiguous()
    if not output_final_state:
        return o, None
    return o, state.transpose(-1, -2).contiguous() if state_v_first else state
