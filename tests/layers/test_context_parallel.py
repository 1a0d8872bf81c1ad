"""Layers and models whose sequence is split over 4 gloo processes, against one process: outputs, losses, all gradients."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, RWKV7Config, RWKV7ForCausalLM
from fla.ops.cp import FLACPContext
from ranks import run_ranks, uneven_context

from fla_bdlru import BDLRU, HLRU, BDLRUConfig, BDLRUForCausalLM, HLRUConfig, HLRUForCausalLM

D, LENGTHS = 16, [4, 6, 3, 5]
CU_SEQLENS = [0, 2, 11, 12, 18]  # one document over three ranks, one of one token
PARTS = {"use_short_conv": True, "use_output_gate": True}

LAYERS = {
    "bdlru": lambda: BDLRU(D, block_size=2),
    "bdlru with all parts": lambda: BDLRU(D, block_size=4, gate_bias="memory", conv_bias=True, **PARTS),
    "bdlru, constant gates": lambda: BDLRU(D, block_size=4, selective=False),
    "bdlru, gates computed again": lambda: BDLRU(D, block_size=2, recompute_gates=True, initial_state="learned"),
    "hlru, window longer than a slice": lambda: HLRU(D, order=5),
    "hlru with all parts": lambda: HLRU(D, order=3, initial_state="learned", **PARTS),
    "bdlru, convolution of one token": lambda: BDLRU(D, use_short_conv=True, conv_size=1, conv_bias=True),
    "hlru, state": lambda: HLRU(D, order=3, readout="state", use_short_conv=True, conv_size=2),
}
SIZES = {"hidden_size": D, "num_hidden_layers": 2, "vocab_size": 32, "hidden_ratio": 2}
MODELS = {
    "bdlru": lambda: BDLRUForCausalLM(BDLRUConfig(block_size=4, **SIZES)),
    "hlru": lambda: HLRUForCausalLM(HLRUConfig(order=3, use_short_conv=True, **SIZES)),
    "gated deltanet with mixers": lambda: GatedDeltaNetForCausalLM(
        GatedDeltaNetConfig(mixer=["bdlru", "hlru"], mixer_config=[{"block_size": 2}, {"use_short_conv": True}], **SIZES)
    ),
}


def make(factory):
    """The module with the same weights in every process, gates away from their start; and fixed inputs."""
    torch.manual_seed(0)
    module = factory()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return module


def run_layer(layer, x, weight, **kwargs):
    o = layer(x, **kwargs)[0]
    (o * weight).sum().backward()
    return {"o": o.detach(), "dx": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def layer_inputs():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(1, CU_SEQLENS[-1], D, generator=generator) for _ in range(2))


def layers_on(rank):
    context, t, _ = uneven_context(CU_SEQLENS, LENGTHS, rank)
    x, weight = (y[:, t] for y in layer_inputs())
    return {
        key: run_layer(make(factory), x.clone().requires_grad_(), weight, cp_context=context)
        for key, factory in LAYERS.items()
    }


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(4, layers_and_models_on)


def layers_and_models_on(rank):
    return layers_on(rank) | models_on(rank)


@pytest.mark.parametrize("key", LAYERS)
def test_layer_equals_one_process(key, ranks):
    x, weight = layer_inputs()
    whole = run_layer(make(LAYERS[key]), x.requires_grad_(), weight, cu_seqlens=torch.tensor(CU_SEQLENS))
    for name, expected in whole.items():
        parts = [rank[key][name] for rank in ranks]
        got = torch.cat(parts, 1) if name in ("o", "dx") else sum(parts)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def run_model(model, tokens, labels, checkpointing, **kwargs):
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    logits = model.train()(tokens, **kwargs).logits
    F.cross_entropy(logits[0], labels[0], reduction="sum").backward()
    return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def model_inputs():
    tokens = torch.randint(0, 32, (1, CU_SEQLENS[-1]), generator=torch.Generator().manual_seed(2))
    labels = tokens.roll(-1, 1)  # shifted before the sequence is split
    return tokens, labels.index_fill(1, torch.tensor(CU_SEQLENS[1:]) - 1, -100)


def models_on(rank):
    context, t, _ = uneven_context(CU_SEQLENS, LENGTHS, rank)
    tokens, labels = (x[:, t] for x in model_inputs())
    return {
        (key, checkpointing): run_model(make(factory), tokens, labels, checkpointing, cp_context=context)
        for key, factory in MODELS.items()
        for checkpointing in (None, "reentrant", "not reentrant")
    }


@cache
def whole_model(key):
    return run_model(make(MODELS[key]), *model_inputs(), None, cu_seqlens=torch.tensor(CU_SEQLENS))


@pytest.mark.parametrize("key", MODELS)
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "not reentrant"])
def test_model_equals_one_process(key, checkpointing, ranks):
    for name, expected in whole_model(key).items():
        parts = [rank[key, checkpointing][name] for rank in ranks]
        got = torch.cat(parts, 1) if name == "logits" else sum(parts)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


CONTEXT = FLACPContext(cu_seqlens=torch.tensor([0, 6]), is_first_rank=True)
X, TOKENS = torch.zeros(1, 6, D), torch.zeros(1, 6, dtype=torch.long)
LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1, 1]])


def gated_deltanet(**kwargs):
    return GatedDeltaNetForCausalLM(GatedDeltaNetConfig(num_heads=2, head_dim=8, **kwargs, **SIZES))


ERRORS = [
    (lambda: BDLRU(D)(X, attention_mask=LEFT_PADDED, cp_context=CONTEXT), "attention_mask has padding, .* cp_context"),
    (lambda: MODELS["bdlru"]().eval()(TOKENS, cp_context=CONTEXT), "cp_context takes whole sequences.* pass use_cache=False"),
    (lambda: HLRU(D)(X.expand(2, -1, -1), cp_context=CONTEXT), "cu_seqlens needs a batch of 1"),
    (
        lambda: gated_deltanet(mixer=["bdlru", "native"])(TOKENS, cp_context=CONTEXT),
        r"layers.1.attn of GatedDeltaNetForCausalLM, GatedDeltaNet, cannot be split along time; use mixer='bdlru'",
    ),
    (
        lambda: gated_deltanet(mixer="hlru", attn={"layers": [0], "num_heads": 2})(TOKENS, cp_context=CONTEXT),
        r"layers.0.attn of GatedDeltaNetForCausalLM, Attention, cannot be split",
    ),
    (
        lambda: RWKV7ForCausalLM(RWKV7Config(mixer="bdlru", head_dim=8, **SIZES))(TOKENS, cp_context=CONTEXT),
        r"layers.0.ffn.time_shift of RWKV7ForCausalLM, ZeroPad2d, cannot be split",
    ),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[m[:30] for _, m in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def too_short(rank):
    context, *_ = uneven_context([0, 4], [2, 2], rank)
    with pytest.raises(ValueError, match="a slice holds 2 tokens, but a convolution over the next one reads 3 of them"):
        BDLRU(D, use_short_conv=True)(torch.zeros(1, 2, D), cp_context=context)


def test_a_slice_shorter_than_the_convolution():
    run_ranks(2, too_short)


def test_a_mask_without_padding_and_a_context_without_a_group():
    layer = make(LAYERS["hlru with all parts"])
    x = torch.randn(1, 6, D)
    got = layer(x, attention_mask=torch.ones(1, 6), cp_context=CONTEXT)[0]
    torch.testing.assert_close(got, layer(x, cu_seqlens=torch.tensor([0, 6]))[0])
