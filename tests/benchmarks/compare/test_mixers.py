"""Mixers written here from their papers, and transformers' mLSTM: their equations, token by token, on dense matrices."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.xlstm import modeling_xlstm

from benchmarks.compare.mixers import MLSTM, PDSSM, SLiCE, column_one_hot
from benchmarks.compare.models import build_layer, build_model, get_variant, layer_flops, match_variant
from benchmarks.records.store import read_folder
from benchmarks.report.documents import RESULTS
from benchmarks.tasks import get_task
from fla_bdlru.layers.measure import _ElementwiseCounter, linear_flops_per_token

T, WIDTH = 7, 16


def inputs():
    torch.manual_seed(0)
    return torch.randn(2, T, WIDTH)


def mlp(layers, u):
    # sigmoid(W2 gelu(W1 u + b1) + b2)
    first, _, second, _ = layers
    return torch.sigmoid(second.weight @ F.gelu(first.weight @ u + first.bias) + second.bias)


def test_pd_ssm_follows_its_equations():
    x = inputs()
    layer = PDSSM(WIDTH, d_state=5, dictionary=3)
    o = layer(x)[0]
    seen = set()
    for sequence, got in zip(x, o):
        state = torch.zeros(5, dtype=torch.cfloat)
        state[0] = 1
        for u, y in zip(sequence, got):
            weights = (layer.selector.weight @ u).softmax(0)
            M = sum(w * A for w, A in zip(weights, layer.matrices))
            P = torch.zeros(5, 5)
            for j in range(5):
                P[M[:, j].argmax(), j] = 1
            D = mlp(layer.magnitude, u) * torch.exp(2j * math.pi * mlp(layer.phase, u))
            B = torch.complex(layer.b_proj.weight[0::2], layer.b_proj.weight[1::2])
            state = (P.cfloat() @ torch.diag(D)) @ state + B @ u.cfloat()
            parts = torch.view_as_real(state).flatten()
            torch.testing.assert_close(y, layer.o_proj.weight @ parts + layer.o_proj.bias + layer.skip * u)
            seen.add(tuple(P.flatten().tolist()))
    assert len(seen) > 1  # tokens choose


def test_one_hot_columns_are_exact_and_have_the_softmax_gradient():
    logits = torch.randn(3, 6, 6, requires_grad=True)
    P = column_one_hot(logits)
    assert P.unique().tolist() == [0, 1]
    assert torch.equal(P.sum(-2), torch.ones(3, 6))
    weight = torch.randn(3, 6, 6)
    (grad,) = torch.autograd.grad((P * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-2) * weight).sum(), logits)
    torch.testing.assert_close(grad, expected)


def test_pd_ssm_stays_bounded():
    layer = PDSSM(WIDTH, d_state=5)
    _, D = layer.transitions(inputs())
    assert D.abs().max() < 1


@pytest.mark.parametrize("m", [1, 3])
def test_slice_follows_its_equations(m):
    x = inputs()
    layer = SLiCE(WIDTH, block_size=m, num_blocks=4)
    torch.nn.init.normal_(layer.b_proj.bias)
    o = layer(x)[0]
    # channel (i, k), i within block k, is feature i * 4 + k; A's entry (i, j) of block k is feature (i * m + j) * 4 + k
    A = torch.cat([layer.a_proj.bias[:, None], layer.a_proj.weight], 1)
    B = torch.cat([layer.b_proj.bias[:, None], layer.b_proj.weight], 1)
    for sequence, got in zip(x, o):
        h = B @ torch.cat([torch.ones(1), sequence[0]])
        torch.testing.assert_close(got[0], layer.o_proj.weight @ h, rtol=1e-4, atol=1e-5)
        for u, y in zip(sequence[1:], got[1:]):
            w = torch.cat([torch.ones(1), u]) / 40
            dense = torch.zeros(m * 4, m * 4)
            for k in range(4):
                for i in range(m):
                    for j in range(m):
                        dense[i * 4 + k, j * 4 + k] = sum(w_c * a for w_c, a in zip(w, A[(i * m + j) * 4 + k]))
            h = h + dense @ h
            torch.testing.assert_close(y, layer.o_proj.weight @ h, rtol=1e-4, atol=1e-5)


def test_slice_stays_finite():
    layer = SLiCE(WIDTH, block_size=2)
    torch.nn.init.constant_(layer.a_proj.weight, 1e4)
    o = layer(torch.ones(1, 300, WIDTH))[0]
    o.square().mean().backward()
    assert o.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def mlstm(eps=0.0, **args):
    """In float64, with gates that say something, and nothing added to the divisor."""
    mixer = MLSTM(WIDTH, num_heads=2, **args).double()
    layer = mixer.layer
    layer.mlstm_backend.eps, layer.multihead_norm.force_float32_reductions = eps, False
    with torch.no_grad():
        for gate, bias in ((layer.igate_preact, 1.0), (layer.fgate_preact, 2.0), (layer.ogate_preact, None)):
            gate.weight.normal_()
            if bias is not None:
                gate.bias.normal_(bias, 4)
        layer.multihead_norm.weight.normal_()
    return mixer


def mlstm_by_equations(layer, sequence):
    # those of arXiv 2405.04517, without a stabiliser; the cap, the norm and what has no bias are of 2503.13427
    H, K, V = 2, layer.q.out_features // 2, layer.v.out_features // 2
    C, n, o, divisors = [torch.zeros(V, K).double()] * H, [torch.zeros(K).double()] * H, [], []
    for x in sequence:
        a_i, a_f = (15 * torch.tanh((g.weight @ x + g.bias) / 15) for g in (layer.igate_preact, layer.fgate_preact))
        heads = []
        for head in range(H):
            q, k = ((w.weight @ x)[K * head : K * (head + 1)] for w in (layer.q, layer.k))
            v, k = (layer.v.weight @ x)[V * head : V * (head + 1)], k / math.sqrt(K)
            i, f = torch.exp(a_i[head]), torch.sigmoid(a_f[head])
            C[head] = f * C[head] + i * torch.outer(v, k)
            n[head] = f * n[head] + i * k
            divisors.append((n[head] @ q).abs())
            h = C[head] @ q / divisors[-1].clamp(min=1)
            heads.append((h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-6))
        h = torch.cat(heads) * layer.multihead_norm.weight
        o.append(layer.out_proj.weight @ (torch.sigmoid(layer.ogate_preact.weight @ x) * h))
    return torch.stack(o), torch.stack(divisors)


def test_mlstm_follows_its_equations():
    layer, x = mlstm(chunk_size=4), torch.randn(3, 11, WIDTH).double()
    o, found = layer(x)[0], [mlstm_by_equations(layer.layer, sequence) for sequence in x]
    expected, divisors = (torch.stack(parts) for parts in zip(*found))
    torch.testing.assert_close(o, expected, rtol=1e-9, atol=1e-9)
    assert 0.1 < (divisors > 1).double().mean() < 0.9  # both of its maximum's arguments
    weight = torch.randn_like(o)
    for got, want in zip(*(torch.autograd.grad((y * weight).sum(), layer.parameters()) for y in (o, expected))):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def test_mlstm_in_float32_with_what_transformers_adds_to_the_divisor():
    layer, x = mlstm(), torch.randn(1, 150, WIDTH).double()
    expected, _ = mlstm_by_equations(layer.layer, x[0])
    layer.layer.mlstm_backend.eps = 1e-6
    torch.testing.assert_close(layer(x)[0][0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.float()(x.float())[0][0], expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7, 12, 13, 65])
def test_chunks_of_mlstm_change_nothing_and_are_causal(length):
    whole, x = mlstm(eps=1e-6, chunk_size=100), torch.randn(2, length, WIDTH).double()
    o = whole(x)[0]
    for size in (1, 2, 3, 5, 12, 64):
        layer = mlstm(eps=1e-6, chunk_size=size)
        layer.load_state_dict(whole.state_dict())
        torch.testing.assert_close(layer(x)[0], o, rtol=1e-9, atol=1e-9)
        for known in {0, length // 2, length - 1}:
            changed = torch.cat([x[:, :known], torch.randn_like(x[:, known:])], 1)
            torch.testing.assert_close(layer(changed)[0][:, :known], o[:, :known], rtol=1e-9, atol=1e-9)


def test_mlstm_stays_finite_at_its_gates_ends():
    layer = MLSTM(WIDTH)
    for gate, end in ((layer.layer.igate_preact, 1e3), (layer.layer.fgate_preact, -1e3)):
        for sign in (1, -1):
            torch.nn.init.constant_(gate.bias, sign * end)
            o = layer(torch.randn(1, 300, WIDTH))[0]
            o.square().mean().backward()
            assert o.isfinite().all()
            assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_mlstm_starts_its_gates_as_transformers_does():
    model = build_model("mlstm", {"num_heads": 4}, 6, 32, 1, 64, initializer_range=0.05)
    ours = model.model.layers[0].attn.layer
    config = transformers.xLSTMConfig(vocab_size=6, hidden_size=32, num_heads=4, num_hidden_layers=1)
    theirs = transformers.xLSTMModel(config).blocks[0].mlstm_layer
    gates = [name for name, _ in ours.named_parameters() if "gate" in name]
    assert len(gates) == 5
    for name in (*gates, "multihead_norm.weight"):
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name)), name
    for name in ("q", "k", "v", "out_proj"):
        assert ours.get_parameter(f"{name}.weight").std().item() == pytest.approx(0.05, rel=0.15)


def test_mlstm_is_sized_and_counted_as_a_step_of_transformers():
    layer = MLSTM(64, num_heads=2, expand_k=0.25, expand_v=0.75)
    H, K, V = 2, 8, 24
    step = modeling_xlstm.xLSTMLayer(layer.layer.config)
    state = torch.zeros(1, H, K, V), torch.zeros(1, H, K), torch.zeros(1, H, 1)
    products, others = FlopCounterMode(display=False), _ElementwiseCounter()
    with torch.no_grad(), products, others:
        _, kept = step(torch.randn(1, 1, 64), state)
    assert layer.state_size() == sum(x.numel() for x in kept) == H * (K * V + K + 1)
    # its v k^T is a matrix product, of a multiply-add an entry, and the input gate comes after; one log is not seen by the
    # counter, and one sum made twice
    assert layer.flops_per_token() == products.get_total_flops() + others.flops - 2 * H * K * V
    assert linear_flops_per_token(layer) == 2 * 64 * (2 * H * K + 3 * H * V + 2 * H)


@pytest.mark.parametrize("match, args", [("params", (4, 14, 28)), ("state", (1, 8, 7))])
def test_mlstm_is_matched(match, args):
    layer = build_layer("mlstm", 64, match_variant("mlstm", match, 64).args)
    assert (layer.num_heads, layer.key_dim, layer.value_dim) == args


def test_mlstm_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expand_v=0\.5 makes 8 channels; expected a multiple of num_heads=3"):
        MLSTM(WIDTH, num_heads=3, expand_k=0.375, expand_v=0.5)
    with pytest.raises(ValueError, match=r"expand_k=0\.01 makes 0 channels"):
        MLSTM(WIDTH, expand_k=0.01)


def test_mlstm_without_transformers_classes_is_refused_by_version(monkeypatch):
    message = rf"mlstm needs xLSTMLayer of transformers, which {transformers.__version__} has not here.*no package xlstm"
    with monkeypatch.context() as patch:
        patch.delattr(modeling_xlstm, "xLSTMLayer")  # as where the package xlstm is installed
        with pytest.raises(ValueError, match=message):
            match_variant("mlstm", "params", 64)
    monkeypatch.setitem(sys.modules, "transformers.models.xlstm.modeling_xlstm", None)
    with pytest.raises(ValueError, match=message):
        MLSTM(WIDTH)


@pytest.mark.parametrize("name", ["pd_ssm", "slice-m3", "mlstm", "rwkv7"])
def test_they_train_in_the_host_model_and_keep_their_initial_weights(name):
    variant = get_variant(name)
    args = {**variant.args, **(variant.sizes[0](32, 6) if variant.sizes else {})}
    model = build_model(variant.mixer, args, 6, 32, 2, 64)
    tokens = torch.randint(6, (2, 9))
    logits = model(input_ids=tokens).logits
    logits[:, :6].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        changed = torch.cat([tokens[:, :6], (tokens[:, 6:] + 1) % 6], 1)
        torch.testing.assert_close(model(input_ids=changed).logits[:, :6], logits[:, :6])
    layer = model.model.layers[0].attn
    weight, std = {
        "pd_ssm": (lambda: layer.selector.weight, 1 / 96**0.5),
        "slice-m3": (lambda: layer.a_proj.weight, 1 / 3**0.5),
        "mlstm": (lambda: layer.layer.v.weight, 0.02),
        "rwkv7": (lambda: layer.v_proj.weight, 1 / 32**0.5),
    }[name]
    assert weight().std().item() == pytest.approx(std, rel=0.15)
    total, recurrent = layer_flops(variant.mixer, 32, args, context=4)
    assert 0 < recurrent < total
    if name == "rwkv7":
        return
    whole = {"use_cache": True, "attention_mask": torch.ones(1, 3), "cu_seqlens": torch.tensor([0, 3]), "past_key_values": ()}
    for option in ({name: value} for name, value in whole.items()):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is set; .*whole sequences only"):
            layer(torch.zeros(1, 3, 32), **option)


def test_sizes_defaults_and_starts():
    pd_ssm, blocks = PDSSM(WIDTH, d_state=4, dictionary=3), SLiCE(WIDTH, block_size=2)
    assert (pd_ssm.state_size(), blocks.state_size()) == (8, 16)
    # the mixture of 4 x 4 matrices and its maxima; D x, P x and the inputs; 12 GELUs and sigmoids, polar form, skip
    counted = (2 * 3 + 1) * 16 + (6 + 2 + 2) * 4 + 6 * 4 + 4 * 4 + 2 * WIDTH
    assert pd_ssm.flops_per_token() - linear_flops_per_token(pd_ssm) == counted
    assert blocks.flops_per_token() - linear_flops_per_token(blocks) == 3 * 2 * 16 + 4 * 16
    assert linear_flops_per_token(blocks) == 2 * WIDTH * (2 * 16 + 16)  # A and W; B is of the first token alone
    pd_ssm, blocks = PDSSM(256), SLiCE(256)
    assert (pd_ssm.d_state, pd_ssm.dictionary, blocks.block_size, blocks.num_blocks) == (128, 8, 4, 64)
    for parameter, std in ((pd_ssm.matrices, 128**-0.5), (pd_ssm.b_proj.weight, 1 / 16), (pd_ssm.skip, 1 / 16)):
        assert parameter.std().item() == pytest.approx(std, rel=0.2)
    assert blocks.a_proj.bias.std().item() == pytest.approx(1 / 2, rel=0.1)
    assert blocks.b_proj.bias.std().item() == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("name", ["tracking", "tracking-louder", "tracking-state"])
def test_stored_rows_of_slice_have_its_flops(name):
    rows = [row for row in read_folder(RESULTS / name).values() if row["mixer"] == "slice"]
    assert rows
    for row in rows:
        counted = layer_flops("slice", row["width"], row["mixer_args"], max(row["lengths"]))
        assert (row["mixer_flops"], row["recurrent_flops"]) == tuple(row["layers"] * n for n in counted)
        model = row["mixer"], row["mixer_args"], get_task(row["task"], row["bos"]).vocab_size, row["width"], row["layers"]
        with torch.device("meta"):
            linear = linear_flops_per_token(build_model(*model, row["mlp_width"]))
        assert row["flops_per_token"] == linear + row["recurrent_flops"]


def test_reflections_of_deltaproduct_are_variants():
    reflections = [get_variant(f"gated_deltaproduct-neg{suffix}").args["num_householder"] for suffix in ("", "-r4", "-r8")]
    assert reflections == [2, 4, 8]
