"""Scores: against losses computed one token at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from benchmarks.lm.evaluate import bits_per_byte, octaves, perplexity, position_losses, scored_tokens


class Counter(torch.nn.Module):
    """Predicts the next token from the mean of the window so far: its loss depends on where a window starts."""

    def __init__(self, vocab):
        super().__init__()
        self.table = torch.nn.Embedding(vocab, vocab)

    def forward(self, input_ids):
        x = self.table(input_ids)
        return SimpleNamespace(logits=x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


@pytest.mark.parametrize("length, batch_tokens", [(5, 20), (5, 1), (20, 7), (60, 1000)])
def test_losses_by_position(length, batch_tokens):
    tokens, model = np.random.default_rng(0).integers(7, size=70).astype(np.uint16), Counter(7)
    got = position_losses(model, tokens, length, 60, Accelerator(cpu=True), batch_tokens)
    expected = np.zeros(length)
    table = model.table.weight.detach().double().numpy()
    for start in range(0, 60, length):
        for i in range(length):
            logits = table[tokens[start : start + i + 1]].mean(0)
            expected[i] -= logits[tokens[start + i + 1]] - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(got.numpy(), expected / (60 // length), rtol=1e-5)


def test_a_uniform_guess_over_bytes_is_eight_bits():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(2**16), 4.0) == pytest.approx(4)
    assert perplexity(math.log(256)) == pytest.approx(256)
    assert perplexity(1e4) == math.inf


def test_octaves_cover_every_position_once():
    losses = torch.arange(12, dtype=torch.float64)
    assert octaves(losses) == [(1, 0.0), (2, 1.0), (4, 2.5), (8, 5.5), (12, 9.5)]


def test_scored_tokens_are_whole_windows():
    assert scored_tokens(1000, 64, None) == 960
    assert scored_tokens(961, 64, None) == 960
    assert scored_tokens(960, 64, None) == 896  # the last target would be missing
    assert scored_tokens(1000, 64, 200) == 192
    with pytest.raises(ValueError, match=r"window of 2,048 tokens is longer than the 999 validation tokens"):
        scored_tokens(1000, 2048, None)
