"""FLA's signature in front of a replacement, which takes FLA's arguments by name and only those that it needs."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# What only steers FLA's kernels; a replacement that does not name it ignores it.
STEERING = frozenset({
    "backend", "checkpoint_level", "chunk_indices", "chunk_size", "cu_seqlens_cpu", "disable_recompute", "layout_fallback",
    "max_num_seqs", "output_contiguous", "safe_gate", "use_graph", "use_short_kernel",
})  # fmt: skip

# What FLA's linear-attention ops name alike: a replacement with `**options` hands it on to `scan.linear_attention`.
SHARED = frozenset({
    "scale", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel", "reverse", "state_v_first", "cu_seqlens",
})  # fmt: skip

# FLA's old names, which some ops take through their `**kwargs`.
RENAMED = {"transpose_state_layout": "state_v_first"}


class _Source(str):
    """A default that a printed signature shows as code."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def by_name(original: Callable, implementation: Callable) -> Callable:
    """`implementation` behind the parameters of FLA's function, so that Python binds a call as it does for FLA.

    The replacement names FLA's parameters in any order; a default stands in for one that FLA's function lacks or hides in its
    `**kwargs`. With `**options` it gets the `SHARED` ones too; with `**kwargs` it is called as it is.

    An argument that FLA's function does not have is its own `TypeError`. One that it has and the replacement does not name is
    ignored if it only steers a kernel (`STEERING`), and otherwise has to keep FLA's default: else a `ValueError` names it.
    """
    own = inspect.signature(implementation).parameters
    try:
        signature = inspect.signature(inspect.unwrap(original))
    except ValueError:  # a built-in function, as `torch.autograd.Function.apply` is with torch 2.14
        return implementation
    parameters = list(signature.parameters.values())
    if "kwargs" in own or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return implementation
    reads = own.keys() - {"options"} | (SHARED if "options" in own else frozenset())
    others = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    theirs = [p.name for p in parameters if p.name != others]
    taken = [name for name in theirs if name in reads]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    watched = [name for name in defaults if name not in reads | STEERING]
    hidden = reads - SHARED - set(theirs)

    def check(watched: Mapping[str, Any]) -> dict:
        for name, value in watched.items():
            default = defaults[name]
            if value is not default and (hasattr(value, "shape") or value != default):
                raise ValueError(f"{name} is set: {original.__name__} has it on a GPU only; on a CPU leave it at {default!r}.")
        return {}

    def unfold(values: dict, others: dict) -> dict:
        others = {RENAMED.get(name, name): value for name, value in others.items() if name not in STEERING - hidden}
        unknown = sorted(others.keys() - hidden - ({"state_v_first"} & values.keys()))
        if unknown:
            raise ValueError(f"{original.__name__} got options that it does not have on a CPU: {', '.join(unknown)}.")
        return values | others

    # As `collections.namedtuple` does: a line of source with the right parameters, which costs a call nothing.
    shown = [
        p.replace(annotation=p.empty, default=_Source(f"defaults[{p.name!r}]") if p.name in defaults else p.empty)
        for p in parameters
    ]
    call = ", ".join(f"{name}={name}" for name in taken)
    if others:
        call = f"**unfold(dict({call}), {others})"
    if watched:
        call += f", **check(dict({', '.join(f'{name}={name}' for name in watched)}))"
    head = str(signature.replace(parameters=shown, return_annotation=signature.empty))[1:-1]
    scope = {"implementation": implementation, "defaults": defaults, "check": check, "unfold": unfold}
    bound = eval(f"lambda {head}: implementation({call})", scope)
    bound.__name__ = bound.__qualname__ = original.__name__
    bound.__doc__, bound.__module__ = implementation.__doc__, implementation.__module__
    return bound
