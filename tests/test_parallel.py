"""DDP, FSDP2 and sharded checkpoints of an FLA model with our mixers, on 2 and 4 gloo processes, against one process."""

from functools import cache

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
from ranks import run_ranks
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

import fla_bdlru  # noqa: F401
from examples.convert_checkpoint import dcp_to_hf, hf_to_dcp

MIXERS = {
    "bdlru": {"block_size": 4, "gate_bias": "memory"},
    "hlru": {"order": 3, "gate_bias": "memory", "recompute_gates": True},
}
each_mixer = pytest.mark.parametrize("mixer", MIXERS)
KEYS = {"bdlru": "", "hlru": "model"}  # where a checkpoint holds the weights
each_way = pytest.mark.parametrize("way", ["ddp", "fsdp"])
STEPS, BATCH = 2, 4


def build(mixer, tied=False):
    torch.manual_seed(0)
    config = GatedDeltaNetConfig(
        hidden_size=16, num_hidden_layers=2, vocab_size=32, hidden_ratio=2, tie_word_embeddings=tied,
        mixer=mixer, mixer_config=MIXERS[mixer],
    )  # fmt: skip
    return GatedDeltaNetForCausalLM(config)


def tokens():
    return torch.randint(0, 32, (BATCH, 9), generator=torch.Generator().manual_seed(1))


def shard(model):
    for block in model.model.layers:
        fully_shard(block)
    return fully_shard(model)


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def train(model, batch):
    """Losses of a few steps, the gradients of the first, and the weights at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)  # Adam would blow up the rounding of small gradients
    losses, grads = [], {}
    for _ in range(STEPS):
        loss = model(batch, labels=batch).loss
        loss.backward()
        losses.append(loss.detach())
        grads = grads or {name: whole(p.grad).clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return {
        "losses": torch.stack(losses),
        "grads": grads,
        "weights": {n: whole(p).detach() for n, p in model.named_parameters()},
    }


def train_on(rank, world_size, tied):
    rows, results = BATCH // world_size, {}
    for mixer in MIXERS:
        for way, wrap in (("ddp", DistributedDataParallel), ("fsdp", shard)):
            results[mixer, way] = train(wrap(build(mixer, tied)), tokens()[rank * rows : (rank + 1) * rows])
    return results


@cache
def launch(world_size, tied):
    return run_ranks(world_size, train_on, world_size, tied)


def assert_same(got, expected):
    assert {name.removeprefix("module.") for name in got} == set(expected)
    for name, x in got.items():
        name = name.removeprefix("module.")
        torch.testing.assert_close(x, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@each_mixer
@each_way
@pytest.mark.parametrize("world_size, tied", [(2, True), (4, False)])
def test_training_equals_one_process(mixer, way, world_size, tied):
    ranks, one = [rank[mixer, way] for rank in launch(world_size, tied)], train(build(mixer, tied), tokens())
    torch.testing.assert_close(torch.stack([rank["losses"] for rank in ranks]).mean(0), one["losses"])
    for rank in ranks:
        assert_same(rank["grads"], one["grads"])
        assert_same(rank["weights"], one["weights"])


def initialize_on(rank):
    return {mixer: initialize(mixer) for mixer in MIXERS}


def initialize(mixer):
    """As torchtitan and flame build a model: on no device, then sharded, then given memory and initialised."""
    with torch.device("meta"):
        model = build(mixer)
        model.apply(lambda module: setattr(module, "_is_hf_initialized", False))
    shard(model).to_empty(device="cpu")
    with torch.no_grad():
        model.post_init()
    return {name: whole(p).detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def initialized():
    return run_ranks(2, initialize_on)


@each_mixer
def test_initialisation_after_sharding(mixer, initialized):
    one = {name: p.detach() for name, p in build(mixer).named_parameters()}
    for rank in initialized:
        for name, x in rank[mixer].items():
            if name.endswith("bias") or "norm" in name:
                torch.testing.assert_close(x, one[name], msg=name)
            else:
                assert 0.5 < x.std() / one[name].std() < 2, name


def save_on(rank, mixer, folder):
    model = shard(build(mixer))
    train(model, tokens()[rank : rank + 1])
    state = get_model_state_dict(model)
    dcp.save({KEYS[mixer]: state} if KEYS[mixer] else state, checkpoint_id=folder)
    return model.eval()(tokens()).logits.detach()


def load_on(rank, mixer, folder):
    model = shard(build(mixer))
    torch.nn.init.zeros_(model.lm_head.weight)
    state = get_model_state_dict(model)
    dcp.load({KEYS[mixer]: state} if KEYS[mixer] else state, checkpoint_id=folder)
    set_model_state_dict(model, state)
    return model.eval()(tokens()).logits.detach()


@each_mixer
def test_sharded_checkpoint_to_huggingface_and_back(mixer, tmp_path):
    """Saved by 4 ranks, converted, loaded by an Auto class, converted back, loaded by 2 ranks: equal logits."""
    build(mixer).config.save_pretrained(tmp_path / "config")
    sharded = run_ranks(4, save_on, mixer, tmp_path / "dcp")
    dcp_to_hf(tmp_path / "dcp", tmp_path / "config", tmp_path / "hf", KEYS[mixer])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        logits = loaded(tokens()).logits
    for got in sharded:
        torch.testing.assert_close(got, logits)
    hf_to_dcp(tmp_path / "hf", tmp_path / "back", KEYS[mixer])
    for got in run_ranks(2, load_on, mixer, tmp_path / "back"):
        torch.testing.assert_close(got, logits)
