"""Configs drawn at random, invalid ones included: an error that names the field, or the naive recurrence's answer.

Few examples by default; `FLA_BDLRU_EXAMPLES=2000 pytest tests/mixers/test_random_use.py` looks longer.
"""

import math
import os

import hypothesis.strategies as st
import pytest
import torch
from fla.models import GLAConfig, GLAForCausalLM, TransformerConfig, TransformerForCausalLM
from hypothesis import HealthCheck, event, given, settings
from usage import lively

from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM, HLRUConfig, HLRUForCausalLM

# field: values that a layer takes, values that it must refuse
COMMON = {
    "expand": ([1.0, 0.5, 2, 3.0], [0, -1.0, "1", math.nan, math.inf, None, True]),
    "gate_norm": (["softmax", "sigmoid", "relu", "tanh", "silu", "linear", "square", "sinh"], ["l1", None, 1, ""]),
    "selective": ([True, False], ["false", None, 2]),
    "gate_bias": (["uniform", "memory"], ["ones", None]),
    "memory_range": ([(2.0, 64.0), [4, 8], (3.0, 3.0)], [(0, 1), (5, 2), (1,), None, "ab", (math.nan, 3), (2, math.inf)]),
    "use_short_conv": ([True, False], ["x", None, 1]),
    "conv_size": ([2, 3, 4], [0, -1, "4", 2.5, None]),
    "conv_bias": ([True, False], [None, 0]),
    "use_output_gate": ([True, False], ["x", None]),
    "output_gate_activation": (["swish", "silu", "sigmoid"], ["gelu", None]),
    "norm_eps": ([1e-5, 1e-6], ["x", -1.0, 0, None, math.nan]),
    "mode": (["chunk", "fused_recurrent"], ["parallel", None]),
}
SIZES = [0, -1, 2.0, 2.5, "4", None, True, [4]]
FIELDS = {
    "bdlru": {**COMMON, "block_size": ([1, 2, 4, 8], SIZES), "num_blocks": ([None, 1, 3, 8], [0, -2, "x", 1.5, False])},
    "hlru": {
        **COMMON,
        "order": ([1, 2, 3, 4, 8], SIZES),
        "num_channels": ([None, 1, 3, 8], [0, -2, "x", 1.5, False]),
        "readout": (["window", "state"], ["last", None]),
    },
}
NATIVE = {"bdlru": (BDLRUForCausalLM, BDLRUConfig), "hlru": (HLRUForCausalLM, HLRUConfig)}
HOSTS = {
    "transformer": (TransformerForCausalLM, TransformerConfig, {"num_heads": 4}),
    "gla": (GLAForCausalLM, GLAConfig, {"num_heads": 2}),
}


@st.composite
def uses(draw):
    """A mixer, where it goes, its arguments, the one of them that is wrong (or `None`), and an input's shape."""
    mixer, host = draw(st.sampled_from(sorted(FIELDS))), draw(st.sampled_from(["native", *HOSTS]))
    fields = FIELDS[mixer]
    names = draw(st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=8))
    arguments = {name: draw(st.sampled_from(fields[name][0])) for name in names}
    wrong = draw(st.sampled_from(sorted(fields))) if draw(st.booleans()) else None
    if wrong is not None:
        arguments[wrong] = draw(st.sampled_from(fields[wrong][1]))
        if wrong == "expand":  # a given count leaves it without a meaning
            arguments.pop("num_blocks", None), arguments.pop("num_channels", None)
    shape = draw(st.sampled_from([(1, 1), (2, 2), (3, 5), (1, 33), (2, 17)]))
    return mixer, host, arguments, wrong, shape, draw(st.integers(0, shape[1]))


def build(mixer, host, arguments):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 30, "intermediate_size": 24}
    if host == "native":
        model, config = NATIVE[mixer]
        return model(config(**sizes, **arguments))
    model, config, own = HOSTS[host]
    return model(config(**sizes, **own, mixer=mixer, mixer_config=arguments))


@pytest.mark.timeout(3600)
@given(use=uses())
@settings(
    max_examples=int(os.environ.get("FLA_BDLRU_EXAMPLES", "60")),
    deadline=None,
    derandomize="FLA_BDLRU_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_a_right_answer_or_a_clear_error(use):
    mixer, host, arguments, wrong, (B, T), split = use
    if wrong is not None:
        event("refused")
        with pytest.raises(ValueError, match=rf"{wrong}(=| must be )"):
            build(mixer, host, arguments)
        return
    model = lively(build(mixer, host, arguments)).eval()
    event(f"ran in {host}")
    x = torch.randint(3, 30, (B, T))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("FLA_BDLRU_BACKEND", "torch")  # the naive recurrence
        expected = model(x, use_cache=False).logits
    with torch.no_grad():
        found = {"whole": model(x, use_cache=False).logits}
        cache, parts = None, []
        for part in filter(torch.Tensor.numel, (x[:, :split], x[:, split:])):
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        found["split"] = torch.cat(parts, 1)
        padded, mask = (torch.nn.functional.pad(y, (2, 0)) for y in (x, torch.ones(B, T)))
        found["padded"] = model(padded, attention_mask=mask, use_cache=False).logits[:, 2:]
        flat = x.view(1, -1)
        packed = {"cu_seqlens": torch.arange(0, B * T + 1, T)}, {"position_ids": torch.arange(T).repeat(B)}
        for kwargs in packed if T > 1 else packed[:1]:
            found[next(iter(kwargs))] = model(flat, **kwargs, use_cache=False).logits.view_as(expected)
    for name, logits in found.items():
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    if T > 1:
        model(x, labels=x).loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
