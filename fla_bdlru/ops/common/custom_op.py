"""Makes a recurrence a `torch.library` custom op: fake kernels for `torch.compile`, and a registered backward.

Inside, everything is gate-major (the block or channel axis last, stride 1); the public ops permute views.
"""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch

from fla_bdlru.ops.common.checks import check_cu_seqlens
from fla_bdlru.ops.common.dispatch import resolve_backend
from fla_bdlru.ops.common.recompute import gates_of, save_with_gates


class Recurrence(NamedTuple):
    """The two passes of a recurrence as plain functions, for whoever composes its backward from more than one run.

    `forward(v, g, h0, cu_seqlens, gate_norm, chunk) -> (o, ht, h, P)`,
    `backward(v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk) -> (dv, dg, dh0)`.
    """

    forward: Callable
    backward: Callable


class NoSecondDerivative(torch.autograd.Function):
    """The first `num` tensors as they are, whose gradients, which would go to all of them, are refused."""

    @staticmethod
    def forward(ctx, num, *tensors):
        return tensors[:num]

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "The backward pass of BD-LRU and H-LRU cannot be differentiated again; second derivatives need plain PyTorch: set "
            "FLA_BDLRU_BACKEND=torch, and no cp_context."
        )


def once_differentiable(backward: Callable) -> Callable:
    """Makes `backward(ctx, saved, *grads)` that of an `autograd.Function`, and has a second derivative refused.

    torch's decorator of this name refuses it only where an incoming gradient asks for one; the part that comes from the
    saved tensors, the inputs among them, it drops in silence.
    """

    @wraps(backward)
    def run(ctx, *grads):
        saved = ctx.saved_tensors
        with torch.no_grad():
            outputs = backward(ctx, saved, *grads)
        if not torch.is_grad_enabled():  # no create_graph
            return outputs
        sources = [x for x in (*saved, *grads) if x is not None and x.requires_grad]
        found = [x for x in outputs if x is not None]
        linked = iter(NoSecondDerivative.apply(len(found), *found, *sources))
        return tuple(None if x is None else next(linked) for x in outputs)

    return run


def define_recurrence(name: str, native: Callable, state_shape: Callable) -> tuple[Callable, Recurrence]:
    """Registers `fla_bdlru::{name}` and its backward.

    Args:
        name (str):
            Name of the op.
        native (Callable):
            `native(backend)` gives the forward and backward functions of `"cpu"` or `"triton"`; called when first needed.
        state_shape (Callable):
            `(v, g) -> tuple`, the shape of one sequence's state.

    Returns:
        (Callable, Recurrence):
            `(v, g, h0, cu_seqlens, gate_norm, chunk) -> (o, ht)`; `chunk` allows cutting time into chunks. And its passes,
            whose forward also returns `h` and `P` for the backward: on a CPU the float32 states where the inputs are of a
            half type, with Triton what enters the chunks and the chunks' transitions; empty where not needed.
    """

    def empty_state(v, g, cu_seqlens):
        num_seqs = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        return v.new_empty((num_seqs, *state_shape(v, g)), dtype=torch.float32)

    def run(
        v: torch.Tensor,
        g: torch.Tensor,
        h0: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        gate_norm: str,
        chunk: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        check_cu_seqlens(cu_seqlens, v.shape[1])
        if resolve_backend(v.device, v.dtype) == "triton":
            return native("triton")[0](v, g, h0, cu_seqlens, gate_norm, chunk)
        o, ht, h = native("cpu")[0](v, g, h0, cu_seqlens, gate_norm)
        return o, ht, h, h.new_empty(0)

    op = torch.library.custom_op(f"fla_bdlru::{name}", run, mutates_args=())

    @op.register_fake
    def _(v, g, h0, cu_seqlens, gate_norm, chunk):
        state = empty_state(v, g, cu_seqlens)
        h, P = (0,), (0,)
        if resolve_backend(v.device, v.dtype) == "triton":
            NC = native("triton")[2](v, g, chunk)
            if NC > 1:
                M = g.shape[-2] - 1
                h, P = (v.shape[0], NC, M, g.shape[-1]), (v.shape[0], NC, M, M, g.shape[-1])
        elif v.dtype != torch.float32:
            h = v.shape
        return torch.empty_like(v), state, state.new_empty(h), state.new_empty(P)

    def run_bwd(
        v: torch.Tensor,
        g: torch.Tensor,
        o: torch.Tensor,
        h: torch.Tensor,
        P: torch.Tensor,
        h0: torch.Tensor | None,
        do: torch.Tensor | None,
        dht: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        gate_norm: str,
        chunk: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if resolve_backend(v.device, v.dtype) == "triton":
            return native("triton")[1](v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk)
        return native("cpu")[1](v, g, o if v.dtype == torch.float32 else h, h0, do, dht, cu_seqlens, gate_norm)

    op_bwd = torch.library.custom_op(f"fla_bdlru::{name}_bwd", run_bwd, mutates_args=())

    @op_bwd.register_fake
    def _(v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
        return torch.empty_like(v), torch.empty_like(g), empty_state(v, g, cu_seqlens)

    def setup_context(ctx, inputs, output):
        v, g, h0, cu_seqlens, ctx.gate_norm, ctx.chunk = inputs
        o, _, h, P = output
        ctx.set_materialize_grads(False)
        save_with_gates(ctx, g, v, o, h, P, h0, cu_seqlens)

    def backward(ctx, saved, do, dht, bwd):
        if do is None and dht is None:
            return (None,) * 6
        g, v, o, h, P, h0, cu_seqlens = saved
        g = gates_of(ctx, g)
        do, dht = (None if x is None else as_input(x) for x in (do, dht))
        dv, dg, dh0 = bwd(v, g, o, h, P, h0, do, dht, cu_seqlens, ctx.gate_norm, ctx.chunk)
        return dv, dg, None if h0 is None else dh0, None, None, None

    # its second derivative PyTorch itself refuses: `op_bwd` has none
    op.register_autograd(
        lambda ctx, do, dht, *_: backward(ctx, ctx.saved_tensors, do, dht, op_bwd), setup_context=setup_context
    )

    class Eager(torch.autograd.Function):
        """The op without torch.library's dispatch, which costs as much as a small kernel."""

        @staticmethod
        def forward(ctx, *inputs):
            output = run(*inputs)
            setup_context(ctx, inputs, output)
            return output[:2]

        @staticmethod
        @once_differentiable
        def backward(ctx, saved, do, dht):
            return backward(ctx, saved, do, dht, run_bwd)

    def call(v, g, h0, cu_seqlens, gate_norm, chunk):
        # whoever traces (torch.compile, fake tensors, dispatch modes) sees the custom op
        traced = torch.compiler.is_compiling() or type(v) is not torch.Tensor or torch._C._len_torch_dispatch_stack() > 0
        return (op if traced else Eager.apply)(v, g, h0, cu_seqlens, gate_norm, chunk)[:2]

    return call, Recurrence(run, run_bwd)


def plain_recurrence(scan: Callable) -> Recurrence:
    """The passes of `scan(v, g, h0, cu_seqlens, gate_norm) -> (o, ht)` in plain PyTorch, which the backward runs again."""

    def forward(v, g, h0, cu_seqlens, gate_norm, chunk):
        return *scan(v, g, h0, cu_seqlens, gate_norm), v.new_empty(0), v.new_empty(0)

    def backward(v, g, o, h, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
        leaves = [x.detach().requires_grad_() for x in (v, g, h0)]
        with torch.enable_grad():
            outputs = scan(*leaves, cu_seqlens, gate_norm)
        outputs, grads = zip(*((x, dx) for x, dx in zip(outputs, (do, dht)) if dx is not None))
        return torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)

    return Recurrence(forward, backward)


def as_input(x: torch.Tensor) -> torch.Tensor:
    """`x` as kernels read it, without strides and without a lazy minus (`torch.Tensor.is_neg`)."""
    return x.contiguous().resolve_neg()


def as_state(initial_state: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """`[S, H, M]` as the op stores it for inputs of `dtype`: float32 (or float64), `[S, M, H]`, contiguous."""
    if initial_state is None:
        return None
    return as_input(initial_state.to(torch.promote_types(dtype, torch.float32)).transpose(1, 2))
