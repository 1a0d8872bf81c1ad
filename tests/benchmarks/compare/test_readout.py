"""The autoencoder readout: logits come from the last position's output and from positions, and from nothing else."""

import math

import pytest
import torch

from benchmarks.compare.models import build_model, quiet
from benchmarks.compare.readout import sinusoids


@pytest.fixture
def model():
    quiet()
    return build_model("bdlru", {"block_size": 2, "num_blocks": 16}, 16, 32, 2, 64, readout="autoencoder")


def test_sinusoids_equal_their_formula():
    table = sinusoids(9, 8)
    assert table.shape == (9, 8)
    for t in range(9):
        for i in range(4):
            angle = t * 10_000 ** (-i / 3)
            assert table[t, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[t, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_logits_are_decoded_position_by_position_from_the_last_output(model):
    tokens = torch.randint(16, (3, 10))
    logits = model(input_ids=tokens).logits
    assert logits.shape == (3, 10, 16)
    last = model.encoder(input_ids=tokens).last_hidden_state[:, -1]
    weights = dict(model.decoder.named_parameters())

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    for t in range(10):
        x = last + sinusoids(10, 32)[t]
        for i in (0, 3):
            x = norm(x, weights[f"{i}.weight"]) @ weights[f"{i + 1}.weight"].T + weights[f"{i + 1}.bias"]
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        x = norm(x, weights["6.weight"]) @ weights["7.weight"].T + weights["7.bias"]
        torch.testing.assert_close(logits[:, t], x, rtol=1e-4, atol=1e-5)


def test_every_token_reaches_every_logit_and_every_parameter_is_trained(model):
    tokens = torch.randint(16, (1, 8))
    logits = model(input_ids=tokens).logits
    for t in range(8):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 16
        assert (model(input_ids=changed).logits - logits).abs().amax(-1).min() > 0
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not any("lm_head" in name for name, _ in model.named_parameters())


def test_an_unknown_readout_is_refused():
    with pytest.raises(ValueError, match=r"readout='cls'.*tokens, autoencoder"):
        build_model("bdlru", {"block_size": 2}, 16, 32, 1, 64, readout="cls")
