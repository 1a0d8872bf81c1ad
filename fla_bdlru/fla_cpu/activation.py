"""PyTorch versions of `fla.modules.activations.ops`: computed in fp32, returned contiguous in the input's type."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import upcast

OPS = "fla.modules.activations.ops"


def _like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.to(x.dtype).contiguous()


# Of x and an option of some: the value, and what takes its gradient to that of x; torch has two of these in one pass.


def sigmoid(x, _=None) -> tuple[torch.Tensor, Callable]:
    s = torch.sigmoid(x)
    return s, lambda grad: torch.ops.aten.sigmoid_backward(grad, s)


def swish(x, _=None) -> tuple[torch.Tensor, Callable]:
    return F.silu(x), lambda grad: torch.ops.aten.silu_backward(grad, x)


def elu_p1(x, _=None) -> tuple[torch.Tensor, Callable]:
    below = x.clamp_max(0).exp()
    return torch.where(x >= 0, x + 1, below), lambda grad: grad * below


def logsigmoid(x, temperature) -> tuple[torch.Tensor, Callable]:
    return F.logsigmoid(x) / temperature, lambda grad: grad * torch.sigmoid(-x) / temperature


def powlu(x, power) -> tuple[torch.Tensor, Callable]:
    """x^(power / (sqrt(x) + 1)) sigmoid(x) for x > 0, swish below."""
    below, pull_below = swish(x)
    s, positive = torch.sigmoid(x), x > 0
    u = x.where(positive, torch.ones_like(x))
    root = u.sqrt()
    exponent = power / (root + 1)
    gate = u.pow(exponent) * s

    def pull(grad):
        dexponent = -power / (2 * root * (root + 1) ** 2)
        return (grad * gate * (dexponent * u.log() + exponent / u + 1 - s)).where(positive, pull_below(grad))

    return gate.where(positive, below), pull


def elementwise(activation) -> dict:
    """Replacements of FLA's two functions of an activation; logsigmoid's have a temperature, too."""

    def fwd(x, temperature=None):
        return _like(activation(upcast(x), temperature)[0], x)

    def bwd(x, dy, temperature=None):
        return _like(activation(upcast(x), temperature)[1](upcast(dy)), x)

    return {f"{OPS}:{activation.__name__}_{form.__name__}": form for form in (fwd, bwd)}


def glu(name, gate) -> dict:
    """Replacements of FLA's three functions of gate(x) * y; powglu's have a power, too."""
    # The fused "gate, then linear" function keeps autocast's cast for its own backward on a GPU only: two steps here.

    def fwd(x, y, power=None):
        return _like(gate(upcast(x), power)[0] * upcast(y), x)

    def fwdbwd(x, y, g, use_weight, power=None):
        value, pull = gate(upcast(x), power)
        grads = _like(pull(upcast(g) * upcast(y)), x), _like(upcast(g) * value, y)
        return (*grads, _like(value.mul_(upcast(y)), x)) if use_weight else grads

    def linear(x, y, weight, bias, power=None):
        from fla.modules.activations import ops

        gated = getattr(ops, name)
        return F.linear(gated(x, y) if power is None else gated(x, y, power), weight, bias)

    return {f"{OPS}:{name}_{form.__name__}": form for form in (fwd, fwdbwd, linear)}


# FLA compiles the following with torch.compile, which needs a C++ compiler on a CPU; here they run eagerly.


def gelu_fwd(x):
    return F.gelu(x, approximate="tanh")


def gelu_bwd(g, x):
    return torch.ops.aten.gelu_backward(g, x, approximate="tanh").to(x.dtype)


def bias_gelu(y, bias):
    return F.gelu(bias + y, approximate="tanh").to(y.dtype)


def bias_gelu_bwd(g, y, bias):
    dx = torch.ops.aten.gelu_backward(g.to(torch.result_type(y, bias)), bias + y, approximate="tanh")
    return dx.to(y.dtype), dx.sum(0, dtype=bias.dtype)


def relu_bwd(g, x):
    # As FLA has it: the gradient at 0 is g.
    return torch.where(x >= 0, g, 0.0).to(x.dtype)


def sqrelu_fwd(x):
    return F.relu(upcast(x)).square().to(x.dtype)


def sqrelu_bwd(g, x):
    return (2.0 * g * F.relu(upcast(x))).to(x.dtype)
