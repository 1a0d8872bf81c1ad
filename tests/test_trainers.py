"""DeepSpeed's ZeRO-3, on 2 gloo processes, and Lightning, against plain PyTorch; TRL's reward trainer with PEFT."""

import os

import pytest
import torch
from ranks import run_ranks
from test_parallel import BATCH, STEPS, assert_same, build, each_mixer, tokens, train

from fla_bdlru import BDLRUConfig, HLRUConfig


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


@each_mixer
def test_trl_trains_rewards(mixer, tmp_path):
    """Adapters and a head learn to prefer a token; the reward model is saved and loaded."""
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(12)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t1")), pad_token="t0", eos_token="t2"
    )
    config = {"bdlru": BDLRUConfig, "hlru": HLRUConfig}[mixer](
        hidden_size=16, num_hidden_layers=2, vocab_size=12, intermediate_size=16, pad_token_id=0, num_labels=1
    )
    model = AutoModelForSequenceClassification.from_config(config)
    good, bad = ([[*torch.randint(4, 12, (3 + i % 3,)).tolist(), last] for i in range(32)] for last in (3, 1))
    data = Dataset.from_dict({"chosen_ids": good, "rejected_ids": bad})
    options = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "bf16": False}
    options |= {"per_device_train_batch_size": 8, "logging_steps": 1, "gradient_checkpointing": False}
    trainer = trl.RewardTrainer(
        model,
        trl.RewardConfig(output_dir=str(tmp_path), max_steps=12, learning_rate=5e-2, **options),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(task_type="SEQ_CLS", target_modules=["v_proj", "a_proj", "o_proj"]),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    merged, x = trainer.model.merge_and_unload(), torch.tensor([[5, 6, 3, 0], [5, 6, 7, 1]])
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rewards = loaded(x, attention_mask=x != 0).logits
    assert torch.equal(rewards, merged.eval()(x, attention_mask=x != 0).logits)
    assert rewards[0] > rewards[1]
