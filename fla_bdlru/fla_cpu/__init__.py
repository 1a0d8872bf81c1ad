"""FLA without a GPU: a PyTorch backend for the CPU tensors that FLA's Triton kernels cannot take.

`register()` puts PyTorch versions in front of FLA's kernels: through FLA's own dispatch (`fla.backends`) where a
function has a dispatch point, through a wrapper where it has none. `table.py` lists them all. Every one looks at its
tensors when it is called and takes the call only if all of them are on the CPU, so nothing changes on a GPU.

They return what the kernels return: half types are computed in fp32 and cast back, statistics and states are fp32.
Gradients come from the same formulas or from autograd; where a kernel drops one (`chunk_hgrn`'s initial state), the
PyTorch version does not.

While `torch.compile` or `torch.export` traces CPU tensors, FLA's modules are traced in PyTorch, too, so that a whole
model is one graph.

To let CPU tensors reach FLA's kernels all the same (`TRITON_INTERPRET=1`), set `FLA_BDLRU_CPU_BACKEND=0`, which is
read at every call, or use `with cpu_backend(False):`.
"""

import importlib

from fla_bdlru.fla_cpu.registry import cpu_backend, is_enabled, provide_optional, register_dispatched, wrap_functions

__all__ = ["cpu_backend", "is_enabled", "register"]

_registered = False


def register() -> None:
    """Lets FLA's modules, baseline layers and ops run and train on CPU tensors.

    Further calls do nothing. Needs Triton to be installed, which FLA imports; no GPU.

    Example:
        >>> import torch
        >>> from fla_bdlru.fla_cpu import register
        >>> register()
        >>> from fla.modules import RMSNorm
        >>> y = RMSNorm(8)(torch.ones(2, 8))
        >>> assert torch.allclose(y, torch.ones(2, 8), atol=1e-4)
    """
    global _registered
    if _registered:
        return
    # Modules hold the functions that they import by name, so all of them are loaded before names are replaced.
    for name in ("fla.modules", "fla.ops", "fla.layers", "fla.models"):
        importlib.import_module(name)
    from fla_bdlru.fla_cpu import again, attention, table

    for operation, implementations in {None: table.ENTRY_POINTS, **table.OPERATIONS}.items():
        register_dispatched(operation, implementations)
    wrap_functions(table.WRAPPED)
    wrap_functions(table.TRACEABLE, traceable=True)
    wrap_functions(table.TRACED, while_tracing=True)
    for target, arguments in table.AGAIN.items():
        again.keep_graph(target, *arguments)
    for target, positions in table.ONCE.items():
        again.refuse(target, positions)
    provide_optional(table.FLASH_ATTENTION_MODULES, table.FLASH_ATTENTION, attention.MISSING)
    _registered = True
