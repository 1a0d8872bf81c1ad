"""Gate biases that start a layer with long memory, for every gate norm."""

from __future__ import annotations

import math
from numbers import Real

import torch

from fla_bdlru.ops.common.gate_norm import RELU_EPS, check_gate_norm

GATE_BIASES = ("uniform", "memory")


def check_memory_range(bounds: object) -> None:
    """Raises `ValueError` unless `bounds` are two time constants that rise."""
    pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(isinstance(bound, Real) for bound in bounds)
    if not pair or not 1 <= bounds[0] <= bounds[1] < math.inf:
        raise ValueError(f"memory_range must be two time constants in steps, 1 <= low <= high; got {bounds!r}.")


def time_constants(num: int, bounds: tuple[float, float]) -> torch.Tensor:
    """`num` time constants in steps, spread log-uniformly over `bounds`; on the CPU, as not every device has float64."""
    check_memory_range(bounds)
    low, high = bounds
    return torch.logspace(math.log10(low), math.log10(high), num, dtype=torch.float64, device="cpu")


def memory_gates_bdlru(block_size: int, tau: torch.Tensor) -> torch.Tensor:
    """Gates `[M, M+1, H]` of blocks near the identity whose leading eigenvalue is `exp(-1/tau)`, tau `[H]`."""
    M, decay = block_size, torch.exp(-1 / tau)
    mixing = (1 - decay) / (2 * (M - 1)) if M > 1 else torch.zeros_like(decay)
    gates = mixing.expand(M, M + 1, -1).clone()
    gates.diagonal(dim1=0, dim2=1).copy_((decay - (M - 1) * mixing)[:, None].expand(-1, M))
    gates[:, M] = 1 - decay  # rows of the transition sum to the decay, so it is the leading eigenvalue
    return gates


def memory_gates_hlru(order: int, tau: torch.Tensor) -> torch.Tensor:
    """Gates `[M+1, N]` of channels near a first-order memory whose leading eigenvalue is `exp(-1/tau)`, tau `[N]`."""
    M, decay = order, torch.exp(-1 / tau)
    lag = torch.arange(1, M, dtype=tau.dtype, device=tau.device)[:, None]
    # sum_i p_i decay^-i = 1 makes the decay a root of the characteristic polynomial, the largest where all p_i > 0
    share = (1 - decay) / (2 * max(M - 1, 1))
    later = share * decay**lag
    first = decay - share * (M - 1)
    gates = torch.cat([first[None], later])
    return torch.cat([gates, 1 - gates.sum(0, keepdim=True)])


def gate_logits(gates: torch.Tensor, gate_norm: str) -> torch.Tensor:
    """Logits that a gate norm turns into `gates`, which are positive and sum to one along the second to last axis."""
    check_gate_norm(gate_norm)
    if gate_norm == "relu":
        # the published RELU_EPS adds K of itself to the denominator: what it takes is taken from the input gate, the last
        added, entering = gates.shape[-2] * RELU_EPS, gates[..., -1:, :]
        logits = gates * added * torch.clamp(2 / entering, min=1e4)
        logits[..., -1, :] -= added
        return logits
    inverse = {
        "sigmoid": lambda p: torch.logit(p / 2),
        "tanh": lambda p: torch.atanh(p / 2),
        "silu": inverse_silu,
        "sinh": lambda p: torch.asinh(4 * p),  # of a size at which the floor of the denominator is far
    }
    if gate_norm in inverse:
        return inverse[gate_norm](gates / gates.amax(-2, keepdim=True))
    if gate_norm == "softmax":
        return gates.log()
    return gates.sqrt() if gate_norm == "square" else gates  # linear, none


def rounded_down(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x > 0 in `dtype`, at most x: gates of `none` that were rounded up would have eigenvalues above 1."""
    y, info = x.to(dtype), torch.finfo(dtype)
    return torch.where(y > x, (x * (1 - info.eps) - info.tiny * info.eps).to(dtype), y)


def inverse_silu(y: torch.Tensor) -> torch.Tensor:
    """x > 0 with silu(x) = y, by Newton's iteration (silu is convex and rising there)."""
    x = y + 1
    for _ in range(30):
        s = torch.sigmoid(x)
        x = x - (x * s - y) / (s * (1 + x * (1 - s)))
    return x
