"""The gate norms of BD-LRU and H-LRU: from logits to a row of gates with unit L1 norm."""

import torch
import torch.nn.functional as F

GATE_NORMS = ("softmax", "sigmoid", "relu", "tanh", "silu", "linear", "square", "sinh", "none")

# Denominators: the published relu form adds RELU_EPS to each entry, the others are floored at EPS.
EPS = 1e-6
RELU_EPS = 1e-3

_ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "linear": lambda g: g,
    "square": lambda g: g * g.abs(),
}


def _sinh(g: torch.Tensor, dim: int) -> torch.Tensor:
    """sinh(g) exp(-max|g|), which neither overflows nor cancels; the maximum is a constant to its gradient."""
    top = g.detach().abs().amax(dim, keepdim=True)
    near = torch.sinh(g.clamp(-1, 1)) * torch.exp(-top)
    return torch.where(g.abs() < 1, near, 0.5 * (torch.exp(g - top) - torch.exp(-g - top)))


def check_gate_norm(gate_norm: str) -> None:
    """Raises `ValueError` unless `gate_norm` is one of `GATE_NORMS`."""
    if gate_norm not in GATE_NORMS:
        raise ValueError(f"gate_norm={gate_norm!r} is not known; expected one of {', '.join(map(repr, GATE_NORMS))}.")


def normalize_gates(g: torch.Tensor, gate_norm: str = "softmax", dim: int = -1) -> torch.Tensor:
    r"""Normalises gate logits so that a row's absolute values sum to one.

    With f applied per entry, the gates are `f(g) / sum|f(g)|`; `softmax` is f = exp, `linear` is f = identity, `square` is
    f = g|g|, `sinh` is f = sinh, times exp(-max|g|) of its row; `none` returns the logits. The denominator is
    `sum(f + 1e-3)` for `relu` and `max(sum|f|, 1e-6)` otherwise.

    Args:
        g (torch.Tensor):
            Gate logits; `dim` runs over the M recurrence gates and, last, the input gate.
        gate_norm (str):
            One of `GATE_NORMS`. Default: `"softmax"`.
        dim (int):
            The axis that is normalised. Default: -1.

    Returns:
        torch.Tensor:
            Gates of the shape and dtype of `g`.

    Raises:
        ValueError: if `gate_norm` is not known.

    Source: arXiv 2602.12021, L1 normalisation of selective gates.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import normalize_gates
        >>> p = normalize_gates(torch.randn(2, 5), gate_norm="tanh")
        >>> assert torch.allclose(p.abs().sum(-1), torch.ones(2))
    """
    check_gate_norm(gate_norm)
    if gate_norm == "softmax":
        return torch.softmax(g, dim)
    if gate_norm == "none":
        return g
    dtype, g = g.dtype, g.to(torch.promote_types(g.dtype, torch.float32))  # squares and sums of half types
    f = _sinh(g, dim) if gate_norm == "sinh" else _ACTIVATIONS[gate_norm](g)
    if gate_norm == "relu":
        return (f / (f + RELU_EPS).sum(dim, keepdim=True)).to(dtype)
    return (f / f.abs().sum(dim, keepdim=True).clamp_min(EPS)).to(dtype)
