"""Mixers written here from their papers: their equations, token by token, on dense matrices."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.compare.mixers import PDSSM, SLiCE, column_one_hot
from benchmarks.compare.models import build_model, get_variant, layer_flops
from benchmarks.records.store import read_folder
from benchmarks.report.documents import RESULTS
from benchmarks.tasks import get_task
from fla_bdlru.layers.measure import linear_flops_per_token

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


@pytest.mark.parametrize("name", ["pd_ssm", "slice-m3", "rwkv7"])
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
