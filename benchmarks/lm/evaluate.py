"""Perplexity and bits per byte: the same tokens, read in windows of several lengths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.lm.text import Windows

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator


def scored_tokens(available: int, longest: int, limit: int | None) -> int:
    """How many targets are scored, `limit` at most: a multiple of the longest window, so every length scores the same ones.

    ValueError, if the validation stream does not hold one window of that length.
    """
    usable = min(available - 1, limit or available)
    total = usable // longest * longest
    if not total:
        raise ValueError(
            f"evaluation.multiples: a window of {longest:,} tokens is longer than the {usable:,} validation tokens that may "
            "be scored; see data.validation_tokens and evaluation.tokens."
        )
    return total


@torch.no_grad()
def position_losses(
    model: torch.nn.Module, tokens: np.ndarray, length: int, total: int, accelerator: Accelerator, batch_tokens: int
) -> torch.Tensor:
    """Mean loss at each position of a window, in nats per token: `[length]`, float64, the same on every process.

    `total` targets are scored, a multiple of `length`; each window starts from an empty state. A device takes `batch_tokens`
    at a time.
    """
    model.eval()
    windows = DataLoader(Windows(tokens, length, total), batch_size=max(1, batch_tokens // length))
    sums = torch.zeros(length, dtype=torch.float64)
    for inputs, targets in accelerator.prepare_data_loader(windows):
        logits = model(input_ids=inputs).logits
        rows = [F.cross_entropy(row.float(), target, reduction="none") for row, target in zip(logits, targets)]
        sums += accelerator.gather_for_metrics(torch.stack(rows)).double().sum(0).cpu()
    return sums / (total // length)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats per token as bits per byte of text."""
    return loss / math.log(2) / bytes_per_token


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def octaves(losses: torch.Tensor) -> list[tuple[int, float]]:
    """Mean loss of positions 1, 2, 3..4, 5..8, ...: pairs of the last position and the mean."""
    means, start = [], 0
    while start < len(losses):
        stop = min(max(1, 2 * start), len(losses))
        means.append((stop, losses[start:stop].mean().item()))
        start = stop
    return means
