"""How a replacement gets in: the CPU check, the switch, FLA's dispatch points and the wrappers elsewhere."""

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from fla_bdlru.fla_cpu.binding import by_name
from fla_bdlru.ops.common.checks import read_switch
from fla_bdlru.patches import patch, record, resolve

ENV_VAR = "FLA_BDLRU_CPU_BACKEND"
WHY = "on CPU tensors PyTorch, as FLA's Triton kernels do not run there"
WHY_TRACED = "on CPU tensors PyTorch while `torch.compile` traces, as FLA's dispatch would break the graph"

# None: the environment variable decides; True or False: set by `cpu_backend`.
_forced: bool | None = None


def is_enabled() -> bool:
    """Whether CPU tensors go to the PyTorch backend at this moment (see `cpu_backend`).

    Raises:
        ValueError: if the environment variable is neither `0` nor `1`.
    """
    return read_switch(ENV_VAR) if _forced is None else _forced


@contextlib.contextmanager
def cpu_backend(enabled: bool = True) -> Iterator[None]:
    """Switches the PyTorch backend on or off for CPU tensors inside a `with` block.

    It wins over the environment variable `FLA_BDLRU_CPU_BACKEND` (`0` switches the backend off; read at every call).
    With the backend off, CPU tensors reach FLA's Triton kernels again, which only run with `TRITON_INTERPRET=1`.
    The backward of a graph built inside the block must run inside the block too.

    Args:
        enabled (bool):
            Whether the backend handles CPU tensors. Default: `True`.

    Example:
        >>> from fla_bdlru.fla_cpu import cpu_backend, is_enabled
        >>> with cpu_backend(False):
        ...     assert not is_enabled()
    """
    global _forced
    previous, _forced = _forced, enabled
    try:
        yield
    finally:
        _forced = previous


def _devices(values: Iterable[Any]) -> set[str]:
    found = set()
    for value in values:
        if isinstance(value, torch.Tensor):
            found.add(value.device.type)
        elif isinstance(value, (list, tuple)):
            found |= _devices(value)
    return found


def on_cpu(args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """True if there is a tensor among the arguments and all of them are on the CPU, or all are meta tensors: shapes alone.

    Raises:
        ValueError: for meta tensors beside CPU tensors: a weight that is not there would be read past its module.
    """
    devices = _devices((*args, *kwargs.values()))
    if len(devices) > 1 and devices == {"cpu", "meta"}:
        raise ValueError(
            "Tensors on the CPU came with meta tensors, which hold no values: a weight that is offloaded or was never "
            "loaded was read without its module being called. Load it, or call the module."
        )
    return devices in ({"cpu"}, {"meta"})


def _as_views(outputs: Any) -> Any:
    """The tensors among what a function returns as views of themselves."""
    if isinstance(outputs, torch.Tensor):
        return outputs.view_as(outputs)
    return type(outputs)(map(_as_views, outputs)) if type(outputs) in (tuple, list) else outputs


def shapes_too(implementation: Callable) -> Callable:
    """`implementation`, which makes its own tensors on the meta device where its arguments are meta tensors.

    Compiled by torch 2.11, a `torch.autograd.Function` whose output went through a `to` or `contiguous` that had nothing to do
    loses its gradients in silence: Dynamo returns what is computed on the way beside it, the same tensor twice. A view is not.
    """

    @functools.wraps(implementation)
    def run(*args, **kwargs):
        if torch.compiler.is_compiling():
            return _as_views(implementation(*args, **kwargs))
        if any(getattr(x, "is_meta", False) for x in (*args, *kwargs.values())):
            with torch.device("meta"):
                return implementation(*args, **kwargs)
        return implementation(*args, **kwargs)

    return run


def _make_backend(implementations: Mapping[str, Callable]) -> type:
    """A `fla.backends.BaseBackend` for CPU tensors; `implementations` are its methods, by FLA function name."""
    from fla.backends import BaseBackend

    class CPUBackend(BaseBackend):
        backend_type = "fla_bdlru_cpu"
        # Asked first: the check is a look at the devices, and no other backend is for CPU tensors.
        priority = -100

        def is_enabled(self) -> bool:
            return is_enabled()

        def verify(self, function_name: str, *args, **kwargs) -> tuple[bool, str | None]:
            # FLA's own would take an error for a refusal
            return on_cpu(args, kwargs), "not all tensors are on the CPU"

    for name, implementation in implementations.items():
        setattr(CPUBackend, name, staticmethod(implementation))
    return CPUBackend


def register_dispatched(operation: str | None, table: Mapping[str, Callable]) -> None:
    """Registers replacements of functions that FLA decorated with `@dispatch(operation)`, or (`None`) with a bare one."""
    from fla.backends import register

    methods, backend = {}, _make_backend({})
    for target, implementation in table.items():
        try:
            _, name, original = resolve(target)
            methods[name] = shapes_too(by_name(original, implementation))
            if operation is None:
                register(original, backend=backend)(methods[name])
            record(target, WHY)
        except (ImportError, AttributeError, KeyError):
            warn_missing(target)
    if operation is not None:
        register(operation)(_make_backend(methods))


def wrap(
    original: Callable | None,
    implementation: Callable,
    missing: str = "",
    while_tracing: bool = False,
    traceable: bool = False,
) -> Callable:
    """Puts `implementation`, of the same parameters, in front of `original` for CPU tensors.

    `original` may be `None`, if its package is not installed; where it would have to run, `missing` is what the `ImportError`
    says. With `while_tracing` it gets CPU tensors, too, unless `torch.compile`, `torch.export` or `torch.func` transforms it;
    `traceable` says that `torch.compile` may look into `implementation`, though not into `original`.
    """
    implementation = shapes_too(implementation)
    # torch.compiler.disable leaves its mark in the attributes
    updated = () if while_tracing or traceable else functools.WRAPPER_UPDATES

    @functools.wraps(original or implementation, updated=updated)
    def wrapper(*args, **kwargs):
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if (traced or not while_tracing) and is_enabled() and on_cpu(args, kwargs):
            return implementation(*args, **kwargs)
        if original is None:
            raise ImportError(missing)
        return original(*args, **kwargs)

    wrapper._fla_bdlru_original = original
    return wrapper


def wrap_functions(table: Mapping[str, Callable], package: str = "fla", **options: bool) -> None:
    """Wraps functions and methods, under every name that a module of `package` holds them by; see `wrap`."""
    wrappers = {}
    for target, implementation in table.items():
        try:
            original = resolve(target)[2]
        except (ImportError, AttributeError):
            warn_missing(target)
            continue
        if hasattr(original, "_fla_bdlru_original"):
            continue
        wrapper = wrap(original, by_name(original, implementation), **options)
        patch(target, wrapper, WHY_TRACED if options.get("while_tracing") else WHY)
        # The original is kept beside its id so that the id stays its own.
        wrappers[id(original)] = (original, wrapper)
    for module_name, module in list(sys.modules.items()):
        if module_name != package and not module_name.startswith(f"{package}."):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in wrappers:
                setattr(module, name, wrappers[id(value)][1])


def provide_optional(modules: tuple[str, ...], functions: Mapping[str, Callable], missing: str) -> None:
    """Gives FLA's `modules` CPU stand-ins for `functions` of a package that may be absent, and `missing` for an error then.

    Where the package is there, its functions keep the tensors on a GPU.
    """
    for module_name in modules:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            warn_missing(module_name)
            continue
        for name, implementation in functions.items():
            original = getattr(module, name, None)
            if not hasattr(original, "_fla_bdlru_original"):
                setattr(module, name, wrap(original, implementation, missing))
                record(f"{module_name}:{name}", WHY)


def warn_missing(target: str) -> None:
    """Warns that a function of FLA's, or of another library, is not there to be replaced."""
    library = "FLA" if target.startswith("fla.") else target.partition(".")[0]
    warnings.warn(f"fla_bdlru: {target} is not in this version of {library}; it will not run on a CPU.", stacklevel=3)
