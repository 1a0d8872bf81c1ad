"""Mamba, Mamba2 and Mamba3 on a CPU: FLA's layers with a scan that a CPU can train.

FLA's own fallbacks hold [T, T] tensors of every head and state channel (Mamba2, padded to its chunk size of 256), or
index the time axis inside the graph (Mamba), which makes the backward quadratic in the length; Mamba3 has none.
"""

import math

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import are_for_numba, check_shape, full_precision, upcast
from fla_bdlru.fla_cpu.documents import check_documents, token_positions
from fla_bdlru.fla_cpu.linear_attn import chunk_global_cumsum
from fla_bdlru.fla_cpu.scan import chunk_linear_attention, linear_attention, linear_scan
from fla_bdlru.ops.common.autograd import as_input, is_traced

SWISH = ("silu", "swish")


def _check(name: str, x, last_state, cu_seqlens) -> None:
    if cu_seqlens is not None:
        raise ValueError(f"{name} has no packed sequences: cu_seqlens has to be None (pad, and pass attention_mask).")
    if last_state is not None and x.shape[1] != 1:
        raise ValueError(f"{name} decodes one token at a time; got {x.shape[1]} with a cached state.")


def _convolve(layer, x, last_state, use_cache):
    """The layer's short convolution and activation; x: [B, T, D], state: [B, D, W] with the last W inputs."""
    from fla.modules.causal_conv1d import causal_conv1d

    fused = layer.activation in SWISH
    y, state = causal_conv1d(
        x=x,
        weight=layer.conv1d.weight.squeeze(1),
        bias=layer.conv1d.bias,
        initial_state=None if last_state is None else last_state["conv_state"],
        output_final_state=bool(use_cache) or last_state is not None,
        activation=layer.activation if fused else None,
    )
    return y if fused else layer.act(y), state


def _activate(layer, x):
    """The layer's activation; FLA's swish knows no `torch.func`."""
    return F.silu(x) if layer.activation in SWISH and torch._C._are_functorch_transforms_active() else layer.act(x)


def _mask_for(x, attention_mask):
    """Mamba's mask for x [B, T, D], one for every sequence of it; Mamba2 of FLA drops a mask of another shape."""
    if attention_mask is None:
        return None
    (B, T), shape = x.shape[:2], attention_mask.shape
    if len(shape) != 2 or shape[0] not in (1, B) or shape[1] not in (1, T):
        raise ValueError(f"Mamba takes an attention_mask of shape [B, T] = {[B, T]} or [1, T]; got {list(shape)}.")
    return attention_mask.expand(B, T)


def _mask(x, attention_mask):
    if attention_mask is None or attention_mask.shape != x.shape[:2]:
        return x
    return x.masked_fill(attention_mask[..., None] == 0, 0.0)


@full_precision
def _selective_scan(x, dt, A, B, C, last_state):
    """h_t = exp(dt A) h_{t-1} + dt x B and y_t = h_t C; x, dt: [B, T, D], A: [D, N], B and C: [B, T, N]."""
    state = None if last_state is None else last_state["recurrent_state"].to(x.dtype)
    (batch, T, D), N = x.shape, A.shape[-1]
    shapes = {"dt": (dt, x.shape), "A": (A, (D, N)), "B": (B, (batch, T, N)), "C": (C, (batch, T, N))}
    for name, (t, shape) in {**shapes, "recurrent_state": (state, (batch, D, N))}.items():
        check_shape(name, t, shape)
    if x.numel() and are_for_numba(x, dt, A, B, C, state):
        from fla_bdlru.fla_cpu.native_selective_scan import SelectiveScan

        inputs = x, dt, A.t(), B, C, None if state is None else state.mT
        # copied here, where the copies are part of the graph: what is saved has to tell what it depends on
        y, state = SelectiveScan.apply(*(None if t is None else as_input(t) for t in inputs))
        return y, state.mT
    decay = (dt[..., None] * A).exp()
    update = (dt * x)[..., None] * B[:, :, None]
    h = linear_scan(decay, update, x.new_zeros(x.shape[0], *A.shape) if state is None else state)
    return (h @ C[..., None])[..., 0], h[:, -1]


def mamba_slow_forward(self, input_states, last_state=None, use_cache=False, attention_mask=None, **kwargs):
    """`fla.layers.mamba.Mamba.slow_forward`: output, convolution state [B, D, W] and SSM state [B, D, N]."""
    _check("Mamba", input_states, last_state, kwargs.get("cu_seqlens"))
    attention_mask = _mask_for(input_states, attention_mask) if last_state is None else None
    x, gate = self.in_proj(input_states).chunk(2, -1)
    x, conv_state = _convolve(self, _mask(x, attention_mask), last_state, use_cache)
    x = _mask(x, attention_mask)

    N = self.ssm_state_size
    dt, B, C = self.x_proj(x).split([self.dt_rank, N, N], -1)
    dt, s = F.softplus(upcast(self.dt_proj(dt))), upcast(x)
    y, state = _selective_scan(s, dt, -upcast(self.A_log).exp(), upcast(B), upcast(C), last_state)
    y = y + s * upcast(self.D)
    y = self.out_proj((y * upcast(_activate(self, gate))).to(input_states.dtype))
    return y, conv_state, state


def mamba2_torch_forward(self, input_states, last_state, use_cache, attention_mask):
    """`fla.layers.mamba2.Mamba2.torch_forward`: output, convolution state [B, D, W] and SSM state [B, H, P, N], if kept."""
    _check("Mamba2", input_states, last_state, None)
    attention_mask = attention_mask if last_state is None else None
    B, T, _ = input_states.shape
    H, P, N = self.num_heads, self.head_dim, self.ssm_state_size
    gate, x, dt = self.in_proj(input_states).split([self.intermediate_size, self.conv_dim, H], -1)
    x, conv_state = _convolve(self, _mask(x, attention_mask), last_state, use_cache)
    x, k, q = _mask(x, attention_mask).split([self.intermediate_size, *[self.n_groups * N] * 2], -1)

    # [B, T, H, ...]; head h reads the B and C of group h // (H / n_groups)
    x = upcast(x).view(B, T, H, P)
    k, q = (upcast(t).view(B, T, -1, N).repeat_interleave(H // self.n_groups, 2) for t in (k, q))
    dt = F.softplus(upcast(dt) + upcast(self.dt_bias)).clamp(*self.dt_limit)[..., None]
    g = -dt * upcast(self.A_log).exp()[:, None]
    state = None if last_state is None else last_state["recurrent_state"].to(x.dtype).transpose(-1, -2)
    for name, t in {"dt_bias": self.dt_bias, "A_log": self.A_log}.items():
        check_shape(name, t, (H,))
    check_shape("recurrent_state", None if state is None else state.mT, (B, H, P, N))
    q, k, v, g = (t.transpose(1, 2) for t in (q, k, x * dt, g))
    y, state = chunk_linear_attention(q, k, v, None, g, state, bool(use_cache))
    y = y.transpose(1, 2) + x * upcast(self._get_D(expand_to_head_dim=True))
    y = y.reshape(B, T, -1)
    y = self.norm(y, gate) if self.rmsnorm else y * _activate(self, gate)
    y = self.out_proj(y.to(input_states.dtype))
    return y, conv_state, None if state is None else state.transpose(-1, -2).contiguous()


def mamba2_forward(
    self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, output_attentions=False, **kwargs
):
    """`fla.layers.mamba2.Mamba2.forward`, which would ignore `cu_seqlens`."""
    from fla.layers.utils import get_layer_cache, update_layer_cache

    if hidden_states.shape[1] == 0:
        return hidden_states, None, past_key_values
    last_state = get_layer_cache(self, past_key_values)
    _check("Mamba2", hidden_states, last_state, kwargs.get("cu_seqlens"))
    hidden_states = hidden_states if last_state is not None else _mask(hidden_states, attention_mask)
    keep = bool(use_cache) or past_key_values is not None
    output, conv_state, state = self.torch_forward(hidden_states, last_state, keep, attention_mask)
    update_layer_cache(self, past_key_values, recurrent_state=state, conv_state=conv_state, offset=hidden_states.shape[1])
    return output, None, past_key_values


def _shifted(x, sequence, first, entering):
    """x one step later; at tokens that are the `first` of their `sequence`, [B, T] both, what enters that, or zeros."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    first = first.view(*first.shape, *[1] * (x.dim() - 2))
    return before.masked_fill(first, 0.0) if entering is None else torch.where(first, entering[sequence].to(x.dtype), before)


def _rotated(x, angles):
    """Turns the pairs (0, 1), (2, 3), ... of x [B, T, H, N] by `angles` [B, T, H, S]; what lies behind 2 S stays."""
    turned, rest = x[..., : 2 * angles.shape[-1]].unflatten(-1, (-1, 2)), x[..., 2 * angles.shape[-1] :]
    cos, sin, (a, b) = angles.cos(), angles.sin(), turned.unbind(-1)
    return torch.cat([torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2), rest], -1)


def mamba3_scan(q, k, v, a, dt, trapezoid, angles, state, cu_seqlens, final):
    r"""The recurrence of Mamba-3 (arXiv 2603.15569, section 3), single-input single-output; returns o and the final state.

        h_t = exp(a_t) (h_{t-1} + (1 - trapezoid_t) dt_t v_{t-1} k_{t-1}^T) + trapezoid_t dt_t v_t k_t^T,    o_t = h_t q_t

    q, k: [B, T, H, N], before they are turned by the sums of `angles` over time; v, o: [B, T, H, P]; a, dt, trapezoid:
    [B, T, H]; angles: [B, T, H, S], S <= N / 2. States are FLA's: the last angles [num_seqs, H, S], h [num_seqs, H, P, N], the
    last k [num_seqs, 1, H, N] and the last v [num_seqs, H, P]; `None` is zero.
    """
    B, T, H, N = q.shape
    num_seqs = B if cu_seqlens is None else len(cu_seqlens) - 1
    sizes = {"angle": (H, angles.shape[-1]), "ssm": (H, v.shape[-1], N), "k": (1, H, N), "v": (H, v.shape[-1])}
    for (name, size), x in zip(sizes.items(), state or [None] * 4):
        check_shape(f"{name}_state", x, (num_seqs, *size))
    angle_state, ssm_state, k_state, v_state = (None,) * 4 if state is None else map(upcast, state)
    k_state = None if k_state is None else k_state[:, 0]

    sequence, position = (x.view(B, T) for x in token_positions(q, cu_seqlens))
    tokens = sequence, position == 0
    # in float64 and without whole turns: the sums grow with the length
    total = chunk_global_cumsum(angles.double(), False, cu_seqlens, None, None)
    total = (total if state is None else total + angle_state[sequence]).remainder(2 * math.pi)
    q, k = (_rotated(x, total.to(q.dtype)) for x in (q, k))

    # what a token adds when the next one comes is put into that one's step, so that nothing depends on what is to come
    written = dt * trapezoid
    weight = a.exp() * (_shifted(written, *tokens, None) + (1 - trapezoid) * dt)
    keys, values = _shifted(k, *tokens, k_state) * weight[..., None], _shifted(v, *tokens, v_state)
    options = {"initial_state": ssm_state, "output_final_state": final, "state_v_first": True, "cu_seqlens": cu_seqlens}
    o, h = linear_attention(q, keys, values, g=a, scale=1.0, **options)
    o = o + (written * (q * k).sum(-1))[..., None] * v
    if not final:
        return o, None
    # of sequences without a token what they had
    lengths = torch.full((B,), T, device=q.device) if cu_seqlens is None else cu_seqlens.diff()
    starts = torch.arange(B, device=q.device) * T if cu_seqlens is None else cu_seqlens[:-1].long()
    empty, rows = lengths == 0, (starts + lengths - 1).clamp_min(0)

    def last(x, entering):
        x = x.flatten(0, 1)[rows]
        entering = torch.zeros_like(x) if entering is None else entering
        return torch.where(empty.view(-1, *[1] * (x.dim() - 1)), entering, x)

    k_last, v_last = last(k, k_state), last(v, v_state)
    h = h + (last(written, None)[..., None] * v_last)[..., None] * k_last[..., None, :]
    return o, (last(total.to(q.dtype), angle_state), h, k_last[:, None], v_last)


def mamba3_forward(
    self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, output_attentions=False,
    cu_seqlens=None, **kwargs,
):  # fmt: skip
    """`fla.layers.mamba3.Mamba3.forward`, which runs on CUDA alone; takes more than one token with a cache, too."""
    from fla.layers.utils import get_layer_cache, repad_hidden_states, unpad_hidden_states, update_layer_cache

    if self.is_mimo:
        raise NotImplementedError("Mamba3: is_mimo=True runs on a GPU only (TileLang); take is_mimo=False on a CPU.")
    B, T, _ = hidden_states.shape
    if T == 0:
        return hidden_states, None, past_key_values
    state, indices = get_layer_cache(self, past_key_values), None
    state = None if state is None else state["recurrent_state"]
    if T > 1 and cu_seqlens is None and attention_mask is not None:  # a step alone is never padding, as in FLA's
        packed = unpad_hidden_states(hidden_states, None, attention_mask, T)
        if is_traced() or len(packed[1]) < B * T:  # else nothing is padded
            hidden_states, indices, cu_seqlens = packed
    check_documents(hidden_states, cu_seqlens, None if state is None else state[0])

    z, x, k, q, dt, a, trapezoid, angles = self._project_and_split(hidden_states)
    repeats = self.num_heads // self.n_groups
    q, k = (
        (upcast(norm(x.unflatten(-1, (self.n_groups, -1)))).repeat_interleave(repeats, 2) + upcast(bias)[:, 0])
        for x, norm, bias in ((q, self.C_norm, self.C_bias), (k, self.B_norm, self.B_bias))
    )
    v, gate = (upcast(t).unflatten(-1, (self.num_heads, -1)) for t in (x, z))
    dt = F.softplus(upcast(dt) + upcast(self.dt_bias))
    a = dt * (-F.softplus(upcast(a))).clamp(max=-self.A_floor)
    angles = dt[..., None] * (math.pi * upcast(angles).tanh())[..., None, :]
    keep = bool(use_cache) or state is not None
    o, state = mamba3_scan(q, k, v, a, dt, upcast(trapezoid).sigmoid(), angles, state, cu_seqlens, keep)
    o = o + upcast(self.D)[:, None] * v
    o = self.norm(o.flatten(-2), z) if self.is_outproj_norm else (o * F.silu(gate)).flatten(-2)
    o = repad_hidden_states(self.out_proj(o.to(hidden_states.dtype)), indices, B, T)
    if state is not None:
        update_layer_cache(self, past_key_values, recurrent_state=state, offset=T)
    return o, None, past_key_values
