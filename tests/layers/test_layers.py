"""The layers against the published equations, and what FLA asks of a layer: cache, padding, packing, initialisation."""

import ast
import inspect
import itertools
import math
import re

import numpy as np
import pytest
import torch
from fla.models.utils import Cache
from torch import nn

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM
from fla_bdlru.layers import BDLRU, HLRU, LSTM, Bidirectional
from fla_bdlru.layers.gate_bias import gate_logits, memory_gates_bdlru, memory_gates_hlru, time_constants
from fla_bdlru.ops import GATE_NORMS, naive_recurrent_bdlru, normalize_gates

D = 16
LAYERS = {
    "bdlru": lambda **kw: BDLRU(D, block_size=4, **kw),
    "bdlru-wide": lambda **kw: BDLRU(D, block_size=3, num_blocks=7, gate_norm="tanh", mode="fused_recurrent", **kw),
    "bdlru-constant": lambda **kw: BDLRU(D, block_size=4, selective=False, **kw),
    "bdlru-conv-gate": lambda **kw: BDLRU(D, block_size=4, use_short_conv=True, use_output_gate=True, **kw),
    "hlru": lambda **kw: HLRU(D, order=3, **kw),
    "hlru-state": lambda **kw: HLRU(D, order=3, readout="state", num_channels=10, gate_norm="silu", **kw),
    "hlru-constant": lambda **kw: HLRU(D, order=3, selective=False, gate_bias="memory", **kw),
    "hlru-conv-gate": lambda **kw: HLRU(D, order=2, use_short_conv=True, conv_bias=True, use_output_gate=True, **kw),
    "bdlru-start": lambda **kw: BDLRU(D, block_size=2, initial_state="learned", **kw),
    "hlru-start": lambda **kw: HLRU(D, order=3, initial_state="learned", use_short_conv=True, **kw),
    "lstm": lambda **kw: LSTM(D, num_channels=12, **kw),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def build(name, **kwargs):
    layer = LAYERS[name](**kwargs)
    if getattr(layer, "h0", None) is not None:
        nn.init.normal_(layer.h0)
    for module in layer.modules():  # livelier than the defaults, so that a mistake shows
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return layer


def published_gates(logits, gate_norm):
    """The published normalisation, written independently of `normalize_gates`."""
    if gate_norm == "softmax":
        e = (logits - logits.max(-1, keepdim=True).values).exp()
        return e / e.sum(-1, keepdim=True)
    f = {
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "relu": lambda x: x.clamp(min=0),
        "tanh": torch.tanh,
        "linear": lambda x: x,
    }
    f = f[gate_norm](logits)
    if gate_norm == "relu":
        return f / (f + 1e-3).sum(-1, keepdim=True)
    return f / f.abs().sum(-1, keepdim=True)


@pytest.mark.parametrize("gate_norm", ["softmax", "sigmoid", "relu", "tanh", "linear"])
def test_bdlru_layer_equals_the_published_equations(gate_norm):
    """Block by block with explicit matrices, weights picked by the feature order that the docstring states."""
    M, H, T = 3, 4, 9
    layer = BDLRU(D, block_size=M, num_blocks=H, gate_norm=gate_norm)
    nn.init.normal_(layer.a_proj.bias)
    x = torch.randn(2, T, D)
    W_v, W_a, b_a, W_o = layer.v_proj.weight, layer.a_proj.weight, layer.a_proj.bias, layer.o_proj.weight
    expected = torch.zeros(2, T, D)
    for k in range(H):
        channels = [i * H + k for i in range(M)]
        gates = [[(i * (M + 1) + j) * H + k for j in range(M + 1)] for i in range(M)]
        h = torch.zeros(2, M)
        for t in range(T):
            p = published_gates(torch.stack([x[:, t] @ W_a[row].T + b_a[row] for row in gates], 1), gate_norm)
            v = x[:, t] @ W_v[channels].T
            h = torch.einsum("bij,bj->bi", p[:, :, :M], h) + p[:, :, M] * v
            expected[:, t] += h @ W_o[:, channels].T
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readout", ["window", "state"])
@pytest.mark.parametrize("gate_norm", ["softmax", "sigmoid", "relu", "tanh", "linear"])
def test_hlru_layer_equals_the_published_equations(gate_norm, readout):
    M, N, T = 3, 4, 9
    layer = HLRU(D, order=M, num_channels=N, gate_norm=gate_norm, readout=readout)
    nn.init.normal_(layer.a_proj.bias)
    x = torch.randn(2, T, D)
    W_v, W_a, b_a, W_o = layer.v_proj.weight, layer.a_proj.weight, layer.a_proj.bias, layer.o_proj.weight
    expected = torch.zeros(2, T, D)
    for n in range(N):
        past = [torch.zeros(2)] * M  # h_{t-1}, h_{t-2}, ..
        rows = [i * N + n for i in range(M + 1)]
        for t in range(T):
            p = published_gates(x[:, t] @ W_a[rows].T + b_a[rows], gate_norm)
            h = sum(p[:, i] * past[i] for i in range(M)) + p[:, M] * (x[:, t] @ W_v[n])
            past = [h, *past[:-1]]
            for i in range(M if readout == "window" else 1):
                expected[:, t] += past[i][:, None] * W_o[:, i * N + n]
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["swish", "silu", "sigmoid"])
def test_convolution_and_output_gate_equal_their_formulas(activation):
    """The parts around the recurrence: causal, with a bias, SiLU; RMS norm with its epsilon, then the gate."""
    options = {"use_short_conv": True, "conv_size": 3, "conv_bias": True, "use_output_gate": True, "norm_eps": 0.3}
    layer = BDLRU(D, block_size=2, output_gate_activation=activation, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, weights = torch.randn(2, 7, D), layer.state_dict()
    v = (x @ weights["v_proj.weight"].T).transpose(1, 2)
    v = nn.functional.pad(v, (2, 0))
    v = nn.functional.conv1d(v, weights["v_conv1d.weight"].view(D, 1, 3), weights["v_conv1d.bias"], groups=D).transpose(1, 2)
    g = x @ weights["a_proj.weight"].T + weights["a_proj.bias"]
    h = naive_recurrent_bdlru(
        nn.functional.silu(v).unflatten(-1, (2, 8)).transpose(2, 3), g.unflatten(-1, (2, 3, 8)).permute(0, 1, 4, 2, 3)
    )[0]
    h = h.transpose(2, 3).flatten(2)
    h = h / (h.square().mean(-1, keepdim=True) + 0.3).sqrt() * weights["o_norm.weight"]
    gate = x @ weights["g_proj.weight"].T
    gate = gate.sigmoid() if activation == "sigmoid" else nn.functional.silu(gate)
    torch.testing.assert_close(layer(x)[0], (h * gate) @ weights["o_proj.weight"].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bdlru-start", "hlru-start"])
def test_sequences_begin_with_the_learned_state(name):
    """The op's initial state, feature order as the docstrings state it; with zeros the layer is one without it."""
    (layer, plain), x = (build(name, layer_idx=0) for _ in range(2)), torch.randn(2, 4, D)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.h0.zero_()
    empty, cache = Cache(), Cache()
    layer(x[:, :0], past_key_values=empty, use_cache=True)
    begun = empty[0]["recurrent_state"]
    M, H = layer.h0.shape
    assert begun.shape == (2, H, M)
    assert begun[1, H - 1, 0] == layer.h0[0, H - 1]
    plain(x[:, :0], past_key_values=cache, use_cache=True)
    assert not cache[0]["recurrent_state"].any()
    cache[0]["recurrent_state"] = begun
    torch.testing.assert_close(plain(x, past_key_values=cache)[0], layer(x)[0])
    assert not torch.allclose(plain(x)[0], layer(x)[0])


@each_layer
def test_every_parameter_gets_a_gradient(name):
    layer = build(name)
    layer(torch.randn(2, 6, D))[0].square().sum().backward()
    for key, p in layer.named_parameters():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key
        assert p.grad.abs().max() > 0, key


@each_layer
def test_prefill_and_decode_equal_the_whole_forward(name):
    layer, x = build(name, layer_idx=0).eval(), torch.randn(2, 9, D)
    with torch.no_grad():
        expected = layer(x)[0]
        for prefill in (1, 2, 5):
            cache, outputs = Cache(), []
            for bos, eos in itertools.pairwise([0, *range(prefill, 10)]):
                o, attentions, returned = layer(x[:, bos:eos], past_key_values=cache, use_cache=True)
                outputs.append(o)
                assert attentions is None
                assert returned is cache
            torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-5, atol=1e-5)
            assert cache.get_seq_length() == 9


@each_layer
def test_state_updates_are_functional(name):
    """A cache entry that someone kept does not change when decoding goes on."""
    layer, x = build(name, layer_idx=0).eval(), torch.randn(1, 4, D)
    cache = Cache()
    with torch.no_grad():
        layer(x[:, :2], past_key_values=cache, use_cache=True)
        kept = [s for s in (cache[0]["recurrent_state"], cache[0]["conv_state"]) if s is not None]
        copies = [s.clone() for s in kept]
        layer(x[:, 2:3], past_key_values=cache, use_cache=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies))


@each_layer
def test_a_cache_is_left_alone_without_use_cache(name):
    layer, x, cache = build(name, layer_idx=0).eval(), torch.randn(1, 4, D), Cache()
    with torch.no_grad():
        layer(x, past_key_values=cache, use_cache=True)
        before = cache[0]["recurrent_state"].clone()
        layer(x, past_key_values=cache, use_cache=False)
    assert torch.equal(cache[0]["recurrent_state"], before)
    assert cache.get_seq_length() == 4


@each_layer
def test_state_size_is_what_the_cache_holds(name):
    layer, cache = build(name, layer_idx=0).eval(), Cache()
    with torch.no_grad():
        layer(torch.randn(1, 5, D), past_key_values=cache, use_cache=True)
    held = sum(s.numel() for s in (cache[0]["recurrent_state"], cache[0]["conv_state"]) if s is not None)
    assert layer.state_size() == held
    assert layer.num_parameters() == sum(p.numel() for p in layer.parameters())
    assert layer.flops_per_token() > 2 * layer.o_proj.weight.numel()


def test_states_names_are_those_of_saved_checkpoints():
    """What a checkpoint calls its tensors, and their shapes: another name would start the tensor anew on loading."""
    options = {"use_short_conv": True, "conv_bias": True, "use_output_gate": True, "initial_state": "learned"}
    shapes = {
        "v_proj.weight": [16, 16], "o_proj.weight": [16, 16], "g_proj.weight": [16, 16], "o_norm.weight": [16],
        "v_conv1d.weight": [16, 1, 4], "v_conv1d.bias": [16],
    }  # fmt: skip
    bdlru = {**shapes, "a_proj.weight": [48, 16], "a_proj.bias": [48], "h0": [2, 8]}
    window = {"g_proj.weight": [48, 16], "o_norm.weight": [48], "o_proj.weight": [16, 48]}
    hlru = {**shapes, **window, "a_proj.weight": [64, 16], "a_proj.bias": [64], "h0": [3, 16]}
    constant = {"v_proj.weight": [16, 16], "a_proj.bias": [80], "o_proj.weight": [16, 16]}
    lstm = {f"lstm.{name}_l0": [64, 16] if "weight" in name else [64] for name in
            ("weight_ih", "weight_hh", "bias_ih", "bias_hh")} | {"o_proj.weight": [16, 16]}  # fmt: skip
    for layer, expected in (
        (BDLRU(D, block_size=2, **options), bdlru),
        (HLRU(D, order=3, **options), hlru),
        (BDLRU(D, selective=False), constant),
        (LSTM(D), lstm),
        (Bidirectional(LSTM(D), LSTM(D)), {f"{way}.{key}": shape for way in ("ahead", "back") for key, shape in lstm.items()}),
    ):
        assert {key: list(value.shape) for key, value in layer.state_dict().items()} == expected


def test_which_op_runs(monkeypatch):
    """`mode`, and one new token without gradients goes step by step in either."""
    ran, x = [], torch.randn(1, 3, D)
    for cls in (BDLRU, HLRU):
        ops = [lambda *args, op=op, **kwargs: ran.append(op) or op(*args, **kwargs) for op in cls.ops]
        chunk, step = cls.ops
        monkeypatch.setattr(cls, "ops", ops)
        for mode, whole in (("chunk", chunk), ("fused_recurrent", step)):
            layer = cls(D, mode=mode)
            layer(x), layer(x[:, :1])
            with torch.no_grad():
                layer(x), layer(x[:, :1])
            assert ran == [whole, whole, whole, step]
            ran.clear()


def test_flops_are_counted():
    layer = BDLRU(8, block_size=2, num_blocks=3)
    # v, a and o projections, six gates of two operations and six logits of three a block
    plain = 2 * (8 * 6 + 8 * 18 + 6 * 8) + (2 + 3) * 18
    assert layer.flops_per_token() == plain
    convolved = BDLRU(8, block_size=2, num_blocks=3, use_short_conv=True, conv_size=3)
    assert convolved.flops_per_token() == plain + 2 * 3 * 6
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["v_proj", "o_proj"]), layer)
    assert layer.flops_per_token() == plain + 2 * 2 * 2 * (8 + 6)


@each_layer
@pytest.mark.parametrize("batch", [1, 3])
def test_padding_is_no_step(name, batch):
    """Left, right and interior padding: outputs, gradients and the state are those of the tokens alone."""
    layer, T = build(name, layer_idx=0), 8
    tokens = torch.randn(batch, T, D)
    for kept in ([2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 2, 3, 7], [4]):
        mask = torch.zeros(batch, T, dtype=torch.long)
        mask[:, kept] = 1
        padded, alone = (tokens.clone().requires_grad_() for _ in range(2))
        padded_cache, alone_cache = Cache(), Cache()
        o = layer(padded, attention_mask=mask, past_key_values=padded_cache, use_cache=True)[0]
        expected = layer(alone[:, kept], past_key_values=alone_cache, use_cache=True)[0]
        torch.testing.assert_close(o[:, kept], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(padded_cache[0]["recurrent_state"], alone_cache[0]["recurrent_state"], rtol=1e-5, atol=1e-5)
        o[:, kept].sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(padded.grad, alone.grad, rtol=1e-4, atol=1e-4)


@each_layer
def test_left_padded_batch_decodes_like_single_sequences(name):
    layer = build(name, layer_idx=0).eval()
    lengths, T, steps = [6, 3, 1], 6, 3
    sequences = [torch.randn(1, n + steps, D) for n in lengths]
    padded = torch.stack([torch.cat([torch.randn(T - n, D), s[0, :n]]) for n, s in zip(lengths, sequences)])
    mask = torch.stack([torch.arange(T) >= T - n for n in lengths]).long()
    with torch.no_grad():
        cache = Cache()
        outputs = [layer(padded, attention_mask=mask, past_key_values=cache, use_cache=True)[0][:, -1:]]
        for step in range(steps):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
            x = torch.cat([s[:, n + step : n + step + 1] for n, s in zip(lengths, sequences)])
            outputs.append(layer(x, attention_mask=mask, past_key_values=cache, use_cache=True)[0])
        outputs = torch.cat(outputs, 1)
        for i, (n, s) in enumerate(zip(lengths, sequences)):
            torch.testing.assert_close(outputs[i : i + 1], layer(s)[0][:, n - 1 :], rtol=1e-5, atol=1e-5)


@each_layer
def test_rows_without_padding_are_not_packed(name, monkeypatch):
    """Packed, the new tokens of a batch would be decoded one after the other."""
    layer, x, cache, packed = build(name, layer_idx=0).eval(), torch.randn(3, 5, D), Cache(), []
    mix, ones, some = layer.mix, torch.ones(3, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    monkeypatch.setattr(layer, "mix", lambda *args: packed.append(args[3] is not None) or mix(*args))
    with torch.no_grad():
        outputs = [layer(x[:, :4], ones[:, :4], cache, use_cache=True)[0], layer(x[:, 4:], ones, cache, use_cache=True)[0]]
        torch.testing.assert_close(torch.cat(outputs, 1), layer(x)[0], rtol=1e-5, atol=1e-5)
        layer(x, some)
    assert packed == [False, False, False, True]


@each_layer
def test_packed_equals_documents(name):
    """cu_seqlens reaches the convolution, the recurrence and the readout: outputs and every gradient."""
    layer, bounds = build(name), [0, 1, 1, 5, 12, 14]
    x = torch.randn(1, 14, D)
    packed, alone = (x.clone().requires_grad_() for _ in range(2))
    o = layer(packed, cu_seqlens=torch.tensor(bounds))[0]
    o.square().sum().backward()
    grads = {key: p.grad.clone() for key, p in layer.named_parameters()}
    layer.zero_grad()
    docs = [layer(alone[:, bos:eos])[0] for bos, eos in itertools.pairwise(bounds) if eos > bos]
    torch.testing.assert_close(o, torch.cat(docs, 1), rtol=1e-5, atol=1e-5)
    torch.cat(docs, 1).square().sum().backward()
    torch.testing.assert_close(packed.grad, alone.grad, rtol=1e-4, atol=1e-4)
    for key, p in layer.named_parameters():
        torch.testing.assert_close(grads[key], p.grad, rtol=1e-4, atol=1e-4, msg=key)


@each_layer
def test_packed_documents_decode_side_by_side(name):
    """The cache has a state for each document; that of one without tokens is the one it had."""
    layer, docs = build(name, layer_idx=0).eval(), [torch.randn(1, n, D) for n in (4, 6, 5)]
    cache, parts = Cache(), ([2, 4, 0], [1, 0, 4], [1, 2, 1])  # 4, 6 and 5 tokens
    begun, outputs = [0, 0, 0], [[] for _ in docs]
    with torch.no_grad():
        for lengths in parts:
            x = torch.cat([doc[:, bos : bos + n] for doc, bos, n in zip(docs, begun, lengths)], 1)
            cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
            o = layer(x, past_key_values=cache, use_cache=True, cu_seqlens=cu_seqlens)[0]
            assert len(cache[0]["recurrent_state"]) == 3
            for found, piece in zip(outputs, o.split(lengths, 1)):
                found.append(piece)
            begun = [bos + n for bos, n in zip(begun, lengths)]
        for doc, found in zip(docs, outputs):
            torch.testing.assert_close(torch.cat(found, 1), layer(doc)[0], rtol=1e-5, atol=1e-5)


@each_layer
def test_explicit_cu_seqlens_win_over_the_mask(name):
    layer, x = build(name), torch.randn(1, 6, D)
    cu_seqlens, mask = torch.tensor([0, 2, 6]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    assert torch.equal(layer(x, attention_mask=mask, cu_seqlens=cu_seqlens)[0], layer(x, cu_seqlens=cu_seqlens)[0])


@each_layer
def test_autocast_and_bfloat16(name):
    layer, x = build(name), torch.randn(2, 6, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = layer(x)[0]
    o.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    torch.testing.assert_close(o.float(), layer(x)[0], rtol=0.1, atol=0.3)
    assert layer.bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bdlru-start", "bdlru-constant", "hlru", "hlru-state"])
def test_compile_fullgraph_equals_eager(name):
    layer, x = build(name), torch.randn(2, 6, D)
    expected = layer(x)[0]
    expected.square().sum().backward()
    grads = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    o = torch.compile(layer, fullgraph=True)(x)[0]
    torch.testing.assert_close(o, expected, rtol=1e-5, atol=1e-5)
    o.square().sum().backward()
    for p, g in zip(layer.parameters(), grads):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate_norm", GATE_NORMS)
@pytest.mark.parametrize("M", [1, 2, 4, 8])
def test_memory_bias_has_the_time_constants_it_names(M, gate_norm):
    """The leading eigenvalue of every block's transition is exp(-1/tau), tau log-uniform over the range."""
    tau = time_constants(6, (2.0, 2.0**20))
    torch.testing.assert_close(tau.log2(), torch.linspace(1, 20, 6, dtype=torch.float64))
    tolerance = 1e-9
    gates = normalize_gates(gate_logits(memory_gates_bdlru(M, tau), gate_norm), gate_norm, dim=-2)
    blocks = gates[:, :M].permute(2, 0, 1)
    leading = torch.linalg.eigvals(blocks).abs().amax(-1)
    torch.testing.assert_close(leading, torch.exp(-1 / tau), rtol=tolerance, atol=tolerance)
    assert (blocks.diagonal(dim1=-2, dim2=-1) > 0.4).all()

    gates = normalize_gates(gate_logits(memory_gates_hlru(M, tau), gate_norm), gate_norm, dim=-2)
    companion = torch.zeros(6, M, M, dtype=torch.float64)
    companion[:, 0], companion[:, 1:, :-1] = gates[:M].T, torch.eye(M - 1, dtype=torch.float64)
    leading = torch.linalg.eigvals(companion).abs().amax(-1)
    torch.testing.assert_close(leading, torch.exp(-1 / tau), rtol=10 * tolerance, atol=10 * tolerance)


def test_memory_gates_of_a_block_and_a_channel():
    """A decay of one half: half of what is not kept goes to the other channels, half of that to each of two."""
    tau = torch.tensor([1 / math.log(2)], dtype=torch.float64)
    row = [0.25, 0.125, 0.125, 0.5]
    expected = torch.tensor([row, [row[1], row[0], row[2], row[3]], [row[1], row[2], row[0], row[3]]], dtype=torch.float64)
    torch.testing.assert_close(memory_gates_bdlru(3, tau)[..., 0], expected)
    # lags weigh less the further back they are, and the input has what is left
    expected = torch.tensor([0.25, 0.0625, 0.03125, 0.65625], dtype=torch.float64)
    torch.testing.assert_close(memory_gates_hlru(3, tau)[:, 0], expected)


@pytest.mark.parametrize("cls", [BDLRU, HLRU])
def test_what_is_drawn_anew(cls):
    """Constant gates differ, or nothing would tell rows apart; a learned start is of the size of what a first token leaves."""
    bias = cls(64, selective=False).a_proj.bias
    assert 0.8 < bias.std() < 1.2
    layer = cls(256, initial_state="learned", layer_idx=0)
    assert 0.08 < layer.h0.std() < 0.12
    assert layer.h0.mean().abs() < 0.02
    cache = Cache()
    cls(256, layer_idx=0)(torch.randn(8, 1, 256), past_key_values=cache, use_cache=True)
    first = cache[0]["recurrent_state"]
    assert 1 / 3 < first[first != 0].std() / layer.h0.std() < 3


@pytest.mark.parametrize("cls", [BDLRU, HLRU])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_memory_bias_without_a_norm_is_rounded_down(cls, dtype):
    """Rounded up, rows of the transition would sum to more than 1, and states grow."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        layer = cls(D, gate_bias="memory", gate_norm="none", memory_range=(2.0, 1e5))
    finally:
        torch.set_default_dtype(before)
    later = cls(D, gate_bias="memory", gate_norm="none", memory_range=(2.0, 1e5)).to(dtype)
    later.reset_parameters()
    for each in (layer, later):
        gates = each.a_proj.bias.detach().double().view(each.gate_shape)
        assert each.a_proj.bias.dtype == dtype
        assert (gates[..., :-1, :].sum(-2) < 1).all()
        assert (gates <= each.initial_gates()).all()


@pytest.mark.parametrize("cls", [BDLRU, HLRU])
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_memory_bias_is_computed_on_the_cpu(cls, gate_norm):
    """A Mac's GPU has no float64: the default device makes none of its tensors."""
    layer = cls(D, gate_bias="memory", gate_norm=gate_norm)
    expected = layer.a_proj.bias.detach().clone()
    torch.nn.init.zeros_(layer.a_proj.bias)
    with torch.device("meta"):
        layer.reset_parameters()
    assert torch.equal(layer.a_proj.bias, expected)


@pytest.mark.parametrize("cls", [BDLRU, HLRU])
def test_memory_bias_reaches_the_layer(cls):
    layer = cls(D, gate_bias="memory", memory_range=(64.0, 256.0))
    shape = layer.gate_shape
    gates = normalize_gates(layer.a_proj.bias.double().view(shape), dim=-2)
    torch.testing.assert_close(gates, layer.initial_gates(), rtol=1e-5, atol=1e-5)
    assert cls(D).a_proj.bias.abs().max() == 0
    # a signal put in at the first step outlasts the default's decay
    x = torch.zeros(1, 200, D)
    x[0, 0] = 1

    def remembered(layer):
        with torch.no_grad():
            layer.a_proj.weight.zero_()
            o = layer(x)[0].norm(dim=-1)[0]
        return (o[-1] / o[0]).item()

    assert remembered(layer) > 1e-2 > 1e-6 > remembered(cls(D))


@pytest.mark.parametrize("options", [{}, {"selective": False}, {"gate_bias": "memory"}, {"initial_state": "learned"}], ids=str)
def test_what_is_loaded_is_not_drawn_again(options):
    """transformers marks a parameter that it has loaded, and has every module initialised after that."""
    layer = BDLRU(D, **options)
    name, owner = ("h0", layer) if "initial_state" in options else ("bias", layer.a_proj)
    setattr(owner, name, nn.Parameter(torch.full_like(getattr(owner, name), 3.0)))
    loaded = getattr(owner, name)
    loaded._is_hf_initialized = True
    layer.reset_parameters()
    assert (loaded == 3).all()
    del loaded._is_hf_initialized
    layer.reset_parameters()
    assert (loaded != 3).any()


ERRORS = [
    (lambda: BDLRU(D, block_size=0), "block_size must be positive; got 0"),
    (lambda: BDLRU(D, block_size=3), "expand=1.0 times hidden_size=16 gives 16 values, which must be .* multiple of 3"),
    (lambda: BDLRU(D, block_size=5), "block_size=5 does not divide the state: expand=1.0 times hidden_size"),
    (lambda: BDLRU(D, expand=0.3), "multiple of 4; change expand or hidden_size, or set num_blocks"),
    (lambda: BDLRU(D, num_blocks=-1), "num_blocks must be positive; got -1"),
    (lambda: BDLRU(D, gate_norm="l1"), "gate_norm='l1' is not known; expected one of 'softmax'"),
    (lambda: BDLRU(D, gate_bias="ones"), "gate_bias='ones' is not known; expected one of 'uniform', 'memory'"),
    (lambda: BDLRU(D, initial_state="bos"), "initial_state='bos' is not known; expected one of 'zero', 'learned'"),
    (lambda: HLRU(D, recompute_gates="auto"), "recompute_gates must be True or False; got 'auto'"),
    (lambda: BDLRU(D, mode="parallel"), "mode='parallel' is not known; expected one of 'chunk', 'fused_recurrent'"),
    (lambda: BDLRU(D, gate_bias="memory", memory_range=(8, 2)), "memory_range must be two time constants"),
    (lambda: HLRU(D, memory_range=(0.5, 2)), "memory_range must be two time constants in steps, 1 <= low <= high; got"),
    (lambda: BDLRU(D, use_output_gate=True, output_gate_activation="gelu"), "output_gate_activation='gelu' is not known"),
    (lambda: HLRU(D, order=0), "order must be positive; got 0"),
    (lambda: HLRU(D, readout="last"), "readout='last' is not known; expected one of 'window', 'state'"),
    (lambda: HLRU(D, expand=0.01), "expand=0.01 times hidden_size=16 .* or set num_channels"),
    (
        lambda: BDLRU(D)(torch.zeros(1, 3, D), attention_mask=torch.ones(1, 3, 3)),
        r"attention_mask must have .* got \[1, 3, 3\]",
    ),
    (
        lambda: LSTM(D)(torch.zeros(1, 3, D), attention_mask=torch.ones(1, 3, 3)),
        r"attention_mask must have .* got \[1, 3, 3\]",
    ),
    (lambda: LSTM(D)(torch.zeros(1, 3, D), cp_context=object()), "LSTM cannot be split along time"),
    (lambda: BDLRU(D)(torch.zeros(1, 3, D), past_key_values=Cache()), "BDLRU requires `layer_idx`"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[m[:40] for _, m in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


BAD_CALLS = {
    r"hidden_states must have shape \[B, T, 16\]; got \[7, 16\]": lambda x: ((x[0],), {}),
    r"hidden_states must have shape \[B, T, 16\]; got \[1, 2, 7, 16\]": lambda x: ((x[None],), {}),
    r"hidden_states must have shape \[B, T, 16\]; got \[2, 7, 15\]": lambda x: ((x[..., 1:],), {}),
    r"hidden_states must be of a floating-point dtype \(.*\); got torch.int64": lambda x: ((x.long(),), {}),
    "cu_seq_lens is not an argument of .*; did you mean 'cu_seqlens'": lambda x: ((x,), {"cu_seq_lens": torch.tensor([0, 7])}),
    "cu_seqlen is not an argument of .*; did you mean 'cu_seqlens'": lambda x: ((x,), {"cu_seqlen": torch.tensor([0, 7])}),
    r"attention_mask must have shape \[2, S\] with S >= 7, .* got \[2, 5\]": lambda x: ((x, torch.ones(2, 5)), {}),
    r"attention_mask must have shape \[2, S\] with S >= 7, .* got \[1, 7\]": lambda x: ((x, torch.ones(1, 7)), {}),
    r"attention_mask must have shape \[2, S\] with S >= 7, .* got \[3, 7\]": lambda x: ((x, torch.ones(3, 7)), {}),
    "attention_mask must hold 1 .* got -1000000000.0": lambda x: ((x, torch.tensor([[-1e9] + [0.0] * 6] * 2)), {}),
    "attention_mask must be a tensor; got 'causal'": lambda x: ((x, "causal"), {}),
    "hidden_states must be a dense tensor, .*; got torch.jagged": lambda x: (
        (torch.nested.nested_tensor([*x], layout=torch.jagged),), {}),
    "attention_mask must be a dense tensor, .*; got torch.sparse_coo": lambda x: ((x, torch.ones(2, 7).to_sparse()), {}),
    "cu_seqlens needs a batch of 1 .* got B=2": lambda x: ((x,), {"cu_seqlens": torch.tensor([0, 7])}),
    r"cu_seqlens must rise from 0 to T=7; got \[2, 9\]": lambda x: ((x[:1],), {"cu_seqlens": torch.tensor([2, 9])}),
    r"cu_seqlens must rise from 0 to T=7; got \[0, 3\]": lambda x: ((x[:1],), {"cu_seqlens": torch.tensor([0, 3])}),
    r"cu_seqlens must be a tensor; got \[0, 7\]": lambda x: ((x[:1],), {"cu_seqlens": [0, 7]}),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bdlru", "hlru-conv-gate", "lstm"])
@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls(name, message):
    args, kwargs = BAD_CALLS[message](torch.randn(2, 7, D))
    with pytest.raises(ValueError, match=message):
        build(name)(*args, **kwargs)


@pytest.mark.parametrize("name", ["bdlru", "hlru-conv-gate", "lstm"])
def test_of_a_longer_mask_the_end_is_read(name):
    """What stands before is another call's; what it holds does not matter."""
    layer, x, mask = build(name), torch.randn(2, 5, D), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]])
    longer = torch.cat([torch.tensor([[1, 7, -1]] * 2), mask], 1)
    torch.testing.assert_close(layer(x, longer)[0], layer(x, mask)[0])


def test_an_unknown_argument_is_named_with_those_that_are_known():
    with pytest.raises(TypeError, match=r"HLRU: .* 'block_size'; it takes hidden_size, order, num_channels, .*initial_state"):
        HLRU(D, block_size=4)
    with pytest.raises(TypeError, match=r"BDLRU: .* 'hidden_size'; it takes hidden_size, block_size"):
        BDLRU(d_model=D)


@pytest.mark.parametrize("cls", [BDLRU, HLRU, LSTM])
@pytest.mark.parametrize("hidden_size", [32.0, "32", None, 0])
def test_hidden_size_is_checked(cls, hidden_size):
    with pytest.raises(ValueError, match=r"hidden_size must be (an integer|positive); got"):
        cls(hidden_size)


@each_layer
@pytest.mark.parametrize("batch", [1, 2])
def test_no_tokens(name, batch):
    """An empty input gives an empty output and leaves the state."""
    layer, x, cache = build(name, layer_idx=0).eval(), torch.randn(batch, 3, D), Cache()
    with torch.no_grad():
        assert layer(x[:, :0])[0].shape == (batch, 0, D)
        layer(x, past_key_values=cache, use_cache=True)
        before = dict(cache[0])
        assert layer(x[:, :0], past_key_values=cache, use_cache=True)[0].shape == (batch, 0, D)
    for key in ("recurrent_state", "conv_state"):
        assert before[key] is cache[0][key] is None or torch.equal(cache[0][key], before[key])
    x.requires_grad_()
    layer.train()(x[:, :0])[0].sum().backward()  # without a token gradients are zeros, as DDP needs them
    for key, p in {"x": x, **dict(layer.named_parameters())}.items():
        assert torch.equal(p.grad, torch.zeros_like(p)), key


SHARED = [
    "gate_norm", "selective", "gate_bias", "memory_range", "use_short_conv", "conv_size", "conv_bias", "use_output_gate",
    "output_gate_activation", "norm_eps", "mode", "layer_idx", "recompute_gates",
    "initial_state",
]  # fmt: skip


@pytest.mark.parametrize(
    "cls, own", [(BDLRU, ["block_size", "num_blocks"]), (HLRU, ["order", "num_channels"])], ids=["bdlru", "hlru"]
)
def test_public_signature(cls, own):
    """Options that are written once stand in each signature, in this order, and are taken by position too."""
    readout = ["readout"] if cls is HLRU else []
    signature = inspect.signature(cls)
    assert list(signature.parameters) == ["hidden_size", *own, "expand", *readout, *SHARED]
    defaults = [parameter.default for parameter in signature.parameters.values()][1:]
    by_position = cls(D, *defaults[: len(own) + 1 + len(readout)], "tanh", *defaults[len(own) + 2 + len(readout) :])
    assert (by_position.gate_norm, by_position.selective, by_position.mode) == ("tanh", True, "chunk")
    with pytest.raises(TypeError, match="'blocks'"):
        cls(D, blocks=4)


@pytest.mark.parametrize("cls", [BDLRU, HLRU, LSTM])
def test_defaults_are_those_that_the_docstrings_state(cls):
    """HLRU leaves what it shares to BDLRU's."""
    parameters = inspect.signature(cls).parameters
    stated = {}
    for documented in (cls, BDLRU) if cls is HLRU else (cls,):
        entries = r"(?m)^ {4}(\w+) \(.*, Optional\):\n((?: {8}.*\n)+)"
        for name, body in re.findall(entries, inspect.cleandoc(documented.__doc__)):
            stated.setdefault(name, re.search(r"Default: (.*)\.$", " ".join(body.split()))[1].strip("`"))
    for name, p in parameters.items():
        if p.default is not p.empty and not stated[name].startswith("expand * hidden_size"):
            assert ast.literal_eval(stated[name]) == p.default, name


def test_time_constants_spread():
    assert time_constants(1, (2.0, 8.0)).tolist() == pytest.approx([2.0])
    assert math.isclose(time_constants(3, (2.0, 8.0))[1].item(), 4.0)


def test_a_fraction_that_is_rounded_is_no_other_width():
    assert HLRU(432, expand=7 / 6).num_channels == 504
    assert BDLRU(30, expand=0.1 * 4, block_size=3).num_blocks == 4
    with pytest.raises(ValueError, match=r"gives 31\.8 values"):
        HLRU(30, expand=1.06)


@each_layer
def test_a_mask_that_is_written_to_in_place(name):
    """FLA keeps what it found in a mask, by the object."""
    layer, x = build(name).eval(), torch.randn(2, 6, D)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            mask = torch.ones(2, 6, dtype=torch.long)
            layer(x, attention_mask=mask)
            mask[0, :3] = 0
            o = layer(x, attention_mask=mask)[0]
            torch.testing.assert_close(o[0, 3:], layer(x[:1, 3:])[0][0])


@each_layer
def test_a_mask_whose_buffer_is_written_to(name):
    """By what torch does not count: NumPy, collectives."""
    layer, x, buffer = build(name).eval(), torch.randn(2, 6, D), np.ones((2, 6), np.int64)
    mask, model = torch.from_numpy(buffer), BDLRUForCausalLM(BDLRUConfig(hidden_size=16, num_hidden_layers=2, vocab_size=30))
    ids, model = torch.randint(3, 30, (2, 6)), model.eval()
    for start in (2, 3):
        buffer[:] = 1
        buffer[0, :start] = 0
        assert mask._version == 0
        torch.testing.assert_close(layer(x, mask)[0][0, start:], layer(x[:1, start:])[0][0])
        whole = model(ids, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(whole[0, start:], model(ids[:1, start:], use_cache=False).logits[0])


def test_a_models_layers_share_what_is_found_in_a_mask(monkeypatch):
    """One search a call, not one a layer."""
    model = BDLRUForCausalLM(BDLRUConfig(hidden_size=16, num_hidden_layers=3, vocab_size=30)).eval()
    ids, mask, found, nonzero = torch.randint(3, 30, (2, 6)), torch.ones(2, 6, dtype=torch.long), [], torch.nonzero
    mask[0, :2] = 0
    monkeypatch.setattr(torch, "nonzero", lambda *args, **kwargs: (found.append(1), nonzero(*args, **kwargs))[1])
    for _ in range(2):
        model(ids, attention_mask=mask, use_cache=False)
    assert len(found) == 2


@each_layer
def test_a_mask_seen_in_inference_mode_is_of_use_in_training(name):
    layer, x, mask = build(name), torch.randn(2, 6, D), torch.ones(2, 6, dtype=torch.long)
    mask[0, :3] = 0
    with torch.inference_mode():
        layer(x, attention_mask=mask)
    layer(x, attention_mask=mask)[0].sum().backward()
    assert layer.o_proj.weight.grad.abs().sum() > 0
