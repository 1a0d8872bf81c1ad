"""The layers of lrnnx as mixers. Its CUDA extension is a stub here: what needs no extension runs."""

import inspect
import sys
import types
from dataclasses import replace

import pytest
import torch
from fresh import run_fresh

pytest.importorskip("opt_einsum", reason="lrnnx needs opt_einsum")
if "selective_scan_cuda" not in sys.modules:
    sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
pytest.importorskip("lrnnx", reason="lrnnx is not installed")

from fla_bdlru.integrations.lrnnx import LAYERS, lrnnx_mixer
from fla_bdlru.layers.measure import count_parameters
from fla_bdlru.mixers import available_mixers, build_mixer

PURE = {"lrnnx_lru": {"d_state": 6}, "lrnnx_s5": {"d_state": 6}, "lrnnx_s4d": {"d_state": 4, "final_act": None}}


@pytest.mark.parametrize("name", PURE)
def test_a_mixer_is_the_layer(name):
    mixer = build_mixer(name, hidden_size=8, layer_idx=0, **PURE[name])
    x = torch.randn(2, 7, 8)
    o, _, cache = mixer(x)
    out = mixer.layer(x)
    torch.testing.assert_close(o, out[0] if isinstance(out, tuple) else out)
    assert cache is None
    o.sum().backward()
    assert all(p.grad is not None for p in mixer.parameters() if p.requires_grad)
    # causal: a later input changes no earlier output
    later = x.clone()
    later[:, 5:] += 1
    torch.testing.assert_close(mixer(later)[0][:, :5], o[:, :5], rtol=1e-4, atol=1e-5)


def test_lru_equals_its_recurrence():
    """Complex diagonal: h_t = lambda h_{t-1} + exp(gamma) B x_t, y = Re(C h) + D x, arXiv 2303.06349."""
    mixer = build_mixer("lrnnx_lru", hidden_size=4, d_state=3)
    p = {name: x.detach().double() for name, x in mixer.layer.named_parameters()}
    eigenvalues = torch.exp(torch.complex(-p["nu_log"].exp(), p["theta_log"].exp()))
    B, C = torch.complex(p["B_re"], p["B_im"]), torch.complex(p["C_re"], p["C_im"])
    x = torch.randn(1, 9, 4).double()
    h, outputs = torch.zeros(3, dtype=torch.complex128), []
    for x_t in x[0]:
        h = eigenvalues * h + p["gamma_log"].exp() * (B @ x_t.to(torch.complex128))
        outputs.append((C @ h).real + p["D"] * x_t)
    torch.testing.assert_close(mixer(x.float())[0][0].double(), torch.stack(outputs), rtol=1e-4, atol=1e-4)
    assert mixer.state_size() == 2 * 3


def test_names_arguments_and_refusals():
    assert set(LAYERS) <= set(available_mixers())
    with pytest.raises(ValueError, match="mixer_config: d_model=3 is not an argument of 'lrnnx_lru'; it takes d_state"):
        build_mixer("lrnnx_lru", 8, d_model=3)
    mixer = build_mixer("lrnnx_lru", 8)
    x = torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match="cannot skip padding"):
        mixer(x, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="has no cache here: pass use_cache=False"):
        mixer(x, past_key_values=object(), use_cache=True)
    with pytest.raises(ValueError, match=r"cu_seqlens=.* takes whole sequences only"):
        mixer(x[:1], cu_seqlens=torch.tensor([0, 4]))
    assert lrnnx_mixer("lrnnx_lru") is type(mixer)
    assert inspect.signature(type(mixer)).parameters["d_state"].default == mixer.layer.d_state == 64
    assert count_parameters(mixer) == count_parameters(mixer.layer)


def test_a_model_takes_it():
    from fla.models import TransformerConfig, TransformerForCausalLM

    config = TransformerConfig(hidden_size=16, num_hidden_layers=2, num_heads=2, vocab_size=11, mixer="lrnnx_lru",
                               mixer_config={"d_state": 5}, use_cache=False)  # fmt: skip
    model = TransformerForCausalLM(config)
    tokens = torch.randint(0, 11, (2, 6))
    model(tokens, labels=tokens).loss.backward()
    assert {type(block.attn).__name__ for block in model.model.layers} == {"LRU"}
    # the initial phases are lrnnx's, spread over the circle, not drawn anew by the model
    phases = torch.cat([block.attn.layer.theta_log.detach().exp() for block in model.model.layers])
    assert phases.max() - phases.min() > 1.5


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("match, budget", [("params", 2000), ("state", 64)])
def test_the_comparison_harness_takes_it(name, match, budget):
    """S4D's state is at least four values a channel."""
    from benchmarks.compare.models import TOLERANCE
    from benchmarks.compare.plan import make_row, plan
    from benchmarks.compare.presets import get_preset
    from benchmarks.compare.train import train_cell

    preset = replace(get_preset("quick", "s3"), width=16, mlp_width=16, steps=2, lengths=(4, 8), eval_examples=8, seeds=(0,))
    (planned,), _ = plan("s3", (name,), match, budget, preset, "cpu")
    got = planned.mixer_params if match == "params" else planned.state_size
    assert abs(got - budget) <= TOLERANCE * budget
    result = train_cell(planned.cell)
    row = make_row(planned, {**result, "device": "", "threads": 1, "versions": ""})
    assert row["steps_done"] == 2
    assert row["diverged"] is False
    assert row["flops_per_token"] is row["mixer_flops"] is row["recurrent_flops"] is None  # not counted


def test_without_its_extension_the_error_says_so():
    code = """
import sys
sys.modules["lrnnx"] = None
from fla_bdlru.mixers import build_mixer
try:
    build_mixer("lrnnx_lru", 8)
except ValueError as error:
    assert "mixer='lrnnx_lru' needs the package lrnnx with its CUDA extensions" in str(error), error
    print("refused")
"""
    assert "refused" in run_fresh("-c", code)
