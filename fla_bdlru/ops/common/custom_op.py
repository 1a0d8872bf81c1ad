"""Either recurrence as a `torch.library` custom op: the door of the public ops, and the way from there to what runs.

Inside, everything is gate-major (the block or channel axis last, stride 1); the door permutes views.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch.autograd import forward_ad

from fla_bdlru.ops.common.autograd import as_input, is_plain, is_traced, once_differentiable, refuse
from fla_bdlru.ops.common.batching import batched_backward, batched_forward
from fla_bdlru.ops.common.checks import check_arguments, check_cu_seqlens
from fla_bdlru.ops.common.context_parallel import check_cp_context, context_parallel
from fla_bdlru.ops.common.dispatch import resolve_backend
from fla_bdlru.ops.common.recompute import gates_of, save_with_gates
from fla_bdlru.ops.common.scan import chunk_scan, initial_states, transitions

FORWARD = "(Tensor v, Tensor g, Tensor? h0, Tensor? cu_seqlens, str gate_norm, bool chunk) -> (Tensor, Tensor, Tensor, Tensor)"
BACKWARD = (
    "(Tensor v, Tensor g, Tensor o, Tensor h, Tensor P, Tensor? h0, Tensor? do, Tensor? dht, Tensor? cu_seqlens, "
    "str gate_norm, bool chunk) -> (Tensor, Tensor, Tensor)"
)


class Recurrence:
    """A recurrence as the custom ops `fla_bdlru::{name}` and `fla_bdlru::{name}_bwd`.

    It is called with the arguments of a public op. `forward` and `backward` are its native passes on gate-major tensors. The
    first leaves `h` and `P` for the second: with Triton what enters the chunks, and the chunks' transitions; on a CPU the
    float32 states of half-type inputs; empty where not needed.

    Args:
        name (str):
            `"bdlru"` or `"hlru"`; `fla_bdlru.ops.{name}.kernels` holds the Triton kernels.
        axes (str):
            The axes of `v`, as `check_arguments` takes them.
        step (Callable):
            One step in plain PyTorch, as `step_scan` takes it; what exporters see who do not know the custom op.
    """

    def __init__(self, name: str, axes: str, step: Callable):
        self.name, self.axes, self.step = name, axes, step
        self.op = torch.library.custom_op(f"fla_bdlru::{name}", self.forward, mutates_args=(), schema=FORWARD)
        self.op.register_fake(self.fake_forward)
        self.op.register_autograd(self.op_backward, setup_context=save)
        self.op.register_vmap(batched_forward(self.op))
        self.op_bwd = torch.library.custom_op(f"fla_bdlru::{name}_bwd", self.backward, mutates_args=(), schema=BACKWARD)
        self.op_bwd.register_fake(self.fake_backward)
        self.op_bwd.register_vmap(batched_backward(self.op_bwd))

    def __call__(self, v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk):
        """Checks the arguments, brings them into gate-major layout (views, where they are so already), and runs."""
        if cp_context is not None:
            cu_seqlens = check_cp_context(cp_context)
        check_arguments(self.axes, v, g, initial_state, gate_norm, cu_seqlens)
        # forward-mode derivatives are those of plain PyTorch
        plain = forward_ad._current_level >= 0 or resolve_backend(v.device, v.dtype, g.dtype) == "torch"
        parallel = cp_context is not None and cp_context.group is not None
        if parallel and (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()):
            raise RuntimeError("cp_context cannot go through torch.func: all ranks run forward and backward together.")
        if plain and not parallel:
            return chunk_scan(v, g, initial_state, output_final_state, gate_norm, cu_seqlens)
        if initial_state is not None:
            dtype = torch.promote_types(v.dtype, torch.float32)
            initial_state = as_input(initial_state.to(dtype).transpose(1, 2))
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens.long().contiguous()
        blocks = v.ndim == 4
        v, g = (v.transpose(2, 3), g.permute(0, 1, 3, 4, 2)) if blocks else (v, g.transpose(2, 3))
        inputs = as_input(v), as_input(g), initial_state, cu_seqlens, gate_norm, chunk
        if parallel:
            o, ht = context_parallel(cp_context, Plain if plain else self, *inputs)
        elif torch._C._are_functorch_transforms_active():
            o, ht, *_ = Transformed.apply(self, *inputs)
        elif v.is_meta or is_traced() or not all(map(is_plain, inputs[:4])):
            # no registered decomposition: Inductor refuses an op that has one, where the variable CI is set
            o, ht, *_ = (self.decomposed if torch.onnx.is_in_onnx_export() else self.op)(*inputs)
        elif torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs[:3]):
            o, ht = Eager.apply(self, *inputs)
        else:
            o, ht, *_ = self.run(*inputs, keep=False)
        return o.transpose(2, 3) if blocks else o, ht.transpose(1, 2) if output_final_state else None

    def kernels(self):
        """The Triton kernels."""
        return import_module(f"fla_bdlru.ops.{self.name}.kernels").KERNELS

    def forward(self, v, g, h0, cu_seqlens, gate_norm, chunk):
        """`o`, `ht`, and for the backward `h` and `P`."""
        return self.run(v, g, h0, cu_seqlens, gate_norm, chunk, keep=True)

    def run(self, v, g, h0, cu_seqlens, gate_norm, chunk, keep):
        """`forward`; nothing is made for the backward alone unless to `keep` it."""
        check_cu_seqlens(cu_seqlens, v.shape[1])
        if resolve_backend(v.device, v.dtype) == "triton":
            from fla_bdlru.ops.gpu.runtime import triton_fwd

            return triton_fwd(self.kernels(), v, g, h0, cu_seqlens, gate_norm, chunk)
        from fla_bdlru.ops.cpu.scan import cpu_fwd

        o, ht, h = cpu_fwd(v, g, h0, cu_seqlens, gate_norm, keep)
        return o, ht, h, h.new_empty(0)

    def fake_forward(self, v, g, h0, cu_seqlens, gate_norm, chunk):
        h = P = (0,)
        if resolve_backend(v.device, v.dtype) == "triton":
            from fla_bdlru.ops.gpu.runtime import num_chunks

            NC = num_chunks(self.kernels(), v, g, chunk)
            if NC > 1:
                M, n = g.shape[-2] - 1, g.shape[-1]
                h, P = (v.shape[0], NC, M, n), (v.shape[0], NC, M, M, n)
        elif v.dtype != torch.float32 and not v.is_meta:
            from fla_bdlru.ops.cpu.scan import shape_of_kept

            h = shape_of_kept(v, g.shape[-2] - 1)
        state = empty_state(v, g, cu_seqlens)
        return torch.empty_like(v), state, state.new_empty(h), state.new_empty(P)

    def backward(self, v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
        """`dv`, `dg` and `dh0`."""
        do, dht = (None if x is None else as_input(x) for x in (do, dht))
        if resolve_backend(v.device, v.dtype) == "triton":
            from fla_bdlru.ops.gpu.runtime import triton_bwd

            return triton_bwd(self.kernels(), v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk)
        from fla_bdlru.ops.cpu.scan import cpu_bwd

        return cpu_bwd(v, g, o if v.dtype == torch.float32 else h, h0, do, dht, cu_seqlens, gate_norm)

    def fake_backward(self, v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
        return torch.empty_like(v), torch.empty_like(g), empty_state(v, g, cu_seqlens)

    def decomposed(self, v, g, h0, cu_seqlens, gate_norm, chunk):
        """The forward pass in operators that ONNX knows, T free: it makes a `Scan` of them."""
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens cannot be exported; export without packed documents.")
        A, b = transitions(v.movedim(-1, 2), g.movedim(-1, 2), gate_norm)
        state = initial_states(A, None if h0 is None else h0.transpose(1, 2), None)

        def step(state, A_t, b_t):
            o_t, state = self.step(A_t, b_t, state)
            return [state, o_t.clone()]

        # detached: else scan saves for a backward, and sizes among it are refused
        xs = [A.movedim(1, 0).detach(), b.movedim(1, 0).detach()]
        ht, o = torch.ops.higher_order.scan(step, [state.detach()], xs, ())
        nothing = v.new_empty(0)
        return o.movedim(0, 1).movedim(2, -1).to(v.dtype).contiguous(), ht.transpose(1, 2).contiguous(), nothing, nothing

    def op_backward(self, ctx, do, dht, *_):
        # its second derivative PyTorch itself refuses: `op_bwd` has none
        return gradients(self.op_bwd, ctx, ctx.saved_tensors, do, dht)


class Eager(torch.autograd.Function):
    """A recurrence without torch.library's dispatch, which costs as much as a small kernel."""

    @staticmethod
    def forward(ctx, recurrence, *inputs):
        output = recurrence.forward(*inputs)
        ctx.recurrence = recurrence
        save(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, do, dht):
        batched = any(x is not None and torch._C._functorch.is_legacy_batchedtensor(x) for x in (do, dht))
        hidden = batched or is_traced() or not (is_plain(do) and is_plain(dht))
        backward = ctx.recurrence.op_bwd if hidden else ctx.recurrence.backward
        return None, *gradients(backward, ctx, saved, do, dht)


class Transformed(torch.autograd.Function):
    """A recurrence under `torch.func`'s transformations, which ask for more of a function than of a custom op."""

    generate_vmap_rule = True  # from those of the custom ops

    @staticmethod
    def forward(recurrence, *inputs):
        return recurrence.op(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.recurrence = inputs[0]
        save(ctx, inputs[1:], output)
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx, do, dht, *_):
        return None, *gradients(partial(TransformedBackward.apply, ctx.recurrence), ctx, ctx.saved_tensors, do, dht)


class TransformedBackward(torch.autograd.Function):
    """The backward pass under `torch.func`, which always asks it for derivatives of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(recurrence, *inputs):
        return recurrence.op_bwd(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        refuse()


def save(ctx, inputs, output) -> None:
    """Keeps what the backward needs."""
    v, g, h0, cu_seqlens, ctx.gate_norm, ctx.chunk = inputs
    o, _, h, P = output
    ctx.set_materialize_grads(False)
    save_with_gates(ctx, g, v, o, h, P, h0, cu_seqlens)


def gradients(backward, ctx, saved, do, dht) -> tuple:
    """The gradients of the six inputs of the custom op, by its `backward`."""
    if do is None and dht is None:
        return (None,) * 6
    # hooks on saved tensors may have laid them out anew
    g, v, o, h, P, h0, cu_seqlens = (None if x is None else x.contiguous() for x in saved)
    dv, dg, dh0 = backward(v, gates_of(ctx, g), o, h, P, h0, do, dht, cu_seqlens, ctx.gate_norm, ctx.chunk)
    return dv, dg, None if h0 is None else dh0, None, None, None


def empty_state(v, g, cu_seqlens) -> torch.Tensor:
    """Room for the state of every sequence."""
    num_seqs = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.promote_types(v.dtype, torch.float32)
    return v.new_empty((num_seqs, g.shape[-2] - 1, g.shape[-1]), dtype=dtype)


class Plain:
    """The passes of either recurrence in plain PyTorch, for context parallelism; the second runs the first again."""

    @staticmethod
    def forward(v, g, h0, cu_seqlens, gate_norm, chunk):
        o, ht = chunk_scan(v.movedim(-1, 2), g.movedim(-1, 2), h0.transpose(1, 2), True, gate_norm, cu_seqlens)
        return o.movedim(2, -1), ht.transpose(1, 2), v.new_empty(0), v.new_empty(0)

    @staticmethod
    def backward(v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
        leaves = [x.detach().requires_grad_() for x in (v, g, h0)]
        with torch.enable_grad():
            outputs = Plain.forward(*leaves, cu_seqlens, gate_norm, chunk)
        outputs, grads = zip(*((x, dx) for x, dx in zip(outputs, (do, dht)) if dx is not None))
        return torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
