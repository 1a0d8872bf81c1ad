"""Weight decay leaves the gates' bias and a learned start alone: in copies, after sharding and with transformers' Trainer."""

import copy
import re
from pathlib import Path

import fla.layers
import pytest
import torch
from fla.layers import Mamba, Mamba2
from fla.models import GLAConfig, GLAForCausalLM, MambaConfig, MambaForCausalLM
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.swa_utils import AveragedModel
from transformers import Trainer, TrainingArguments

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM
from fla_bdlru.layers import HLRU
from fla_bdlru.layers.weight_decay import FLA_MARKS, decaying_parameters, weight_decay_groups

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 20, "intermediate_size": 16}


def native():
    return BDLRUForCausalLM(BDLRUConfig(**SIZES, block_size=2, initial_state="learned", use_output_gate=True))


def swapped():
    config = GLAConfig(**SIZES, num_heads=2, mixer=["hlru", "native"], mixer_config={"initial_state": "learned"})
    return GLAForCausalLM(config)


def decays(name, parameter):
    return parameter.ndim > 1 and not name.endswith(("a_proj.bias", "h0"))


@pytest.mark.parametrize("make", [native, swapped])
def test_copies_and_what_is_made_anew(make):
    model = make()
    expected = [name for name, p in model.named_parameters() if decays(name, p)]
    anew = model.to("meta").to_empty(device="cpu")  # as sharding does, other parameters in the place of what they were
    for each in (make(), copy.deepcopy(make()), copy.deepcopy(anew)):
        assert decaying_parameters(each) == expected
    averaged = AveragedModel(make(), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    assert decaying_parameters(averaged) == [f"module.{name}" for name in expected]


def test_weights_that_zero_3_has_split():
    """One axis is left of each; DeepSpeed says what it was."""
    model = native()
    expected = [name for name, p in model.named_parameters() if decays(name, p)]
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = parameter.new_empty(0)
    assert decaying_parameters(model) == expected


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_flat_parameters_are_refused(tmp_path, use_orig_params):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = FullyShardedDataParallel(native(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match=r"FSDP1\), whose parameters are flat: find the names before it is wrapped"):
            decaying_parameters(model)
    finally:
        torch.distributed.destroy_process_group()


def test_what_others_have_marked():
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20, state_size=4))
    assert not any(name.endswith(("A_log", "D")) for name in decaying_parameters(model))


@pytest.mark.parametrize(
    "layer", [lambda: Mamba(16, 4), lambda: Mamba2(head_dim=8, hidden_size=16, state_size=4, D_has_hdim=True)]
)
def test_what_others_have_marked_in_copies(layer):
    layer = layer()
    expected = [name for name, p in layer.named_parameters() if p.ndim > 1 and not hasattr(p, "_no_weight_decay")]
    assert not any(name.endswith(("A_log", "D")) for name in expected)
    assert decaying_parameters(copy.deepcopy(layer)) == decaying_parameters(layer) == expected


def test_whatever_fla_marks_is_known():
    sources = (path.read_text() for path in Path(fla.layers.__file__).parent.glob("*.py"))
    assert {name for source in sources for name in re.findall(r"self\.(\w+)\._no_weight_decay", source)} == FLA_MARKS


def test_groups():
    layer = HLRU(16, order=2, initial_state="learned")
    layer.v_proj.weight.requires_grad_(False)
    decaying, others = weight_decay_groups(layer, 0.5)
    assert [id(p) for p in decaying["params"]] == [id(layer.a_proj.weight), id(layer.o_proj.weight)]
    assert {id(p) for p in others["params"]} == {id(layer.a_proj.bias), id(layer.h0)}
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.AdamW([decaying, others], lr=0.1)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p, before[name] * (0.95 if name in ("a_proj.weight", "o_proj.weight") else 1.0))
    assert weight_decay_groups(layer.requires_grad_(False), 0.1)[0]["params"] == []
    for value in (-0.1, "0.1", None, True, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"weight_decay must be a number from 0 on; got"):
            weight_decay_groups(layer, value)


def test_trainer_by_the_recipe(tmp_path):
    class OurTrainer(Trainer):
        def get_decay_parameter_names(self, model):
            return decaying_parameters(model)

    model = native()
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, weight_decay=0.2)
    optimizer = OurTrainer(model, arguments).create_optimizer()
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in spared} == {
        name for name, p in model.named_parameters() if not decays(name, p)
    }
