"""Shapes that do not match: a `ValueError` names the tensor, with kernels and without, which get pointers and no shapes."""

import pytest
import torch
from fla.modules.causal_conv1d import causal_conv1d
from fla.modules.causal_conv1d.ops import causal_conv1d_update
from fla.modules.norm import fused_norm_gate, layernorm, layernorm_gated
from fla.ops.delta_rule import chunk_delta_rule
from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
from fla.ops.gdn2 import chunk_gdn2
from fla.ops.gla import chunk_gla
from fla.ops.hgrn import chunk_hgrn
from fla.ops.kda import chunk_kda
from fla.ops.simple_gla import chunk_simple_gla, parallel_simple_gla

from fla_bdlru.fla_cpu import mamba, norm

q, k, v, beta = torch.zeros(2, 4, 2, 5), torch.zeros(2, 4, 2, 5), torch.zeros(2, 4, 2, 16), torch.zeros(2, 4, 2)
state = torch.zeros(2, 2, 5, 16)
x, w = torch.zeros(6, 64), torch.ones(64)
tokens, filters, columns = torch.zeros(2, 6, 32), torch.zeros(32, 4), torch.zeros(2, 32, 4)
A, B = torch.zeros(32, 3), torch.zeros(2, 6, 3)


def scan(dt=tokens, A=A, B=B, C=B, state=None):
    return mamba._selective_scan(tokens, dt, A, B, C, None if state is None else {"recurrent_state": state})


WRONG = {
    "k: time": ("k", lambda: chunk_simple_gla(q, k[:, :3], v)),
    "k: channels": ("k", lambda: chunk_simple_gla(q, k[..., :3], v)),
    "k: batch": ("k", lambda: chunk_simple_gla(q, k[:1], v)),
    "v: time": ("v", lambda: chunk_simple_gla(q, k, v[:, :3])),
    "v: axes": ("v", lambda: chunk_simple_gla(q, k, v[..., 0])),
    "beta: heads": ("beta", lambda: chunk_delta_rule(q, k, v, beta[:1, :, :1])),
    "beta in the place of gk": ("gk", lambda: fused_recurrent_gated_delta_rule(q, k, v, beta, beta)),
    "g: heads": ("g", lambda: chunk_simple_gla(q, k, v, beta[..., :1])),
    "g beside g_gamma": ("g", lambda: chunk_simple_gla(q, k, v, beta[..., :1], w[:2])),
    "g_gamma": ("g_gamma", lambda: chunk_simple_gla(q, k, v, g_gamma=w[:1])),
    "g of the matrix": ("g", lambda: parallel_simple_gla(q, k, v, beta[..., :1], output_attentions=True)),
    "g of keys: heads": ("g", lambda: chunk_gla(q, k, v, k[:, :, :1])),
    "g of keys: batch": ("g", lambda: chunk_gla(q, k, v, k[:1])),
    "kda": ("g", lambda: chunk_kda(q, k, v, k[:, :, :1], beta, use_gate_in_kernel=True, A_log=w[:2])),
    "gdn2": ("b", lambda: chunk_gdn2(q, k, v, k, k[:, :, :1], v)),
    "state: heads": ("initial_state", lambda: chunk_simple_gla(q, k, v, initial_state=state[:, :1])),
    "state: the other way round": ("initial_state", lambda: chunk_simple_gla(q, k, v, initial_state=state.mT)),
    "state: not the other way round": (
        "initial_state", lambda: chunk_simple_gla(q, k, v, initial_state=state, state_v_first=True)
    ),
    "hgrn": ("g", lambda: chunk_hgrn(tokens, tokens[:1])),
    "norm: weight": ("weight", lambda: layernorm.rms_norm(x, w[:1], None)),
    "norm: bias": ("bias", lambda: layernorm.layer_norm(x, w, w[:1])),
    "norm: residual": ("residual", lambda: norm.layer_norm_fwd(x, w, None, residual=x[:1])),
    "norm: gradient": (
        "dy", lambda: norm.layer_norm_bwd(x[:1], x, w, None, None, w[:6], None, False, True, None, False)
    ),
    "gated norm: gate": ("g", lambda: fused_norm_gate.rms_norm_gated(x, x[:1], w, None, "swish")),
    "gated norm: weight": ("weight", lambda: fused_norm_gate.rms_norm_gated(x, x, w[:1], None, "swish")),
    "Mamba's norm: weight": ("weight", lambda: layernorm_gated.layernorm_fn(x, w[:1], None, x)),
    "Mamba's norm: groups": ("group_size", lambda: layernorm_gated.layernorm_fn(x, w, None, x, group_size=48)),
    "convolution: a weight of half the channels": ("weight", lambda: causal_conv1d(tokens, filters[:16])),
    "convolution: a weight of one channel": ("weight", lambda: causal_conv1d(tokens, filters[:1])),
    "convolution: bias": ("bias", lambda: causal_conv1d(tokens, filters, w[:1])),
    "convolution: residual": ("residual", lambda: causal_conv1d(tokens, filters, residual=tokens[:1])),
    "convolution: state": ("initial_state", lambda: causal_conv1d(tokens, filters, initial_state=columns[:, :16])),
    "convolution: cache": ("cache", lambda: causal_conv1d_update(tokens[:, 0], columns[:1], weight=filters)),
    "scan: dt": ("dt", lambda: scan(dt=tokens[..., :1])),
    "scan: A": ("A", lambda: scan(A=A[:1])),
    "scan: B": ("B", lambda: scan(B=B[:, :1])),
    "scan: C": ("C", lambda: scan(C=B[:1])),
    "scan: state": ("recurrent_state", lambda: scan(state=torch.zeros(2, 3, 32))),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_match(case, backend, monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", backend)
    name, call = case
    with pytest.raises(ValueError, match=rf"^{name} must (have shape|divide)"):
        call()


def test_a_gate_may_come_with_other_axes(close, with_gradients):
    """FLA reads it as rows of what is normed."""

    def gated(x, g):
        return fused_norm_gate.rms_norm_gated(x, g, w[:8], None, "swish")

    x, g = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 32)
    (o,), grads, weights = with_gradients(gated, (x, g))
    (expected,), expected_grads, _ = with_gradients(gated, (x, g.view(x.shape)), weights)
    close(o, expected, 1e-6, "output")
    close(grads[1], expected_grads[1].view(g.shape), 1e-6, "gradient")
