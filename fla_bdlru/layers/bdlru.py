"""The BD-LRU layer."""

from __future__ import annotations

import torch

from fla_bdlru.layers.base import channels_from, check_count
from fla_bdlru.layers.gate_bias import memory_gates_bdlru, time_constants
from fla_bdlru.layers.gated import GatedRecurrence, takes_options
from fla_bdlru.ops.bdlru import chunk_bdlru, fused_recurrent_bdlru


class BDLRU(GatedRecurrence):
    r"""Block-diagonal linear recurrent unit: dense mixing of the channels within a block, every step.

    `o_proj(bdlru(v_proj(x), a_proj(x)))`, with H blocks of M = `block_size` channels. The defaults are the paper's plain
    layer: no convolution, no output gate, softmax gates.

    Features of the projections are gate-major: row `i*H + k` of `v_proj.weight` and column `i*H + k` of `o_proj.weight`
    belong to channel i of block k, row `(i*(M+1) + j)*H + k` of `a_proj` to the gate that weighs channel j for row i of
    block k (j = M: the input).

    Args:
        hidden_size (int):
            Width of the inputs and outputs.
        block_size (int, Optional):
            Channels of a block, M. 1 is the diagonal LRU. Default: 4.
        num_blocks (int, Optional):
            Number of blocks, H; a multiple of 16 keeps the kernels' loads wide. Default: `expand * hidden_size / block_size`.
        expand (float, Optional):
            Width of the state over `hidden_size`, unless `num_blocks` is given. Default: 1.0.
        gate_norm (str, Optional):
            One of `fla_bdlru.ops.GATE_NORMS`. Default: `"softmax"`.
        selective (bool, Optional):
            Whether gates depend on the input (`a_proj`); if not they are learned constants (`a_proj.bias`). Default: `True`.
        gate_bias (str, Optional):
            How the bias of the gates starts: `"uniform"` (zero, as in the paper) or `"memory"` (near the identity, time
            constants spread log-uniformly over `memory_range`). With `gate_norm="none"` it is rounded down in the dtype
            of the moment: after `.to(torch.bfloat16)`, which may round up, call `reset_parameters()`. Default: `"uniform"`.
        memory_range (tuple[float, float], Optional):
            Shortest and longest time constant of `gate_bias="memory"`, in steps. Default: `(2.0, 1024.0)`.
        use_short_conv (bool, Optional):
            Whether a short causal convolution with SiLU follows `v_proj`. Default: `False`.
        conv_size (int, Optional):
            Kernel size of the short convolution. Default: 4.
        conv_bias (bool, Optional):
            Whether the short convolution has a bias. Default: `False`.
        use_output_gate (bool, Optional):
            Whether a normalised output gate (`g_proj`, `o_norm`) precedes `o_proj`. Default: `False`.
        output_gate_activation (str, Optional):
            Activation of the output gate: `"swish"`, `"silu"` or `"sigmoid"`. Default: `"swish"`.
        norm_eps (float, Optional):
            Epsilon of the output gate's norm. Default: 1e-5.
        mode (str, Optional):
            Op to use: `"chunk"` or `"fused_recurrent"`; a single step without gradients always takes the latter.
            Default: `"chunk"`.
        layer_idx (int, Optional):
            Index of the layer in its model, which a cache needs. Default: `None`.
        recompute_gates (bool, Optional):
            Whether to keep the layer's input for the backward instead of the gate logits, which are computed again: the
            same gradients, in less memory and more time. Default: `False`.
        initial_state (str, Optional):
            What sequences and packed documents begin with: `"zero"`, or `"learned"`, the parameter `h0`. Default: `"zero"`.

    Raises:
        ValueError: if an option is not known, or the widths do not divide.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.layers import BDLRU
        >>> layer = BDLRU(hidden_size=64, block_size=4)
        >>> o, _, _ = layer(torch.randn(2, 10, 64))
        >>> assert o.shape == (2, 10, 64) and layer.num_blocks == 16 and layer.state_size() == 64
    """

    ops = chunk_bdlru, fused_recurrent_bdlru

    @takes_options
    def __init__(
        self, hidden_size: int, block_size: int = 4, num_blocks: int | None = None, expand: float = 1.0, **options
    ) -> None:
        super().__init__()
        check_count("block_size", block_size)
        self.block_size = block_size
        self.num_blocks = channels_from("num_blocks", num_blocks, block_size, hidden_size, expand, "block_size")
        self.gate_shape = (block_size, block_size + 1, self.num_blocks)
        self.width = self.readout_width = block_size * self.num_blocks
        self.build(hidden_size, **options)

    def initial_gates(self) -> torch.Tensor:
        return memory_gates_bdlru(self.block_size, time_constants(self.num_blocks, self.memory_range))

    def recur(self, v: torch.Tensor, g: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        # views: [B, T, M, H] -> [B, T, H, M] and [B, T, M, M+1, H] -> [B, T, H, M, M+1]
        v = v.unflatten(-1, (self.block_size, self.num_blocks)).transpose(2, 3)
        o, state = self.op(v)(v, g.permute(0, 1, 4, 2, 3), **options)
        return o.transpose(2, 3).flatten(2), state

    def state_size(self) -> int:
        return self.width + self.conv_state_size()

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, num_blocks={self.num_blocks}, {super().extra_repr()}"
