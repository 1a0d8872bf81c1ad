"""Weights that FLA reads past their modules: offloaded, quantised, adapted and hooked models are right or refuse."""

import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="FLA's layers import Triton")

from fla.layers import Mamba, Mamba2, RodimusAttention
from fla.models import GatedDeltaNetConfig, GLAConfig, GSAConfig, HGRN2Config, LightNetConfig, TransformerConfig
from fla.modules import FusedLinearCrossEntropyLoss, GatedMLP
from transformers import AutoModelForCausalLM

from fla_bdlru import BDLRUConfig, HLRUConfig
from fla_bdlru.unfused import is_plain

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40}
HEADS = {**SIZE, "num_heads": 2}
CONFIGS = {
    "bdlru": lambda **k: BDLRUConfig(**SIZE, block_size=4, **k),
    "hlru": lambda **k: HLRUConfig(**SIZE, order=2, **k),
    "gla with mixer=bdlru": lambda **k: GLAConfig(**HEADS, mixer="bdlru", **k),
    "transformer with mixer=hgrn2": lambda **k: TransformerConfig(
        **HEADS, mixer="hgrn2", mixer_config={"expand_ratio": 16}, **k
    ),
    "gated_deltanet": lambda **k: GatedDeltaNetConfig(**HEADS, head_dim=16, **k),
    "gsa": lambda **k: GSAConfig(**HEADS, num_slots=4, norm_eps=1e-3, **k),
    "hgrn2": lambda **k: HGRN2Config(**HEADS, expand_ratio=16, norm_eps=1e-3, **k),
    "lightnet": lambda **k: LightNetConfig(**HEADS, expand_ratio=16, norm_eps=1e-3, **k),
}
each_model = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def model_of(name, **fields):
    return AutoModelForCausalLM.from_config(CONFIGS[name](**fields)).eval()


def prompt():
    return torch.randint(40, (2, 9))


@each_model
@torch.no_grad()
def test_offloaded_to_the_cpu(name):
    accelerate = pytest.importorskip("accelerate")
    model, p = model_of(name), prompt()
    a = model(p).logits
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(model(p).logits, a)
    assert torch.equal(model(p).logits, a)


@pytest.mark.parametrize("name", ["bdlru", "gla with mixer=bdlru", "hgrn2"])
@torch.no_grad()
def test_offloaded_to_a_disk(name, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, p = model_of(name), prompt()
    a = model(p).logits
    accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert torch.equal(model(p).logits, a)


@each_model
@torch.no_grad()
def test_quantize_dynamic(name):
    model, p = model_of(name), prompt()
    a = model(p).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not is_plain(quantised.get_submodule("model.layers.0.mlp.down_proj"))
    error = (quantised(p).logits - a).abs().max() / a.abs().max()
    assert 0 < error < 0.2  # weights and activations in 8 bits


@each_model
def test_a_lora_on_parts_that_fla_fuses_gets_a_gradient(name):
    peft = pytest.importorskip("peft")
    model, p = model_of(name), prompt()
    a = model(p).logits
    config = peft.LoraConfig(target_modules=["down_proj", "o_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).train()
    assert (adapted(p).logits - a).abs().max() > 1e-4
    adapted(p, labels=p).loss.backward()
    grads = {n: x.grad for n, x in adapted.named_parameters() if "lora_" in n}
    assert {part for part in ("down_proj", "o_proj") for n in grads if part in n} == {"down_proj", "o_proj"}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


@each_model
@torch.no_grad()
def test_forward_hooks_are_called(name):
    model, p = model_of(name), prompt()
    a = model(p).logits
    parts = [n for n, m in model.named_modules() if n.endswith(("down_proj", "o_proj", "g_norm", "conv1d"))]
    called = []
    for part in parts:
        model.get_submodule(part).register_forward_hook(lambda *_, part=part: called.append(part))
    assert torch.allclose(model(p).logits, a, atol=1e-6)
    assert sorted(called) == sorted(parts)


@pytest.mark.parametrize("act", ["swish", "powlu"])
@pytest.mark.parametrize("fuse", [True, False])
def test_gated_mlp(act, fuse):
    mlp, x = GatedMLP(16, intermediate_size=24, hidden_act=act, fuse_swiglu=fuse), torch.randn(2, 5, 16)
    expected = mlp(x)
    handle = mlp.down_proj.register_forward_hook(lambda module, args, output: 2 * output)
    assert torch.allclose(mlp(x), 2 * expected, atol=1e-6)
    handle.remove()
    assert torch.equal(mlp(x), expected)


def test_the_loss_calls_an_lm_head_that_is_not_plain():
    model, p = model_of("bdlru", fuse_cross_entropy=False, fuse_linear_cross_entropy=True), prompt()
    expected = model(p, labels=p).loss
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    assert torch.allclose(model(p, labels=p).loss, expected, atol=1e-5)
    assert called
    model.criterion = FusedLinearCrossEntropyLoss()
    with pytest.raises(ValueError, match="criterion is FusedLinearCrossEntropyLoss, which reads lm_head's weight"):
        model(p, labels=p)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: Mamba(hidden_size=32, layer_idx=0), "conv1d"),
        (lambda: Mamba2(num_heads=4, head_dim=16, hidden_size=32, layer_idx=0), "conv1d"),
        (lambda: RodimusAttention("rodimus", hidden_size=32, layer_idx=0), "g_gate_proj"),
    ],
)
def test_what_can_only_read_a_weight_refuses(make, part):
    layer, x = make(), torch.randn(2, 5, 32)
    layer(x)
    handle = layer.get_submodule(part).register_forward_hook(print)
    with pytest.raises(ValueError, match=f"{type(layer).__name__} reads {part}.weight and never calls {part}"):
        layer(x)
    handle.remove()
    layer(x)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: Mamba(hidden_size=32, layer_idx=0), "dt_proj"),
        (lambda: Mamba(hidden_size=32, layer_idx=0), "x_proj"),
        (lambda: Mamba2(num_heads=4, head_dim=16, hidden_size=32, layer_idx=0), "out_proj"),
    ],
)
def test_what_mamba_reads_on_a_gpu(make, part):
    layer = make()
    handle = layer.get_submodule(part).register_forward_hook(lambda *_: None)
    layer(torch.randn(2, 5, 32))  # on a CPU it is called
    with pytest.raises(ValueError, match=f"{type(layer).__name__} reads {part}.weight and never calls {part}"):
        layer.cuda_kernels_forward(torch.randn(2, 5, 32))
    handle.remove()


@pytest.mark.parametrize("part", ["layers.1.mlp_res_proj", "layers.0.attn_norm", "res_proj"])
@pytest.mark.parametrize("name", ["gla with mixer=bdlru", "hgrn2"])
def test_attention_residuals_refuse(name, part):
    model, p = model_of(name, attnres_block_size=2), prompt()
    a = model(p).logits
    handle = model.model.get_submodule(part).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"reads {part.split('.')[-1]}.weight and never calls"):
        model(p)
    handle.remove()
    assert torch.equal(model(p).logits, a)


def test_what_is_plain():
    linear = nn.Linear(3, 3)
    assert is_plain(linear)
    assert not is_plain(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)))
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        handle = getattr(linear, register)(print)
        assert not is_plain(linear)
        handle.remove()
    assert is_plain(linear)
    linear.forward = linear.forward
    assert not is_plain(linear)
