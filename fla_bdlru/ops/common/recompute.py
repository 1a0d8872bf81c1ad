"""Gate logits that the backward computes again from their input: M + 1 of the M + 3 parts that a recurrence keeps.

Only what the recurrence saves is replaced. The projection stays in autograd's graph as it was, so whatever it is (frozen,
with hooks or LoRA, sharded), it gets the gradients it had. The logits are made again with the parameters and in the mode of
the forward; a parameter that was written to since is an error, as it is to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    get_device_states,
    set_device_states,
)


class _Source(NamedTuple):
    """Where logits come from: the input that they are made of, their place in memory, and what makes them again."""

    x: torch.Tensor
    place: tuple
    again: Callable


# that of the recurrence which is about to run
_SOURCE: ContextVar[_Source | None] = ContextVar("_SOURCE", default=None)


def with_gates(
    gates: Callable, x: torch.Tensor, run: Callable, read: Callable, recompute: bool, is_random: bool, can_trace: bool
) -> Any:
    """`run(gates(x))`, one recurrence over its logits, which are kept for the backward or, with `recompute`, `x` is.

    `gates` makes them as the op stores them, `[B, T, *gate_shape]` in gate-major layout. Exported, and under `torch.func`,
    they are kept. `read()` gives the modules by name whose parameters `gates` reads. `is_random` says that `gates` may draw
    random numbers, which must be the same both times; `can_trace` says that torch.compile can look into `run`.
    """
    kept = torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    if kept or not (recompute and torch.is_grad_enabled()):
        return run(gates(x))
    if torch.compiler.is_compiling() and can_trace:
        contexts = partial(create_selective_checkpoint_contexts, _keep_recurrences)
        return checkpoint(lambda x: run(gates(x)), x, use_reentrant=False, context_fn=contexts)
    return _with_source(gates, x, run, read, is_random)


def _keep_recurrences(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    ours = getattr(op, "namespace", None) == "fla_bdlru"
    return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE


@torch.compiler.disable
def _with_source(gates: Callable, x: torch.Tensor, run: Callable, read: Callable, is_random: bool) -> Any:
    again = _repeatable(gates, x, is_random)
    before = {id(t): t._version for *_, t in _slots(read())}
    g = gates(x).contiguous()  # else the op would copy them, to another place
    were = _Were(list(read()), before)

    def as_then(x: torch.Tensor) -> torch.Tensor:
        with were.restored():
            return again(x)

    token = _SOURCE.set(_Source(x, _place(g), as_then))
    try:
        return run(g)
    finally:
        _SOURCE.reset(token)


def _place(x: torch.Tensor) -> tuple:
    """What tensors share that are the same, as long as one of them lives and none is written to."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride(), x.dtype, x._version


def _slots(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, dict, str, torch.Tensor]]:
    """Parameters and buffers of modules by name: each one's name, its dictionary and key, and itself."""
    for prefix, module in modules:
        for slots in (module._parameters, module._buffers):
            for key, t in slots.items():
                if t is not None and not t.is_inference():  # such a one has no version
                    yield f"{prefix}.{key}".lstrip("."), slots, key, t


def _mesh(x: torch.Tensor | None) -> Any:
    return getattr(x, "device_mesh", None)


class _Were:
    """What the parameters, buffers and modes of modules were.

    The versions are those after the forward; what the forward itself wrote to (spectral_norm's vectors), and had another
    version `before`, may be written to again.
    """

    def __init__(self, modules: list[tuple[str, nn.Module]], before: dict[int, int]) -> None:
        self.modes = [(module, module.training) for _, module in modules]
        self.tensors = [(*slot, slot[-1]._version) for slot in _slots(modules)]
        self.written = {id(t) for *_, t, version in self.tensors if before.get(id(t), version) != version}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within it they are what they were, where they are others now; FSDP's, whole or sharded, are left to FSDP."""
        for name, *_, t, version in self.tensors:
            if t._version != version and id(t) not in self.written:
                raise RuntimeError(
                    f"{name} has been modified by an inplace operation since the forward, and recompute_gates=True computes "
                    "the gate logits from it again: call backward() before it changes (optimizer.step, load_state_dict), or "
                    "set recompute_gates=False."
                )
        pairs = [(slots, key, t, slots.get(key, t)) for _, slots, key, t, _ in self.tensors]
        others = [pair for pair in pairs if pair[2] is not pair[3] and _mesh(pair[2]) == _mesh(pair[3])]
        modes = [(module, mode, module.training) for module, mode in self.modes if module.training != mode]
        try:
            for slots, key, t, _ in others:
                slots[key] = t
            for module, mode, _ in modes:
                module.training = mode
            yield
        finally:
            for slots, key, _, now in others:
                slots[key] = now
            for module, _, now in modes:
                module.training = now


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
    """`ctx.save_for_backward(g, *others)`, or the input of the gates in the place of `g`, if that is what they made."""
    source = _SOURCE.get()
    if source is None or _place(g) != source.place:  # a subclass's `recur` may have changed them
        source = None
    ctx.gates = source and source.again
    ctx.save_for_backward(g if source is None else source.x, *others)


def gates_of(ctx: Any, saved: torch.Tensor) -> torch.Tensor:
    """The logits from what `save_with_gates` saved in their place."""
    return saved if ctx.gates is None else ctx.gates(saved)
