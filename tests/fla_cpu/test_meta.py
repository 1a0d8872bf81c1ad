"""Whole models on meta tensors, which run shapes through: forward, loss, backward, a step with the cache."""

from functools import partial

import fla.models
import pytest
import torch
from fla.layers import Attention, GatedDeltaNet, Mamba2
from fla.modules.causal_conv1d import causal_conv1d
from fla.modules.token_shift import token_shift
from fla.ops.attn.parallel import parallel_attn
from fla.ops.gla import chunk_gla
from fla_cpu.test_all_configs import MORE, NAMES, SIZES, STOPPED

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, HLRUConfig, HLRUForCausalLM
from fla_bdlru.layers import BDLRU
from fla_bdlru.ops import chunk_bdlru, chunk_hlru

OURS = {"bdlru": (BDLRUConfig, BDLRUForCausalLM), "hlru": (HLRUConfig, HLRUForCausalLM)}
OPTIONS = [
    {"use_short_conv": True, "use_output_gate": True, "gate_bias": "memory"},
    {"attn": {"layers": [1], "num_heads": 2}, "fuse_cross_entropy": False, "fuse_linear_cross_entropy": True},
]
# who reads values: routes, or boundaries while decoding, or wants a mask there
TRAINS_ONLY = {"ForgettingTransformer", "YOCO"}


def run_shapes(make, decodes=True):
    with torch.device("meta"):
        model, x = make(), torch.randint(40, (2, 9))
    loss = model(x, labels=x).loss
    loss.backward()
    assert loss.is_meta
    assert all(p.is_meta and p.grad.is_meta for p in model.parameters())
    if decodes:
        model.eval()
        with torch.no_grad():
            out = model(x)
            assert out.logits.shape == (2, 9, 40)
            assert model(x[:, :1], past_key_values=out.past_key_values).logits.shape == (2, 1, 40)


@pytest.mark.parametrize("options", OPTIONS, ids=["recurrent", "hybrid"])
@pytest.mark.parametrize("name", OURS)
def test_native_models(name, options):
    config, model = OURS[name]
    run_shapes(lambda: model(config(hidden_size=32, num_hidden_layers=2, vocab_size=40, **options)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*STOPPED, "Mom"}])
@pytest.mark.filterwarnings("ignore")
def test_models_of_fla(name):
    config = {**SIZES, **MORE.get(name, {})}
    config, model = getattr(fla.models, f"{name}Config")(**config), getattr(fla.models, f"{name}ForCausalLM")
    run_shapes(lambda: model(config), name not in TRAINS_ONLY)


@pytest.mark.parametrize("mixer", ["bdlru", "hlru"])
def test_mixers(mixer):
    config = fla.models.GatedDeltaNetConfig(**SIZES, head_dim=8, mixer=mixer)
    run_shapes(lambda: fla.models.GatedDeltaNetForCausalLM(config))


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_ops(monkeypatch, backend):
    """Whatever is forced: shapes have no backend. Boundaries hold no values, and need none."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", backend)
    with torch.device("meta"):
        v, cu_seqlens = torch.randn(1, 9, 5, 3, requires_grad=True), torch.tensor([0, 4, 9])
        o, state = chunk_bdlru(v, torch.randn(1, 9, 5, 3, 4), None, True, cu_seqlens=cu_seqlens)
        o.sum().backward()
        assert (o.shape, state.shape, v.grad.shape) == (v.shape, (2, 5, 3), v.shape)
        o, state = chunk_hlru(torch.randn(2, 9, 5).bfloat16(), torch.randn(2, 9, 5, 4), None, True)
        assert (o.shape, o.dtype, state.shape, state.dtype) == ((2, 9, 5), torch.bfloat16, (2, 5, 3), torch.float32)


X, BOUNDS = torch.randn(1, 9, 16), torch.tensor([0, 4, 4, 9])
HEADS, FILTERS = X.view(1, 9, 2, 8), torch.randn(16, 4)
ON_A_CPU = {
    "convolution": lambda: causal_conv1d(X, FILTERS, output_final_state=True),
    "packed convolution": lambda: causal_conv1d(X, FILTERS, output_final_state=True, cu_seqlens=BOUNDS),
    "token shift": lambda: token_shift(X, cu_seqlens=BOUNDS, output_cache=True),
    "packed op": lambda: chunk_gla(HEADS, HEADS, HEADS, -HEADS.abs(), output_final_state=True, cu_seqlens=BOUNDS),
    "packed attention": lambda: parallel_attn(HEADS, HEADS, HEADS, cu_seqlens=BOUNDS, window_size=2),
}
LAYERS = {
    "Attention": lambda: Attention(hidden_size=16, num_heads=2, window_size=3, layer_idx=0),
    "BDLRU": lambda: BDLRU(hidden_size=16, use_short_conv=True, layer_idx=0),
    "GatedDeltaNet": lambda: GatedDeltaNet(hidden_size=16, head_dim=8, num_heads=2, layer_idx=0),
    "Mamba2": lambda: Mamba2(num_heads=4, head_dim=8, hidden_size=16, state_size=8, layer_idx=0),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", [*ON_A_CPU, *LAYERS])
def test_the_default_device_is_not_that_of_the_tensors(name, backend, monkeypatch):
    """Tensors on a CPU under `torch.set_default_device`, as while the parts of a model are made on another device."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", backend)
    call = ON_A_CPU[name] if name in ON_A_CPU else partial(LAYERS[name]().requires_grad_(False), X)
    expected = call()
    torch.set_default_device("meta")
    try:
        got = call()
    finally:
        torch.set_default_device(None)
    for a, b in zip(got, expected):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
