"""PyTorch versions of `fla.modules.activations.ops`: computed in fp32, returned contiguous in the input's type."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import are_for_kernels, check_shape, upcast

OPS = "fla.modules.activations.ops"


def _like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.to(x.dtype).contiguous()


# Of x and an option of some: the value, and what takes its gradient to that of x; torch has two of these in one pass.


def sigmoid(x, _=None) -> tuple[torch.Tensor, Callable]:
    s = torch.sigmoid(x)
    return s, lambda grad: torch.ops.aten.sigmoid_backward(grad, s)


def swish(x, _=None) -> tuple[torch.Tensor, Callable]:
    def pull(grad):
        if torch.is_grad_enabled():  # torch's has no derivative
            s = torch.sigmoid(x)
            return grad * s * (1 + x * (1 - s))
        return torch.ops.aten.silu_backward(grad, x)

    return F.silu(x), pull


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


def _kernels(activation, *tensors):
    """The module of numba kernels, if they know the activation and may run on the tensors, which have one shape."""
    if (
        activation not in (sigmoid, swish)
        or any(t.shape != tensors[0].shape for t in tensors)
        or not are_for_kernels(*tensors)
    ):
        return None
    from fla_bdlru.fla_cpu import native_activation

    return native_activation


def elementwise(activation) -> dict:
    """Replacements of FLA's two functions of an activation; logsigmoid's have a temperature, too."""
    name = activation.__name__

    def fwd(x, temperature=None):
        if native := _kernels(activation, x):
            return native.forward(name, x)
        return _like(activation(upcast(x), temperature)[0], x)

    def bwd(x, dy, temperature=None):
        if native := _kernels(activation, x, dy):
            return native.backward(name, x, dy)[0]
        return _like(activation(upcast(x), temperature)[1](upcast(dy)), x)

    return {f"{OPS}:{name}_{form.__name__}": form for form in (fwd, bwd)}


def gated(gate, x, y, power=None) -> torch.Tensor:
    """gate(x) * y in fp32."""
    if native := _kernels(gate, x, y):
        return native.forward(gate.__name__, x, y)
    return gate(upcast(x), power)[0] * upcast(y)


def gated_backward(gate, x, y, grad, recompute=False, power=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradients of x and y in fp32, and gate(x) * y again if `recompute`."""
    if native := _kernels(gate, x, y, grad):
        return native.backward(gate.__name__, x, grad, y, recompute)
    (value, pull), y, grad = gate(upcast(x), power), upcast(y), upcast(grad)
    return pull(grad * y), grad * value, value * y if recompute else None


def glu(name, gate) -> dict:
    """Replacements of FLA's three functions of gate(x) * y; powglu's have a power, too."""
    # The fused "gate, then linear" function keeps autocast's cast for its own backward on a GPU only: two steps here.

    def fwd(x, y, power=None):
        check_shape("y", y, x.shape)
        return _like(gated(gate, x, y, power), x)

    def fwdbwd(x, y, g, use_weight, power=None):
        check_shape("y", y, x.shape)
        check_shape("g", g, x.shape)
        dx, dy, z = gated_backward(gate, x, y, g, use_weight, power)
        grads = _like(dx, x), _like(dy, y)
        return (*grads, _like(z, x)) if use_weight else grads

    def linear(x, y, weight, bias, power=None):
        from fla.modules.activations import ops

        product = getattr(ops, name)
        return F.linear(product(x, y) if power is None else product(x, y, power), weight, bias)

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
