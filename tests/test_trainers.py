"""DeepSpeed's ZeRO-3, on 2 gloo processes, and Lightning: training, saving and loading, against plain PyTorch."""

import os

import pytest
import torch
from ranks import run_ranks
from test_parallel import BATCH, STEPS, assert_same, build, each_mixer, tokens, train


def start_deepspeed(rank):
    """DeepSpeed on a CPU, joined by the gloo group that is there, without a kernel of its own to compile."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(rank))
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    return deepspeed, {
        "train_micro_batch_size_per_gpu": BATCH // 2,
        "gradient_clipping": 0.0,  # 1.0 unless said otherwise
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }


def whole(deepspeed, model):
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def zero_3_on(rank, mixer, folder):
    """Losses and weights of a training as in `train`; the logits before a checkpoint is saved and after it is loaded."""
    deepspeed, config = start_deepspeed(rank)
    model = build(mixer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    batch, losses = tokens().chunk(2)[rank], []
    for _ in range(STEPS):
        losses.append(engine(batch, labels=batch).loss)
        engine.backward(losses[-1])
        engine.step()
    weights = whole(deepspeed, model)
    engine.save_checkpoint(folder)
    engine.backward(engine(batch, labels=batch).loss)
    engine.step()
    changed = whole(deepspeed, model)
    engine.load_checkpoint(folder)
    return torch.stack(losses).detach(), weights, changed, whole(deepspeed, model)


@each_mixer
def test_deepspeed_zero_3(mixer, tmp_path):
    """Two processes train as one does, a checkpoint goes back, and its shards become the weights of a model."""
    pytest.importorskip("deepspeed")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    one = train(build(mixer), tokens())
    ranks = run_ranks(2, zero_3_on, mixer, tmp_path)
    torch.testing.assert_close(torch.stack([losses for losses, *_ in ranks]).mean(0), one["losses"])
    for _, weights, changed, loaded in ranks:
        assert_same(weights, one["weights"])
        assert any(not torch.equal(changed[name], weights[name]) for name in weights)
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert_same(get_fp32_state_dict_from_zero_checkpoint(tmp_path), one["weights"])


def split_on(rank, mixer):
    deepspeed, config = start_deepspeed(rank)
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = build(mixer)
    assert all(p.numel() == 0 for p in model.parameters())
    return whole(deepspeed, model)


@each_mixer
def test_gates_start_right_where_zero_3_splits_a_model_as_it_is_made(mixer):
    pytest.importorskip("deepspeed")
    one = build(mixer).state_dict()
    for weights in run_ranks(2, split_on, mixer):
        biases = [name for name in weights if name.endswith("a_proj.bias")]
        assert len(biases) == 2
        assert all(torch.equal(weights[name], one[name]) for name in biases)


@each_mixer
def test_lightning(mixer, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = build(mixer), []

        def training_step(self, batch, _):
            loss = self.model(batch, labels=batch).loss
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=STEPS, default_root_dir=tmp_path, **quiet)
    module, one = Module(), train(build(mixer), tokens())
    trainer.fit(module, torch.utils.data.DataLoader(tokens(), batch_size=BATCH))
    torch.testing.assert_close(torch.stack(module.losses), one["losses"])
    assert_same(module.model.state_dict(), one["weights"])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert_same(loaded.model.state_dict(), one["weights"])
