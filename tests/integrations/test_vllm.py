"""The models of vLLM's plugin, on stand-ins for the parts of vLLM 0.33 that they touch."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from usage import lively

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, HLRUConfig, HLRUForCausalLM
from fla_bdlru.integrations import vllm as plugin

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 16}
CASES = {
    "bdlru": (BDLRUForCausalLM, BDLRUConfig(**SIZES, block_size=2, use_short_conv=True, initial_state="learned")),
    "hlru": (HLRUForCausalLM, HLRUConfig(**SIZES, order=3, tie_word_embeddings=True)),
}


class Loader:
    def __init__(self, module):
        self.module = module

    def load_weights(self, weights, mapper):
        prefix = mapper["orig_to_new_prefix"][""]
        parameters = dict(self.module.named_parameters())
        loaded = {prefix + name: parameters[prefix + name].data.copy_(value) for name, value in weights}
        return set(loaded)


@pytest.fixture
def context(monkeypatch):
    """Stand-ins under vLLM's names; returns the forward context."""
    context, registered = SimpleNamespace(attn_metadata=None), {}
    names = {
        "": {"ModelRegistry": SimpleNamespace(register_model=registered.__setitem__)},
        ".config": {"VllmConfig": SimpleNamespace},
        ".forward_context": {"get_forward_context": lambda: context},
        ".model_executor.layers.mamba.abstract": {"MambaBase": type("MambaBase", (), {})},
        ".model_executor.models.interfaces": {n: type(n, (), {}) for n in ("HasInnerState", "IsAttentionFree")},
        ".model_executor.models.utils": {"AutoWeightsLoader": Loader, "WeightsMapper": dict},
        ".v1.attention.backends.registry": {"MambaAttentionBackendEnum": SimpleNamespace(LINEAR="linear")},
    }
    for name, values in names.items():
        module = ModuleType(f"vllm{name}")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, f"vllm{name}", module)
    monkeypatch.delitem(sys.modules, "fla_bdlru.integrations.vllm_models", raising=False)
    context.registered = registered
    return context


def configure(config, **fields):
    values = {"enforce_eager": True, "enable_prefix_caching": False, "tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    values |= {
        "hf_config": config,
        "dtype": torch.float32,
        "architecture": "BDLRUForCausalLM",
        "static_forward_context": {},
        **fields,
    }
    part = SimpleNamespace(**values)
    return SimpleNamespace(model_config=part, parallel_config=part, cache_config=part, compilation_config=part)


@pytest.mark.parametrize("name", CASES)
def test_requests_come_and_go_as_if_alone(name, context):
    """Five requests share three slots, in steps of 6 tokens and padding: prefills in pieces beside decoding."""
    make, config = CASES[name]
    expected, vllm_config = lively(make(config)).eval(), configure(config)
    plugin.register()
    module, _, cls = context.registered[make.__name__].partition(":")
    cls = getattr(__import__(module, fromlist=[cls]), cls)
    with torch.no_grad():
        model = cls(vllm_config=vllm_config)
        loaded = model.load_weights(expected.named_parameters())
        assert loaded == {name for name, _ in model.named_parameters()}
        layers = vllm_config.compilation_config.static_forward_context
        shapes, dtypes = cls.get_mamba_state_shape_from_config(vllm_config), cls.get_mamba_state_dtype_from_config(vllm_config)
        assert list(layers) == ["layers.0.attn", "layers.1.attn"]
        for layer in layers.values():
            assert (layer.get_state_shape(), layer.get_state_dtype()) == (shapes, dtypes)
            layer.kv_cache = tuple(torch.full((4, *s), torch.nan, dtype=d) for s, d in zip(shapes, dtypes))  # others' leavings
        assert model(torch.arange(5), torch.arange(5)).shape == (5, 16)  # without a context: memory is measured
        rows = [torch.randint(0, 40, (n,)) for n in (9, 3, 1, 7, 12)]
        done, slots, free, logits = [0] * 5, {}, [2, 0, 3], [[] for _ in rows]
        while any(n < len(row) for n, row in zip(done, rows)):
            batch, room = [], 6
            for i, row in enumerate(rows):
                n = min(len(row) - done[i], room, 1 if done[i] > 4 else 4)
                if n > 0 and (i in slots or free):
                    slots[i] = slots[i] if i in slots else free.pop()
                    batch.append((i, n))
                    room -= n
            tokens = torch.cat([rows[i][done[i] : done[i] + n] for i, n in batch] + [torch.zeros(2, dtype=torch.long)])
            counts = torch.tensor([n for _, n in batch])
            metadata = SimpleNamespace(
                num_prefill_tokens=int(counts.sum()) - 1,
                num_decode_tokens=1,
                query_start_loc=nn.functional.pad(counts.cumsum(0), (1, 0)).int(),
                state_indices_tensor=torch.tensor([slots[i] for i, _ in batch], dtype=torch.int32),
                seq_lens=torch.tensor([done[i] + n for i, n in batch], dtype=torch.int32),
            )
            context.attn_metadata = dict.fromkeys(layers, metadata)
            hidden = model(tokens, torch.zeros_like(tokens))
            assert hidden.shape == (len(tokens), 16)
            for (i, n), part in zip(batch, model.compute_logits(hidden)[:-2].split(counts.tolist())):
                logits[i].append(part)
                done[i] += n
                if done[i] == len(rows[i]):
                    free.append(slots.pop(i))
        for row, parts in zip(rows, logits):
            torch.testing.assert_close(torch.cat(parts), expected(row[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_what_is_refused(context):
    from fla_bdlru.integrations.vllm_models import BDLRUForCausalLM as Model

    config = CASES["bdlru"][1]
    for field, value, accepted in (
        ("tensor_parallel_size", 2, "1"), ("enforce_eager", False, "True"), ("enable_prefix_caching", True, "False"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}={value} is not accepted by BDLRU.* in vLLM; expected {accepted}"):
            Model(vllm_config=configure(config, **{field: value}))
    hybrid = BDLRUConfig(**SIZES, attn={"layers": [1], "num_heads": 2})
    with pytest.raises(ValueError, match=r"attn=\{.* is not accepted by"):
        Model(vllm_config=configure(hybrid))
