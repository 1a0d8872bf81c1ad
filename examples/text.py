"""A text that every Python brings along, as bytes: enough to see a loss fall without a download."""

import pydoc_data.topics

import torch

VOCAB_SIZE = 256


def load_tokens() -> torch.Tensor:
    """About 700 kB of Python's own documentation, one token a byte."""
    return torch.frombuffer(bytearray("\n".join(pydoc_data.topics.topics.values()).encode()), dtype=torch.uint8).long()
