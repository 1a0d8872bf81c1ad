"""The native Hugging Face models."""

import inspect
import json
import os

import numpy as np
import pytest
import torch
from fla.modules import GatedMLP
from fresh import run_fresh
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.generic import find_labels
from usage import lively, train

from fla_bdlru.layers import BDLRU, HLRU
from fla_bdlru.layers.gated import START_STD
from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM, BDLRUModel, HLRUConfig, HLRUForCausalLM, HLRUModel
from fla_bdlru.models.modeling import SWITCHES

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 64}
FAMILIES = {
    "bdlru": (BDLRUConfig, BDLRUModel, BDLRUForCausalLM, BDLRU, {"block_size": 2, "gate_norm": "tanh"}),
    "hlru": (HLRUConfig, HLRUModel, HLRUForCausalLM, HLRU, {"order": 3, "readout": "state"}),
}
each_family = pytest.mark.parametrize("name", FAMILIES)
DEFAULTS = {
    "hidden_size": 2048, "num_hidden_layers": 24, "hidden_ratio": 4, "intermediate_size": None, "hidden_act": "swish",
    "norm_eps": 1e-6, "attn": None, "max_position_embeddings": 2048, "use_cache": True, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.02, "fuse_norm": True,
    "fuse_swiglu": True, "fuse_cross_entropy": True, "fuse_linear_cross_entropy": False, "use_l2warp": False,
    "vocab_size": 32000, "bidirectional": False,
}  # fmt: skip


@each_family
def test_auto_classes(name, tmp_path):
    Config, Model, CausalLM, _, options = FAMILIES[name]
    config = Config(**SIZES, **options)
    assert type(AutoModel.from_config(config)) is Model
    model = AutoModelForCausalLM.from_config(config).eval()
    assert type(model) is CausalLM
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Config
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    x = torch.randint(0, 40, (2, 7))
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)


@each_family
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("act", ["swish", "powlu"])
def test_a_model_equals_its_parts(name, fused, act):
    """Embeddings, blocks of norm, layer, norm and MLP with residuals around them, norm, head; and FLA's loss shifts labels."""
    Config, _, CausalLM, layer_class, options = FAMILIES[name]
    fields = {"fuse_norm": fused, "fuse_swiglu": fused, "hidden_act": act, "norm_eps": 0.3, "use_output_gate": True}
    model = lively(CausalLM(Config(**SIZES, **options, **fields))).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)

    def norm(module, h):
        return h / (h.square().mean(-1, keepdim=True) + 0.3).sqrt() * module.weight

    x = torch.randint(0, 40, (2, 7))
    with torch.no_grad():
        h = model.model.embeddings.weight[x]
        for block in model.model.layers:
            layer = layer_class(32, **options, norm_eps=0.3, use_output_gate=True)
            mlp = GatedMLP(32, intermediate_size=64, hidden_act=act, fuse_swiglu=False)
            layer.load_state_dict(block.attn.state_dict())
            mlp.load_state_dict(block.mlp.state_dict())
            h = h + layer(norm(block.attn_norm, h))[0]
            h = h + mlp(norm(block.mlp_norm, h))
            assert (block.mlp.fuse_swiglu, block.mlp.down_proj.in_features) == (fused, 64)
        logits = norm(model.model.norm, h) @ model.lm_head.weight.T
        out = model(x, labels=x)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-4)


LOSSES = {
    "fused": {},
    "plain": {"fuse_cross_entropy": False},
    "linear": {"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True},
    "hybrid": {"attn": {"layers": [1], "num_heads": 2}},
}
each_loss = pytest.mark.parametrize("fields", LOSSES.values(), ids=LOSSES)


@each_family
@each_loss
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_labels_that_are_shifted_already(name, fields, checkpointing):
    """As slices of a sequence have them: the last token has a label, too. Beside `labels` they are the ones that count."""
    Config, _, CausalLM, _, options = FAMILIES[name]
    model = lively(CausalLM(Config(**SIZES, **options, **fields)))
    if checkpointing:
        model.gradient_checkpointing_enable()
    x, shifted = torch.randint(0, 40, (2, 7)), torch.randint(0, 40, (2, 7))
    shifted[0, :3] = -100
    loss = cross_entropy(model(x).logits.flatten(0, 1), shifted.flatten())
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for given in ({}, {"labels": x}, {"logits_to_keep": 1}, {"return_dict": False}):
        model.zero_grad()
        out = model(x, shift_labels=shifted, **given)
        torch.testing.assert_close(out[0], loss, rtol=1e-4, atol=1e-5)
        out[0].backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        torch.testing.assert_close(grads, expected, rtol=1e-3, atol=1e-5)
    out = model.eval()(x, shift_labels=shifted, num_items_in_batch=torch.tensor(22))
    torch.testing.assert_close(out.loss, loss / 2, rtol=1e-4, atol=1e-5)  # 11 labels
    assert out.past_key_values is None
    assert find_labels(CausalLM) == ["labels"]  # Trainer evaluates no loss where one of them is missing
    with pytest.raises(ValueError, match=r"shift_labels must have shape \[2, 7\], as the tokens; got \[2, 6\]"):
        model(x, shift_labels=shifted[:, 1:])


@each_family
@pytest.mark.parametrize("fields", [*list(LOSSES.values())[:3], {"use_l2warp": True}], ids=[*list(LOSSES)[:3], "l2warp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_no_rows(name, fields, dtype):
    """Of the type that other ranks have, and with a gradient for every parameter, which DDP waits for."""
    Config, _, CausalLM, _, options = FAMILIES[name]
    model, x = lively(CausalLM(Config(**SIZES, **options, **fields))).to(dtype), torch.randint(0, 40, (2, 7))
    like = model(x, labels=x)
    for rows in (x[:0], x[:, :0]):
        for given in ({"labels": rows}, {"shift_labels": rows}, {"labels": rows, "num_items_in_batch": torch.tensor(5)}):
            model.zero_grad()
            out = model(rows, **given)
            assert (out.loss.item(), out.loss.dtype, out.loss.shape) == (0.0, like.loss.dtype, ())
            assert (out.logits is None) == (like.logits is None)
            assert out.logits is None or out.logits.shape == (*rows.shape, 40)
            out.loss.backward()
            assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    loss = model(x, labels=torch.full_like(x, -100)).loss  # rows without labels are left to FLA: torch's NaN, or 0 where fused
    assert loss.isnan() if like.logits is not None else loss == 0


@each_family
def test_defaults_and_what_they_make(name):
    Config, Model, _, _, options = FAMILIES[name]
    config = Config()
    assert {field: getattr(config, field) for field in DEFAULTS} == DEFAULTS
    fields = {**SIZES, "vocab_size": 4000, "num_hidden_layers": 1, "intermediate_size": None, "pad_token_id": 3}
    model = Model(Config(**fields, **options, initializer_range=0.3, hidden_ratio=25))
    assert model.layers[0].mlp.gate_proj.out_features == 768  # 2/3 of 25 * 32, rounded up to 256
    for weight in (model.embeddings.weight, model.layers[0].attn.v_proj.weight, model.layers[0].mlp.gate_proj.weight):
        assert 0.25 < weight.std() < 0.35
    model(torch.tensor([[3, 4, 5]])).last_hidden_state.sum().backward()
    assert not model.embeddings.weight.grad[3].any()  # of the padding
    assert model.embeddings.weight.grad[4].any()


@each_family
def test_blocks_are_not_split_over_devices(name):
    accelerate = pytest.importorskip("accelerate")
    Config, _, CausalLM, _, options = FAMILIES[name]
    model = CausalLM(Config(**SIZES, **options))
    for space in range(20_000, 120_000, 10_000):
        places = accelerate.infer_auto_device_map(model, {0: space, "cpu": 10**9}, model._no_split_modules)
        assert not any(place.startswith("model.layers.") and place.count(".") > 2 for place in places)


@each_family
def test_a_model_card_of_ones_own_stays(name, tmp_path):
    config = FAMILIES[name][0](**SIZES)
    config.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    config.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@each_family
def test_config_takes_every_argument_of_the_layer(name):
    Config, _, CausalLM, layer_class, options = FAMILIES[name]
    layer = (
        CausalLM(Config(**SIZES, **options, selective=False, gate_bias="memory", memory_range=(4, 64))).model.layers[1].attn
    )
    assert type(layer) is layer_class
    assert all(getattr(layer, key) == value for key, value in options.items())
    assert (layer.selective, layer.gate_bias, layer.memory_range) == (False, "memory", (4, 64))
    config = Config()
    assert config.gate_norm == "softmax"
    assert config.memory_range == [2.0, 1024.0]
    with pytest.raises(ValueError, match="gate_norm='l1' is not known"):
        CausalLM(Config(**SIZES, gate_norm="l1"))


@each_family
def test_a_checkpoint_without_a_learned_start_loads(name, tmp_path):
    """The parameter that it lacks is drawn, the gates' bias beside it stays; decoding goes on from it, padded or not."""
    Config, _, CausalLM, _, options = FAMILIES[name]
    old = CausalLM(Config(**SIZES, **options, gate_bias="memory"))
    torch.nn.init.ones_(old.model.layers[0].attn.a_proj.bias)
    old.save_pretrained(tmp_path)
    model = CausalLM.from_pretrained(tmp_path, initial_state="learned").eval()
    layer = model.model.layers[0].attn
    assert (layer.a_proj.bias == 1).all()
    assert 0.3 < layer.h0.std() / START_STD < 3
    torch.nn.init.normal_(layer.h0, std=10)
    model.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again.model.layers[0].attn.h0, layer.h0)
    ids = torch.randint(3, 40, (1, 4))
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], 1)
    mask = (torch.arange(6) >= 2).long()[None]
    with torch.no_grad():
        expected = again.generate(ids, max_new_tokens=4, do_sample=False)
        greedy = ids
        for _ in range(4):
            greedy = torch.cat([greedy, again(greedy).logits[:, -1:].argmax(-1)], 1)
        left = again.generate(padded, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(expected, greedy[:, : expected.shape[1]])
    assert torch.equal(left[:, 2:], expected)


@each_family
def test_what_has_no_weight_decay_is_marked_after_loading(name, tmp_path):
    Config, _, CausalLM, _, options = FAMILIES[name]
    model = CausalLM(Config(**SIZES, **options, initial_state="learned"))
    model.save_pretrained(tmp_path)
    for each in (model, CausalLM.from_pretrained(tmp_path)):
        marked = {name for name, parameter in each.named_parameters() if hasattr(parameter, "_no_weight_decay")}
        assert marked == {f"model.layers.{i}.attn.{name}" for i in range(2) for name in ("h0", "a_proj.bias")}


@each_family
def test_a_misspelt_field_is_refused(name, tmp_path):
    """Only what looks like a field: transformers' own and unknown ones pass, and so does what another version has saved."""
    Config = FAMILIES[name][0]
    theirs = {"architectures": ["X"], "problem_type": "regression", "sep_token_id": 4, "num_labels": 3}
    config = Config(**SIZES, gate_bias="memory", note="mine", **theirs)
    config.gate_nrom = "of a later version"
    config.save_pretrained(tmp_path)
    loaded = Config.from_pretrained(tmp_path)
    assert (loaded.note, loaded.gate_nrom, loaded.sep_token_id) == ("mine", "of a later version", 4)
    with pytest.raises(ValueError, match=f"gate_nrom='tanh' is not a field of {Config.__name__}; did you mean 'gate_norm'"):
        Config(**SIZES, gate_nrom="tanh")
    with pytest.raises(ValueError, match=r"hiden_size=3 is not a field of .*'hidden_size'"):
        Config(hiden_size=3)
    with pytest.raises(ValueError, match=r"num_layers=2 is not a field of .*'num_hidden_layers'"):
        Config(num_layers=2)
    with pytest.raises(ValueError, match=r"d_conv=4 is not a field of .*'conv_size'"):
        Config(d_conv=4)
    for field, ours in {"bdlru": {"order": "block_size"}, "hlru": {"block_size": "order"}}[name].items():
        with pytest.raises(ValueError, match=f"{field}=3 is not a field of {Config.__name__}; did you mean {ours!r}"):
            Config(**{field: 3})  # of the other family
    for field, value in {"hidden_size": "32", "num_hidden_layers": 2.0, "vocab_size": None, "intermediate_size": 6.5}.items():
        with pytest.raises(ValueError, match=f"{field} must be an integer; got {value!r}"):
            Config(**{field: value})
    with pytest.raises(ValueError, match="num_hidden_layers must be positive; got 0"):
        Config(num_hidden_layers=0)
    with pytest.raises(ValueError, match=f"model_type='gla' is not {name!r}, what {Config.__name__} is for: load the folder"):
        Config.from_dict({"model_type": "gla"})


@pytest.mark.parametrize("field, value, message", [
    *((field, "false", "must be True or False; got 'false'") for field in SWITCHES),
    ("fuse_norm", 0, "must be True or False; got 0"),
    ("hidden_ratio", "4", "must be a positive number; got '4'"),
    ("initializer_range", "2e-2", "must be a positive number; got '2e-2'"),
    ("hidden_act", "gelu", "='gelu' is not known; expected one of 'swish', 'powlu'"),
    ("pad_token_id", "0", "must be an integer; got '0'"),
    ("pad_token_id", 40, r"must be None or lie between 0 and 39 \(vocab_size - 1\); got 40"),
    ("pad_token_id", -1, "must be None or lie between 0 and 39"),
])  # fmt: skip
@each_family
def test_a_field_of_another_type_is_refused(name, field, value, message):
    """As YAML and command lines give them: a string in the place of a switch was taken for `True`."""
    with pytest.raises(ValueError, match=field + ("" if message[0] == "=" else " ") + message):
        FAMILIES[name][0](**SIZES | {field: value})


@each_family
def test_a_switch_that_is_set_later_is_looked_at_too(name, tmp_path):
    Config, _, CausalLM, _, _ = FAMILIES[name]
    CausalLM(Config(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fuse_norm must be True or False; got 'no'"):
        CausalLM.from_pretrained(tmp_path, fuse_norm="no")


@each_family
def test_numbers_of_numpys_are_saved(name, tmp_path):
    Config, _, CausalLM, _, _ = FAMILIES[name]
    fields = {"pad_token_id": np.int64(0), "eos_token_id": [np.int64(2), 3], "tie_word_embeddings": np.bool_(True)}
    CausalLM(Config(**SIZES, **fields, use_cache=np.bool_(False))).save_pretrained(tmp_path)
    loaded = Config.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.tie_word_embeddings) == (0, [2, 3], True)
    assert loaded.use_cache is False


@each_family
def test_the_signature_has_every_field(name):
    Config, _, _, layer_class, _ = FAMILIES[name]
    fields = inspect.signature(Config).parameters
    assert set(inspect.signature(layer_class).parameters) - {"layer_idx"} < set(fields)
    assert (fields["gate_norm"].default, fields["num_hidden_layers"].default) == ("softmax", 24)


@each_family
def test_families_of_ones_own(name, tmp_path):
    """Derived classes, with a constructor and without, under a type of their own."""
    Config, _, CausalLM, layer_class, options = FAMILIES[name]

    class OwnConfig(Config):
        model_type = f"own-{name}"

    class OwnFieldConfig(OwnConfig):
        def __init__(self, scale=2.0, **kwargs):
            self.scale = scale
            super().__init__(**kwargs)

    class Own(CausalLM):
        config_class = OwnConfig

    x = torch.randint(0, 40, (2, 7))
    for config in (OwnConfig(**SIZES, **options), OwnFieldConfig(scale=3.0, **SIZES, **options)):
        model = Own(config).eval()
        assert type(model.model.layers[0].attn) is layer_class
        assert config.num_hidden_layers == 2
        model.save_pretrained(tmp_path)
        assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
        loaded = Own.from_pretrained(tmp_path, config=type(config).from_pretrained(tmp_path)).eval()
        assert torch.equal(loaded(x).logits, model(x).logits)
    assert loaded.config.scale == 3.0
    with pytest.raises(ValueError, match="did you mean 'gate_norm'"):
        OwnFieldConfig(gate_nrom="tanh")
    for cls, auto in ((OwnConfig, "AutoConfig"), (Own, "AutoModelForCausalLM")):  # whose code goes into a saved folder
        cls.register_for_auto_class(auto)
        cls.__base__.register_for_auto_class(auto)
        assert (cls._auto_class, cls.__base__._auto_class) == (auto, None)
        cls._auto_class = None
    AutoConfig.register(OwnConfig.model_type, OwnConfig)
    AutoModelForCausalLM.register(OwnConfig, Own)
    Own(OwnConfig(**SIZES)).save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is Own


def test_a_block_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="block_size=5 does not divide"):
        BDLRUForCausalLM(BDLRUConfig(**SIZES, block_size=5))


LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
from transformers import AutoModelForCausalLM

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "fla_bdlru":
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

def load(trust):
    try:
        model = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=trust)
        model.save_pretrained({folder!r} + "/again")
        print(type(model).__module__, type(model).__name__)
    except (ValueError, ImportError) as error:
        print(type(error).__name__, str(error).replace("\\n", " "))

load(trust=False)
sys.meta_path.insert(0, Absent())
load(trust=True)
sys.meta_path.pop(0)
load(trust=True)
"""


@each_family
def test_a_saved_model_names_the_package(name, tmp_path):
    """In a process that has not imported it: untrusted, trusted where the package is not installed, and where it is."""
    Config, _, CausalLM, _, options = FAMILIES[name]
    CausalLM(Config(**SIZES, **options)).save_pretrained(tmp_path)
    assert "library_name: fla_bdlru" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoConfig"].startswith("fla_bdlru_models.")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    printed = run_fresh("-c", LOAD.format(folder=str(tmp_path)), env=environment)
    untrusted, absent, loaded = (line for line in printed.splitlines() if not line.startswith("["))  # others' logs
    assert "trust_remote_code=True" in untrusted
    assert absent.startswith("ImportError This modeling file requires the following packages")
    assert "pip install fla_bdlru" in absent
    assert loaded == f"fla_bdlru.models.modeling {CausalLM.__name__}"
    assert (tmp_path / "again" / "fla_bdlru_models.py").read_text() == (tmp_path / "fla_bdlru_models.py").read_text()
    assert not (tmp_path / "again" / "modeling.py").exists()


@each_family
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_trains_and_generates(name, tied, fused):
    Config, _, CausalLM, _, options = FAMILIES[name]
    flags = {"fuse_norm": fused, "fuse_swiglu": fused, "fuse_cross_entropy": fused, "tie_word_embeddings": tied}
    model = CausalLM(Config(**SIZES, **options, **flags))
    x = torch.randint(3, 40, (2, 7))
    losses = train(model, lambda model: model(x, labels=x).loss, 3, 1e-2)
    assert losses[2] < losses[1] < losses[0]
    assert (model.lm_head.weight is model.model.embeddings.weight) == tied
    model.eval()
    greedy = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(x)
    with_cache = model.generate(x, attention_mask=mask, use_cache=True, **greedy)
    assert torch.equal(with_cache, model.generate(x, attention_mask=mask, use_cache=False, **greedy))


@each_family
def test_hybrid_with_attention(name):
    Config, _, CausalLM, layer_class, options = FAMILIES[name]
    model = CausalLM(Config(**SIZES, **options, attn={"layers": [1], "num_heads": 4}))
    assert type(model.model.layers[0].attn) is layer_class
    assert type(model.model.layers[1].attn).__name__ == "Attention"
    x = torch.randint(0, 40, (2, 7))
    model(x, labels=x).loss.backward()


@each_family
def test_mixer_field_works_on_native_models_too(name, tmp_path):
    Config, _, CausalLM, layer_class, options = FAMILIES[name]
    model = CausalLM(Config(**SIZES, **options, mixer=["native", "lstm"]))
    assert type(model.model.layers[1].attn).__name__ == "LSTM"
    CausalLM(Config(**SIZES, **options)).save_pretrained(tmp_path)
    loaded = CausalLM.from_pretrained(tmp_path, mixer=["lstm", "native"], ignore_mismatched_sizes=True)
    assert [type(block.attn).__name__ for block in loaded.model.layers] == ["LSTM", layer_class.__name__]


@each_family
def test_hidden_states_and_tuples(name):
    Config, Model, _, _, options = FAMILIES[name]
    model, x = Model(Config(**SIZES, **options)).eval(), torch.randint(0, 40, (2, 7))
    out = model(x, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(model(x, return_dict=False)[0], out.last_hidden_state)
    torch.testing.assert_close(model(inputs_embeds=model.embeddings(x)).last_hidden_state, out.last_hidden_state)
