"""PyTorch versions of `fla.modules.activations.ops`: computed in fp32, returned contiguous in the input's type."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import upcast


def _like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.to(x.dtype).contiguous()


def sigmoid_fwd(x):
    return _like(torch.sigmoid(upcast(x)), x)


def sigmoid_bwd(x, dy):
    s = torch.sigmoid(upcast(x))
    return _like(upcast(dy) * s * (1 - s), x)


def elu_p1_fwd(x):
    s = upcast(x)
    return _like(torch.where(s >= 0, s + 1, s.clamp_max(0).exp()), x)


def elu_p1_bwd(x, dy):
    return _like(upcast(dy) * upcast(x).clamp_max(0).exp(), x)


def logsigmoid_fwd(x, temperature):
    return _like(F.logsigmoid(upcast(x)) / temperature, x)


def logsigmoid_bwd(x, dy, temperature):
    return _like(upcast(dy) * torch.sigmoid(-upcast(x)) / temperature, x)


def swish_fwd(x):
    return _like(F.silu(upcast(x)), x)


def swish_bwd(x, dy):
    return _like(upcast(dy) * _swish(upcast(x))[1], x)


def _swish(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(x)
    return x * s, s * (1 + x * (1 - s))


def _power(x: torch.Tensor, power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x^(power / (sqrt(x) + 1)) sigmoid(x) for x > 0, swish below, and the derivative."""
    swish, dswish = _swish(x)
    s, positive = torch.sigmoid(x), x > 0
    u = x.where(positive, torch.ones_like(x))
    root = u.sqrt()
    exponent = power / (root + 1)
    dexponent = -power / (2 * root * (root + 1) ** 2)
    gate = u.pow(exponent) * s
    dgate = gate * (dexponent * u.log() + exponent / u + 1 - s)
    return gate.where(positive, swish), dgate.where(positive, dswish)


def _sigmoid(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(x)
    return s, s * (1 - s)


def _glu_fwdbwd(gate, x, y, g, use_weight):
    """dx, dy and, with `use_weight`, the output of gate(x) * y for the output gradient `g`."""
    value, derivative = gate(upcast(x))
    grad = upcast(g)
    grads = _like(grad * derivative * upcast(y), x), _like(grad * value, y)
    return (*grads, _like(value * upcast(y), x)) if use_weight else grads


def swiglu_fwd(x, y):
    return _like(F.silu(upcast(x)) * upcast(y), x)


def swiglu_fwdbwd(x, y, g, use_weight):
    # torch has the derivative in one pass
    value, grad = F.silu(upcast(x)), upcast(g)
    dx = torch.ops.aten.silu_backward(grad * upcast(y), upcast(x))
    grads = _like(dx, x), _like(grad * value, y)
    return (*grads, _like(value.mul_(upcast(y)), x)) if use_weight else grads


def sigmoidglu_fwd(x, y):
    return _like(torch.sigmoid(upcast(x)) * upcast(y), x)


def sigmoidglu_fwdbwd(x, y, g, use_weight):
    return _glu_fwdbwd(_sigmoid, x, y, g, use_weight)


def powglu_fwd(x, y, power):
    return _like(_power(upcast(x), power)[0] * upcast(y), x)


def powglu_fwdbwd(x, y, g, power, use_weight):
    return _glu_fwdbwd(lambda t: _power(t, power), x, y, g, use_weight)


# The fused "gate, then linear" functions keep autocast's cast for their own backward on a GPU only, so on a CPU they
# are written as two differentiable steps.


def swiglu_linear(x, y, weight, bias):
    from fla.modules.activations.ops import swiglu

    return F.linear(swiglu(x, y), weight, bias)


def sigmoidglu_linear(x, y, weight, bias):
    from fla.modules.activations.ops import sigmoidglu

    return F.linear(sigmoidglu(x, y), weight, bias)


def powglu_linear(x, y, weight, bias, power):
    from fla.modules.activations.ops import powglu

    return F.linear(powglu(x, y, power), weight, bias)


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
