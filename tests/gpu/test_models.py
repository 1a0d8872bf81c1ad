"""Layers and models on a GPU: the CPU path is the reference, which the other tests hold to the naive recurrences."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
from fla.models.utils import Cache

from fla_bdlru.integrations.mamba_ssm import build_layer
from fla_bdlru.layers import BDLRU, HLRU
from fla_bdlru.ops import chunk_bdlru, chunk_hlru

LAYERS = {"bdlru": lambda: BDLRU(64, block_size=4), "hlru": lambda: HLRU(64, order=4)}
each_layer = pytest.mark.parametrize("name", LAYERS)


@each_layer
@pytest.mark.parametrize("packed", [False, True])
def test_layer_equals_the_cpu_path(device, name, packed, monkeypatch):
    layer = LAYERS[name]()
    other = copy.deepcopy(layer).to(device)
    x = torch.randn(1 if packed else 3, 200, 64)
    cu_seqlens = torch.tensor([0, 7, 64, 200]) if packed else None
    leaf, other_leaf = x.clone().requires_grad_(), x.to(device).requires_grad_()
    with monkeypatch.context() as only:
        only.setenv("FLA_BDLRU_BACKEND", "cpu")
        o = layer(leaf, cu_seqlens=cu_seqlens)[0]
        o.square().sum().backward()
    got = other(other_leaf, cu_seqlens=None if cu_seqlens is None else cu_seqlens.to(device))[0]
    got.square().sum().backward()
    torch.testing.assert_close(got.cpu(), o, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_leaf.grad.cpu(), leaf.grad, rtol=1e-3, atol=1e-4)


@each_layer
def test_compiled_layer(device, name):
    """One graph, forward and backward, as the layer itself."""
    layer = LAYERS[name]().to(device)
    x = torch.randn(2, 200, 64, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    both = []
    for function in (layer, compiled):
        leaf = x.clone().requires_grad_()
        o = function(leaf)[0]
        both.append((o, *torch.autograd.grad(o.square().sum(), (leaf, *layer.parameters()))))
    for eager, got in zip(*both):
        torch.testing.assert_close(got, eager, rtol=1e-3, atol=1e-4)


@contextlib.contextmanager
def no_syncs(device):
    """A host sync raises; what the first call compiles and tunes has to be there."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_layer
@pytest.mark.parametrize("packed", [False, True])
def test_no_host_syncs(device, name, packed):
    """Ops and layers, forward and backward, and decoding. (A mask, and `fla_bdlru.mixers.packing.documents`, need a sync.)"""
    layer, op = LAYERS[name]().to(device), {"bdlru": chunk_bdlru, "hlru": chunk_hlru}[name]
    layer.layer_idx = 0
    shape = (1, 200, 16, 4) if name == "bdlru" else (1, 200, 64)
    x, v, g = (torch.randn(s, device=device, requires_grad=True) for s in ((1, 200, 64), shape, (*shape, 5)))
    h0 = torch.randn(3 if packed else 1, shape[2], 4, device=device)
    kwargs = {"cu_seqlens": torch.tensor([0, 7, 64, 200], device=device)} if packed else {}

    def step():
        o, ht = op(v, g, h0, True, **kwargs)
        (o.sum() + ht.sum()).backward()
        layer(x, **kwargs)[0].sum().backward()
        if not packed:
            with torch.no_grad():
                cache = Cache()
                for tokens in (x[:, :9], x[:, 9:10], x[:, 10:11]):
                    layer(tokens, past_key_values=cache, use_cache=True)

    step()
    with no_syncs(device):
        step()


@each_layer
def test_a_model_trains_in_bfloat16(device, name):
    """Autocast, one batch over and over: the loss falls to a fraction."""
    torch.manual_seed(0)
    config = GatedDeltaNetConfig(
        hidden_size=64, num_hidden_layers=2, num_heads=2, head_dim=32, vocab_size=64, mixer=name, fuse_cross_entropy=False
    )
    model = GatedDeltaNetForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(0, 64, (4, 128), device=device)
    losses = []
    for _ in range(40):
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@each_layer
def test_generation_with_the_cache_equals_the_whole_forward(device, name):
    config = GatedDeltaNetConfig(hidden_size=64, num_hidden_layers=2, num_heads=2, head_dim=32, vocab_size=64, mixer=name)
    model = GatedDeltaNetForCausalLM(config).to(device).eval()
    tokens = torch.randint(0, 64, (2, 10), device=device)
    with torch.inference_mode():
        out = model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None)
        for n in range(10, out.shape[1]):
            assert torch.equal(model(out[:, :n]).logits[:, -1].argmax(-1), out[:, n])


@pytest.mark.parametrize("name", ["BDLRU", "HLRU"])
def test_decoding_in_a_cuda_graph(device, name):
    """A step captured once, as mamba_ssm decodes: replayed token by token it equals the whole forward."""
    layer = build_layer(name, d_model=64, layer_idx=0, device=device)
    x = torch.randn(2, 12, 64, device=device)
    params = SimpleNamespace(max_seqlen=12, seqlen_offset=1, batch_size_offset=0, key_value_memory_dict={})
    token, outputs = x[:, :1].clone(), []
    with torch.inference_mode():
        expected = layer(x)
        o = layer(token, inference_params=params)  # compiles, and makes the state

        def replay():
            o.copy_(layer(token, inference_params=params))

        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                o = layer(token, inference_params=params)
            replay = graph.replay
        for state in params.key_value_memory_dict[0]:
            if state is not None:
                state.zero_()
        for t in range(x.shape[1]):
            token.copy_(x[:, t : t + 1])
            replay()
            outputs.append(o.clone())
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-5)
