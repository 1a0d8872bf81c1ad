"""Gate logits that the backward computes again from their input: M + 1 of the M + 3 parts that a recurrence keeps.

Only what the recurrence saves is replaced. The projection stays in autograd's graph as it was, so whatever it is (frozen,
with hooks or LoRA, sharded), it gets the gradients it had.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    get_device_states,
    set_device_states,
)

# (input, what makes the logits of it) of the recurrence that is about to run
_SOURCE: ContextVar[tuple[torch.Tensor, Callable] | None] = ContextVar("_SOURCE", default=None)


def with_gates(gates: Callable, x: torch.Tensor, run: Callable, recompute: bool, is_random: bool, can_trace: bool) -> Any:
    """`run(gates(x))`, one recurrence over its logits, which are kept for the backward or, with `recompute`, `x` is.

    `gates` makes them as the op stores them, `[B, T, *gate_shape]` in gate-major layout. Exported, and under `torch.func`,
    they are kept. `is_random` says that `gates` may draw random numbers, which must be the same both times; `can_trace` says
    that torch.compile can look into `run`.
    """
    kept = torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    if kept or not (recompute and torch.is_grad_enabled()):
        return run(gates(x))
    if torch.compiler.is_compiling() and can_trace:
        contexts = partial(create_selective_checkpoint_contexts, _keep_recurrences)
        return checkpoint(lambda x: run(gates(x)), x, use_reentrant=False, context_fn=contexts)
    return _with_source(gates, x, run, is_random)


def _keep_recurrences(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    ours = getattr(op, "namespace", None) == "fla_bdlru"
    return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE


@torch.compiler.disable
def _with_source(gates: Callable, x: torch.Tensor, run: Callable, is_random: bool) -> Any:
    token = _SOURCE.set((x, _repeatable(gates, x, is_random)))
    try:
        return run(gates(x))
    finally:
        _SOURCE.reset(token)


def _repeatable(gates: Callable, x: torch.Tensor, is_random: bool) -> Callable:
    """`gates` under the autocast and from the random state of now."""
    device = x.device.type
    has_autocast = torch.amp.is_autocast_available(device)
    autocast = (torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) if has_autocast else None
    states = (torch.get_rng_state(), *get_device_states(x)) if is_random else None

    def again(x: torch.Tensor) -> torch.Tensor:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if autocast is not None:
                stack.enter_context(torch.autocast(device, *autocast))
            if states is not None:
                cpu_state, devices, device_states = states
                stack.enter_context(torch.random.fork_rng(devices, device_type=device if devices else "cuda"))
                torch.set_rng_state(cpu_state)
                set_device_states(devices, device_states, device_type=device)
            return gates(x).contiguous()

    return again


def save_with_gates(ctx: Any, g: torch.Tensor, *others: torch.Tensor | None) -> None:
    """`ctx.save_for_backward(g, *others)`, or the input of the gates in the place of `g`."""
    x, ctx.gates = _SOURCE.get() or (g, None)
    ctx.save_for_backward(x, *others)


def gates_of(ctx: Any, saved: torch.Tensor) -> torch.Tensor:
    """The logits from what `save_with_gates` saved in their place."""
    return saved if ctx.gates is None else ctx.gates(saved)
