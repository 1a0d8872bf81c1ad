"""`torch.autograd.grad(is_grads_batched=True)`, with numba kernels and without: as one gradient after the other."""

import pytest
import torch
from fla.layers import GatedDeltaNet, Mamba2
from fla.modules.activations import ops as activations
from fla.modules.causal_conv1d import causal_conv1d
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.fused_kl_div import fused_kl_div_loss
from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss
from fla.modules.norm import fused_norm_gate, layernorm, layernorm_gated
from fla.modules.norm.l2norm import l2norm
from fla.modules.rotary import rotary_embedding
from fla.modules.token_shift import token_shift
from fla.ops.gla import chunk_gla
from fla.ops.hgrn import chunk_hgrn
from fla.ops.kda import chunk_kda
from fla.ops.simple_gla import chunk_simple_gla

from fla_bdlru.fla_cpu import mamba
from fla_bdlru.layers import BDLRU

X = (2, 37, 5)
ANGLES = torch.rand(4, 4)
K, V = (1, 37, 2, 3), (1, 37, 2, 4)


def attention(op, *rest):
    """`op` from a state to the last one."""
    return lambda q, k, v, state, *more: op(q, k, v, *more, initial_state=state, output_final_state=True)


CASES = {
    "convolution": (lambda x, w, b: causal_conv1d(x, w, b, activation="silu"), X, (5, 4), (5,)),
    "convolution, its state": (
        lambda x, w, s: causal_conv1d(x, w, initial_state=s, output_final_state=True), X, (5, 4), (2, 5, 4)
    ),
    "token shift": (token_shift, X),
    "token shift, its cache": (lambda x, c: token_shift(x, cache=c, output_cache=True), X, (2, 5)),
    "rotary": (lambda x: rotary_embedding(x, ANGLES.cos(), ANGLES.sin()), (1, 4, 2, 8)),
    "layer norm": (lambda x, w, b, r: layernorm.layer_norm(x, w, b, r, prenorm=True), X, (5,), (5,), X),
    "gated norm": (lambda x, g, w: fused_norm_gate.rms_norm_gated(x, g, w, None, "swish"), X, X, (5,)),
    "Mamba's norm": (lambda x, w, z: layernorm_gated.layernorm_fn(x, w, None, z), X, (5,), X),
    "l2 norm": (l2norm, X),
    "swish": (activations.swish, X),
    "SwiGLU": (activations.swiglu, X, X),
    "simple GLA": (attention(chunk_simple_gla), K, K, V, (1, 2, 3, 4), K[:3]),
    "GLA": (attention(chunk_gla), K, K, V, (1, 2, 3, 4), K),
    "KDA": (attention(chunk_kda), K, K, V, (1, 2, 3, 4), K, K[:3]),
    "no decay, no state": (lambda q, k, v: chunk_simple_gla(q, k, v)[0], K, K, V),
    "HGRN": (chunk_hgrn, X, X, (2, 5)),
    "cross entropy": (lambda x: cross_entropy_loss(x, torch.arange(5), 0.1, 0.5, 0.1, 2.0)[0], (5, 6)),
    "linear layer and cross entropy": (
        lambda x, w, b: fused_linear_cross_entropy_loss(x, torch.arange(5), w, b), (5, 3), (6, 3), (6,)
    ),
    "linear layer and KL divergence": (
        lambda x, w: fused_kl_div_loss(x, torch.ones(5, 3), w, torch.eye(6, 3)), (5, 3), (6, 3)
    ),
    "selective scan": (
        lambda x, dt, A, B, C, s: mamba._selective_scan(x, dt.abs(), -A.abs(), B, C, {"recurrent_state": s}),
        X, X, (5, 3), (2, 37, 3), (2, 37, 3), (2, 5, 3),
    ),
    "selective scan from nothing": (
        lambda x, dt, A, B, C: mamba._selective_scan(x, dt.abs(), -A.abs(), B, C, None)[0],
        X, X, (5, 3), (2, 37, 3), (2, 37, 3),
    ),
}  # fmt: skip


def agrees(close, outputs, inputs):
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o is not None]
    directions = [torch.randn(3, *o.shape) for o in outputs]
    together = torch.autograd.grad(outputs, inputs, directions, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        alone = torch.autograd.grad(outputs, inputs, [d[i] for d in directions], retain_graph=True)
        for got, expected in zip(together, alone):
            close(got[i], expected, 1e-4, "gradient")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_modules(case, close):
    fn, *shapes = case
    inputs = [torch.rand(shape).mul(-0.5).requires_grad_() for shape in shapes]
    agrees(close, fn(*inputs), inputs)


LAYERS = {
    "BDLRU": lambda: BDLRU(hidden_size=16, use_short_conv=True),
    "GatedDeltaNet": lambda: GatedDeltaNet(hidden_size=16, head_dim=8, num_heads=2),
    "Mamba2": lambda: Mamba2(num_heads=4, head_dim=8, hidden_size=16, state_size=8),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_layers(make, close):
    layer, x = make(), torch.randn(2, 9, 16, requires_grad=True)
    agrees(close, layer(x)[0], [x, *(p for p in layer.parameters() if p.requires_grad)])
