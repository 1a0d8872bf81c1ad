"""Shapes that do not match: a `ValueError` names the tensor, with kernels and without, which get pointers and no shapes."""

import re

import pytest
import torch
from fla.modules.activations import swiglu
from fla.modules.causal_conv1d import causal_conv1d
from fla.modules.causal_conv1d.ops import causal_conv1d_update
from fla.modules.fused_cross_entropy import FusedCrossEntropyLoss
from fla.modules.fused_kl_div import FusedKLDivLoss
from fla.modules.norm import fused_norm_gate, layernorm, layernorm_gated
from fla.modules.rotary import rotary_embedding
from fla.modules.token_shift import token_shift
from fla.ops.attn.decoding import attn_decoding_one_step
from fla.ops.attn.parallel import parallel_attn
from fla.ops.delta_rule import chunk_delta_rule
from fla.ops.gated_delta_product import chunk_gated_delta_product
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gdn2 import chunk_gdn2
from fla.ops.gla import chunk_gla
from fla.ops.gsa import chunk_gsa
from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn
from fla.ops.kda import chunk_kda
from fla.ops.rwkv6 import chunk_rwkv6
from fla.ops.rwkv7 import fused_mul_recurrent_rwkv7
from fla.ops.simple_gla import chunk_simple_gla, parallel_simple_gla
from fla.ops.utils.cumsum import chunk_local_cumsum

from fla_bdlru.fla_cpu import mamba, norm
from fla_bdlru.fla_cpu.attention import flash_attn_func, flash_attn_varlen_func

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
    "attention: keys": ("k", lambda: parallel_attn(q, k[:1], v)),
    "attention: values": ("v", lambda: parallel_attn(q, k, v[:, :3])),
    "attention: g": ("g", lambda: parallel_attn(q, k, v, g=beta[..., :1])),
    "attention: sink": ("sink_bias", lambda: parallel_attn(q, k, v, sink_bias=w[:1])),
    "flash attention: keys": ("k", lambda: flash_attn_func(q, k[:1], v)),
    "flash attention: values": ("v", lambda: flash_attn_func(q, k, v[:, :3])),
    "cross entropy": ("target", lambda: FusedCrossEntropyLoss()(x, torch.zeros(1, dtype=torch.long))),
    "divergence: tokens": ("target_x", lambda: FusedKLDivLoss()(x, x[:5], x, x)),
    "divergence: channels": ("weight", lambda: FusedKLDivLoss()(x, x, x[:, :3], x)),
    "divergence: vocabularies": ("target_weight", lambda: FusedKLDivLoss()(x, x, x, x[:1])),
    "SwiGLU": ("y", lambda: swiglu(x, x[:1])),
    "rotary embedding: sin": ("sin", lambda: rotary_embedding(q, w.view(16, 4)[:, :2], w.view(16, 4)[:8, :2])),
    "rotary embedding: offsets": (
        "seqlen_offsets", lambda: rotary_embedding(q, *[w.view(16, 4)[:, :2]] * 2, seqlen_offsets=torch.zeros(1).long())
    ),
    "gate: A_log": (
        "A_log", lambda: chunk_gated_delta_rule(q, k, v, beta, beta, use_gate_in_kernel=True, A_log=w[:1])
    ),
    "gate of keys: A_log": ("A_log", lambda: chunk_kda(q, k, v, k, beta, use_gate_in_kernel=True, A_log=w[:1])),
    "gate of keys: dt_bias": (
        "dt_bias", lambda: chunk_kda(q, k, v, k, beta, use_gate_in_kernel=True, A_log=w[:2], dt_bias=w[:2])
    ),
    "rwkv6": ("u", lambda: chunk_rwkv6(q, k, v, k, w[:5].view(1, 5))),
    "rwkv7": ("a", lambda: fused_mul_recurrent_rwkv7(q, k, k, v, k, k[..., :1])),
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
    with pytest.raises(ValueError, match=rf"^{name} must (have shape|have \d+ elements|divide)"):
        call()


def packed():
    """Ops over five packed tokens, by name."""
    x = torch.randn(1, 5, 2, 4)
    row, gate, cos = x[..., 0], -x.abs(), torch.randn(16, 2)
    return {
        "gla": lambda c: chunk_gla(x, x, x, gate, cu_seqlens=c),
        "gated delta rule": lambda c: fused_recurrent_gated_delta_rule(x, x, x, gate[..., 0], beta=row, cu_seqlens=c),
        "gated delta product": lambda c: chunk_gated_delta_product(
            x, x.repeat(1, 2, 1, 1), x.repeat(1, 2, 1, 1), row, row.repeat(1, 2, 1), 2, cu_seqlens=c
        ),
        "gsa": lambda c: chunk_gsa(x, x, x, x, cu_seqlens=c),
        "hgrn": lambda c: fused_recurrent_hgrn(row, gate[..., 0], cu_seqlens=c),
        "rwkv6": lambda c: chunk_rwkv6(x, x, x, gate, x[0, 0], cu_seqlens=c),
        "sums": lambda c: chunk_local_cumsum(row, 16, cu_seqlens=c),
        "attention": lambda c: parallel_attn(x, x, x, cu_seqlens=c),
        "decoding": lambda c: attn_decoding_one_step(x[:, : len(c) - 1], x, x, cu_seqlens=c),
        "flash attention": lambda c: flash_attn_varlen_func(x[0], x[0], x[0], c, c, 5, 5, causal=True),
        "convolution": lambda c: causal_conv1d(row, torch.randn(2, 3), cu_seqlens=c),
        "token shift": lambda c: token_shift(row, cu_seqlens=c),
        "rotary embedding": lambda c: rotary_embedding(x, cos, cos, cu_seqlens=c),
    }


@pytest.mark.parametrize("name", packed())
def test_boundaries_that_do_not_fit_are_refused(name):
    call = packed()[name]
    for bounds in ([0, 2, 4], [0, 2, 7], [1, 3, 5], [1, 3, 6], [0, 4, 2, 5], [0, -1, 5]):
        with pytest.raises(ValueError, match=rf"^cu_seqlens\w* must rise from 0 to T=5; got {re.escape(str(bounds))}\.$"):
            call(torch.tensor(bounds))
    call(torch.tensor([0, 2, 2, 5]))


@pytest.mark.parametrize("bounds", [[0], [[0, 5]], [0.0, 5.0]], ids=str)
@pytest.mark.parametrize("name", sorted(packed().keys() - {"flash attention", "convolution"}))
def test_boundaries_are_a_row_of_integers(name, bounds):
    """Of the convolution FLA reads them first."""
    with pytest.raises(ValueError, match=r"^cu_seqlens must be integers of shape \[num_seqs\+1\]; got torch"):
        packed()[name](torch.tensor(bounds))


def test_queries_and_keys_of_as_many_documents():
    x, two, three = torch.randn(5, 2, 4), torch.tensor([0, 2, 5]), torch.tensor([0, 2, 3, 5])
    with pytest.raises(ValueError, match="cu_seqlens_q holds 2 sequences, and cu_seqlens_k 3; expected as many"):
        flash_attn_varlen_func(x, x, x, two, three, 3, 2)
    with pytest.raises(ValueError, match=r"^q must have shape"):
        attn_decoding_one_step(x[None, :3], x[None], x[None], cu_seqlens=two)


def test_a_gate_may_come_with_other_axes(close, with_gradients):
    """FLA reads it as rows of what is normed."""

    def gated(x, g):
        return fused_norm_gate.rms_norm_gated(x, g, w[:8], None, "swish")

    x, g = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 32)
    (o,), grads, weights = with_gradients(gated, (x, g))
    (expected,), expected_grads, _ = with_gradients(gated, (x, g.view(x.shape)), weights)
    close(o, expected, 1e-6, "output")
    close(grads[1], expected_grads[1].view(g.shape), 1e-6, "gradient")
