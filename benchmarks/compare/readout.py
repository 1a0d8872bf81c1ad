"""The autoencoder readout: a whole sequence is decoded from the model's output at its last position.

Source: the compression task of Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput


def sinusoids(length: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Encodings of positions, float32 of shape `[length, width]`, for an even width of at least 4.

    Half of the channels are sines, the others cosines, of geometrically spaced frequencies from 1 to 1/10,000.
    """
    frequency = torch.logspace(0, -4, width // 2, device=device)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


class AutoEncoder(nn.Module):
    r"""Logits for every position from the last position's output and each position's encoding.

    The blocks of a causal LM are kept, with their last norm; its head is not. Their output at the last position plus
    the encoding of position t goes through an MLP that is as wide as the model, twice norm, linear, GELU, then through
    norm and linear to the logits of token t. So a token can be right only if the mixers brought it to the last position.

    Example:
        >>> import torch
        >>> from benchmarks.compare.models import build_model
        >>> model = build_model("bdlru", {"block_size": 2}, 16, 32, 1, 64, readout="autoencoder")
        >>> assert model(input_ids=torch.randint(16, (2, 8))).logits.shape == (2, 8, 16)
    """

    def __init__(self, host: nn.Module):
        super().__init__()
        config, width = host.config, host.config.hidden_size
        self.encoder = host.model
        self.decoder = nn.Sequential()
        for _ in range(2):
            self.decoder.extend([nn.RMSNorm(width, eps=config.norm_eps), nn.Linear(width, width), nn.GELU()])
        self.decoder.extend([nn.RMSNorm(width, eps=config.norm_eps), nn.Linear(width, config.vocab_size)])
        for layer in self.decoder:
            if isinstance(layer, nn.Linear):  # as FLA starts its own
                nn.init.normal_(layer.weight, std=config.initializer_range)
                nn.init.zeros_(layer.bias)

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        last = self.encoder(input_ids=input_ids).last_hidden_state[:, -1:]
        positions = sinusoids(input_ids.shape[1], last.shape[-1], last.device)
        return CausalLMOutput(logits=self.decoder(last + positions.to(last.dtype)))
