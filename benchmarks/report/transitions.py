"""The transitions that a trained BD-LRU or H-LRU applies: matrices, eigenvalues, time constants."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.compare.models import build_model
from benchmarks.tasks import get_task, make_generator
from fla_bdlru.layers import BDLRU
from fla_bdlru.layers.gated import GatedRecurrence
from fla_bdlru.ops import normalize_gates

REAL = 1e-3  # an eigenvalue whose imaginary part is smaller counts as real
ZERO = 1e-3  # and a real one this close to zero has no sign


def load_model(folder: str | Path, row: dict) -> torch.nn.Module:
    """The model of a finished run with its trained weights, on the CPU; ValueError, if they were not kept in `folder`."""
    path = Path(folder) / "weights" / f"{row['key']}.safetensors"
    if not path.exists():
        raise ValueError(f"{path} is not there: the run {row['variant']} seed {row['seed']} kept no weights (--rerun does).")
    task = get_task(row["task"], row["bos"])
    sizes = (task.vocab_size, row["width"], row["layers"], row["mlp_width"])
    model = build_model(row["mixer"], row["mixer_args"], *sizes, readout=task.readout)
    model.load_state_dict(load_file(path))
    return model.eval()


def transitions(layer: GatedRecurrence, logits: torch.Tensor) -> torch.Tensor:
    r"""The transitions, float64 `[B, T, H, M, M]`, that gate logits `[B, T, num_gates]` of a BD-LRU or an H-LRU stand for.

    h_t = A_t h_{t-1} + ..., for an H-LRU with companion matrices that act on [h_{t-1}, .., h_{t-M}].

    Example:
        >>> import torch
        >>> from benchmarks.report.transitions import transitions
        >>> from fla_bdlru.layers import HLRU
        >>> A = transitions(HLRU(hidden_size=8, order=3), torch.zeros(1, 1, 4 * 8))
        >>> expected = torch.tensor([[1 / 4, 1 / 4, 1 / 4], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
        >>> assert torch.allclose(A[0, 0, 0], expected)
    """
    gates = logits.double().unflatten(-1, layer.gate_shape)
    if isinstance(layer, BDLRU):  # [B, T, M, M+1, H]
        return normalize_gates(gates.permute(0, 1, 4, 2, 3), layer.gate_norm)[..., :-1]
    weights = normalize_gates(gates.transpose(2, 3), layer.gate_norm)[..., :-1]  # [B, T, N, M]
    shift = torch.eye(layer.order, dtype=torch.float64)[:-1].expand(*weights.shape[:-1], -1, -1)
    return torch.cat([weights.unsqueeze(-2), shift], -2)


@torch.no_grad()
def run_transitions(model: torch.nn.Module, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Runs a model of the comparison on tokens `[B, T]`; `transitions` of each of its BD-LRU and H-LRU layers."""
    found = []
    with ExitStack() as hooks:
        for layer in (module for module in model.modules() if isinstance(module, GatedRecurrence)):
            keep = lambda module, args, logits, layer=layer: found.append(transitions(layer, logits))  # noqa: E731
            hooks.enter_context(layer.a_proj.register_forward_hook(keep))
        model(input_ids=tokens)
    return found


def stored_transitions(folder: str | Path, row: dict, examples: int = 16) -> list[torch.Tensor]:
    """`run_transitions` of a stored run on test sequences of its longest training length."""
    length = max(row["lengths"])
    inputs, _ = get_task(row["task"], row["bos"]).sample(make_generator(row["task"], "test", length), examples, length)
    return run_transitions(load_model(folder, row), inputs)


def classify(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Masks of eigenvalues: `"positive"` (real, or next to zero), `"negative"` (real) and `"complex"`."""
    is_complex = values.imag.abs() > REAL
    negative = ~is_complex & (values.real < -ZERO)
    return {"positive": ~is_complex & ~negative, "negative": negative, "complex": is_complex}


def time_constants(matrices: torch.Tensor) -> torch.Tensor:
    r"""How many steps a block remembers, from the decay of the product of its transitions over a sequence.

    With P = A_T ... A_1, tau = -T / log |P|, where |P| is the largest row sum of absolute values. For transitions that do
    not change it tends to -1 / log of the spectral radius; where they change, eigenvalues of single steps do not tell.

    Takes transitions of shape `[B, T, H, M, M]`; steps of shape `[B, H]`, infinite where nothing decays.

    Example:
        >>> import torch
        >>> from benchmarks.report.transitions import time_constants
        >>> A = torch.eye(2, dtype=torch.float64).mul(0.5).expand(1, 8, 1, 2, 2)
        >>> assert abs(time_constants(A).item() - 1.4427) < 1e-4  # 1 / log 2
    """
    product = torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand_as(matrices[:, 0])
    log_size = torch.zeros(matrices.shape[0], matrices.shape[2], dtype=matrices.dtype)
    for step in matrices.unbind(1):
        product = step @ product
        size = product.abs().sum(-1).amax(-1).clamp_min(1e-300)
        log_size += size.log()
        product = product / size[..., None, None]
    log_size = log_size.masked_fill(log_size.abs() < 1e-12, 0.0)
    return torch.where(log_size < 0, -matrices.shape[1] / log_size, torch.inf)
