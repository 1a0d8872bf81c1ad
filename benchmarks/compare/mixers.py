"""Mixers of the comparison alone: PD-SSM and block-diagonal SLiCE, written from their papers, transformers' mLSTM, and FLA's
RWKV-7 by itself.

All but the last train and score whole sequences: no cache, no padding, no packed documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
from fla.layers.rwkv7 import RWKV7Attention
from torch import nn

from fla_bdlru.layers.measure import linear_flops_per_token
from fla_bdlru.mixers import register_mixer

TIME_STEP = 1 / 40  # of SLiCE: what the increments of its path are scaled by
BOUND = 1e11  # of what a step of SLiCE adds: far from what is used, before float32 ends


def _keep_init(*modules: nn.Module) -> None:
    # the host model would draw them anew
    for parameter in (p for module in modules for p in module.parameters()):
        parameter._is_hf_initialized = not parameter.is_meta


class WholeSequences(nn.Module):
    """A layer with FLA's signature that runs from the first token to the last: `mix` of [B, T, hidden_size]."""

    def forward(self, hidden_states: torch.Tensor, use_cache: bool = False, **given) -> tuple[torch.Tensor, None, None]:
        given["use_cache"] = use_cache or None
        for name in ("attention_mask", "past_key_values", "use_cache", "cu_seqlens"):
            if given.get(name) is not None:
                raise ValueError(f"{name} is set; {type(self).__name__} takes whole sequences only, expected None.")
        return self.mix(hidden_states), None, None


class _OneHot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        soft = logits.softmax(-1)
        ctx.save_for_backward(soft)
        return torch.zeros_like(soft).scatter_(-1, logits.max(-1, keepdim=True).indices, 1.0)

    @staticmethod
    def backward(ctx, grad):
        (soft,) = ctx.saved_tensors
        return torch._softmax_backward_data(grad, soft, -1, soft.dtype)


def column_one_hot(logits: torch.Tensor) -> torch.Tensor:
    r"""A one in every column `logits[..., :, j]` where it is largest, with the gradient of the column's softmax.

    Example:
        >>> import torch
        >>> from benchmarks.compare.mixers import column_one_hot
        >>> column_one_hot(torch.tensor([[0.1, 3.0], [0.2, -1.0]])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return _OneHot.apply(logits.mT).mT


class PDSSM(WholeSequences):
    r"""PD-SSM: the transition is a column one-hot matrix times a complex diagonal one.

        x_t = P_t D_t x_{t-1} + B u_t,    y_t = W [Re x_t; Im x_t] + b + d * u_t

    P_t is the hard maximum, column by column, of a mixture of `dictionary` learned matrices, weighed by softmax(S u_t); its
    gradient is that of the softmax. Magnitudes (sigmoid) and phases (2 pi sigmoid) of D_t come from two MLPs of u_t with one
    GELU layer of width 2 `d_state`; the state has so many complex values. It starts at (1, 0, .., 0), the weights as in its
    authors' code.

    Source: arXiv 2509.22284.

    Example:
        >>> import torch
        >>> from benchmarks.compare.mixers import PDSSM
        >>> layer = PDSSM(16, d_state=4)
        >>> assert layer(torch.randn(2, 6, 16))[0].shape == (2, 6, 16) and layer.state_size() == 8
    """

    def __init__(self, hidden_size: int, d_state: int | None = None, dictionary: int = 8, layer_idx: int | None = None):
        super().__init__()
        self.hidden_size, self.layer_idx, self.dictionary = hidden_size, layer_idx, dictionary
        self.d_state = N = d_state or hidden_size // 2
        self.selector = nn.Linear(hidden_size, dictionary, bias=False)
        self.matrices = nn.Parameter(torch.randn(dictionary, N, N) / math.sqrt(N))
        self.magnitude, self.phase = (
            nn.Sequential(nn.Linear(hidden_size, 2 * N), nn.GELU(), nn.Linear(2 * N, N), nn.Sigmoid()) for _ in range(2)
        )
        self.b_proj = nn.Linear(hidden_size, 2 * N, bias=False)  # real and imaginary parts, side by side
        nn.init.normal_(self.b_proj.weight, std=1 / math.sqrt(2 * N))
        self.o_proj = nn.Linear(2 * N, hidden_size)
        self.skip = nn.Parameter(torch.randn(hidden_size) / math.sqrt(hidden_size))
        _keep_init(self)

    def transitions(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """P [B, T, N, N], real, and D [B, T, N], complex."""
        mixed = self.selector(u).softmax(-1) @ self.matrices.mT.flatten(1)  # columns lie together
        P = column_one_hot(mixed.unflatten(-1, (self.d_state, self.d_state)).mT)
        return P, torch.polar(self.magnitude(u), 2 * math.pi * self.phase(u))

    def mix(self, u: torch.Tensor) -> torch.Tensor:
        P, D = self.transitions(u)
        inputs = self.b_proj(u).unflatten(-1, (self.d_state, 2))
        x = torch.zeros_like(inputs[:, 0])
        x[:, 0, 0] = 1
        states = []
        for P_t, D_t, b_t in zip(P.unbind(1), D.unbind(1), inputs.unbind(1)):
            x = torch.baddbmm(b_t, P_t, torch.view_as_real(D_t * torch.view_as_complex(x)))
            states.append(x)
        return self.o_proj(torch.stack(states, 1).flatten(-2)) + self.skip * u

    def state_size(self) -> int:
        """Real numbers."""
        return 2 * self.d_state

    def flops_per_token(self) -> int:
        """Linear maps, the mixture and its columns' maxima, D x, P times it, the inputs, and what is elementwise."""
        N = self.d_state
        elementwise = 2 * 3 * N + 4 * N + 2 * self.hidden_size  # GELUs, sigmoids, polar form; skip
        return linear_flops_per_token(self) + (2 * self.dictionary + 1) * N * N + (6 + 2 + 2) * N + elementwise


class SLiCE(WholeSequences):
    r"""Block-diagonal SLiCE: a linear controlled differential equation in Euler's steps, its blocks dense and unbounded.

        h_1 = B x_1,    h_t = h_{t-1} + sum_i dw_t^i A_i h_{t-1},    y_t = W h_t

    dw_t = (1, x_t) / 40, so that A's bias is the channel of time; each A_i has blocks of size `block_size`. As in the paper's
    experiments the first token is the initial state, and weights start normal, B's with a standard deviation of 1, A's of one
    over the root of the block size: the scale of the steps is no part of the weights, so A learns 40 times as slowly. What a
    step adds goes through 1e11 tanh(. / 1e11), as in their code, where nothing else keeps h finite.

    Source: arXiv 2505.17761.

    Example:
        >>> import torch
        >>> from benchmarks.compare.mixers import SLiCE
        >>> layer = SLiCE(16, block_size=2)
        >>> assert layer(torch.randn(2, 6, 16))[0].shape == (2, 6, 16) and layer.state_size() == 16
    """

    def __init__(self, hidden_size: int, block_size: int = 4, num_blocks: int | None = None, layer_idx: int | None = None):
        super().__init__()
        self.hidden_size, self.layer_idx, self.block_size = hidden_size, layer_idx, block_size
        self.num_blocks = num_blocks or hidden_size // block_size
        width = block_size * self.num_blocks
        self.a_proj = nn.Linear(hidden_size, block_size * width)
        self.b_proj = nn.Linear(hidden_size, width)
        self.b_proj.once_a_sequence = True
        for layer, std in ((self.a_proj, 1 / math.sqrt(block_size)), (self.b_proj, 1.0)):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=std)
        self.o_proj = nn.Linear(width, hidden_size, bias=False)
        _keep_init(self.a_proj, self.b_proj)

    def mix(self, u: torch.Tensor) -> torch.Tensor:
        m = self.block_size
        A = TIME_STEP * self.a_proj(u).unflatten(-1, (m, m, self.num_blocks))
        h = self.b_proj(u[:, 0]).unflatten(-1, (m, self.num_blocks))
        states = [h]
        for A_t in A.unbind(1)[1:]:
            h = h + BOUND * torch.tanh((A_t * h[:, None]).sum(2) / BOUND)
            states.append(h)
        return self.o_proj(torch.stack(states, 1).flatten(2))

    def state_size(self) -> int:
        return self.block_size * self.num_blocks

    def flops_per_token(self) -> int:
        """Of a token after the first: linear maps, the steps' scale, A h, its bound, and its sum with h."""
        return linear_flops_per_token(self) + 3 * self.block_size * self.state_size() + 4 * self.state_size()


class _Chunks(nn.Module):
    """In the place of a layer's `xLSTMBackend`: its chunkwise kernel on any length, in equal chunks, zeros after the end."""

    def __init__(self, kernel: Callable[..., torch.Tensor], longest: int, eps: float):
        super().__init__()
        self.kernel, self.longest, self.eps = kernel, longest, eps

    def forward(self, **given: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        length = given["igate"].shape[-1]
        chunks = math.ceil(length / self.longest)
        size = math.ceil(length / chunks)
        missing = size * chunks - length
        for names, pads in ((("query", "key", "value"), (0, 0, 0, missing)), (("igate", "fgate"), (0, missing))):
            given |= {name: F.pad(given[name], pads) for name in names if missing}
        return self.kernel(**given, chunk_size=size, eps=self.eps)[:, :, :length], None


class MLSTM(WholeSequences):
    r"""xLSTM's mLSTM, the layer of transformers in PyTorch: a matrix memory with exponential input gates.

        C_t = f_t C_{t-1} + i_t v_t k_t^T,    n_t = f_t n_{t-1} + i_t k_t,    h_t = C_t q_t / max(|n_t^T q_t|, 1)

    for each head, with i_t = exp(g(a_i)), f_t = sigmoid(g(a_f)), keys over the root of their width. y_t is a linear map of
    sigmoid(W_o x_t) * LayerNorm(h_t), the norm for each head. What is kept of C and n is divided by exp(m_t), m_t the largest
    exponent so far, which is state, too.

    As in xLSTM 7B and unlike the first paper: gates are capped, g(a) = 15 tanh(a / 15), no map but those of i and f has a
    bias, and there is neither a short convolution nor a wider space around the layer. 1e-6 is added to the divisor, in units
    of exp(m_t). Gates start as in transformers' model: weights of zero, i at exp(-10), f at sigmoid(3) to sigmoid(6).

    Source: arXiv 2405.04517, and 2503.13427 for the layer.

    Args:
        hidden_size (int):
            Width of inputs and outputs.
        num_heads (int, Optional):
            Number of heads. Default: 4.
        expand_k (float, Optional):
            Key channels of all heads, as a share of the width. Default: 0.5.
        expand_v (float, Optional):
            Value channels of all heads, as a share of the width. Default: 1.0.
        chunk_size (int, Optional):
            The most tokens that are computed at a time; outputs do not depend on it. Default: 64.
        layer_idx (int, Optional):
            Index of the layer in its model. Default: `None`.

    Raises:
        ValueError: if heads do not divide channels, or transformers has no mLSTM of its own in PyTorch: it takes those of the
            package xlstm where that is installed.

    Example:
        >>> import torch
        >>> from benchmarks.compare.mixers import MLSTM
        >>> layer = MLSTM(16, num_heads=2)
        >>> assert layer(torch.randn(2, 6, 16))[0].shape == (2, 6, 16) and layer.state_size() == 2 * (4 * 8 + 4 + 1)
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        chunk_size: int = 64,
        layer_idx: int | None = None,
    ):
        super().__init__()
        try:
            from transformers.models.xlstm.configuration_xlstm import xLSTMConfig
            from transformers.models.xlstm.modeling_xlstm import xLSTMLayer
        except ImportError as error:
            raise ValueError(
                f"mlstm needs xLSTMLayer of transformers, which {transformers.__version__} has not here; expected 5.6.2 or "
                f"later, and no package xlstm, whose classes it would take instead: {error}."
            ) from error
        self.hidden_size, self.layer_idx, self.num_heads = hidden_size, layer_idx, num_heads
        for name, expand in (("expand_k", expand_k), ("expand_v", expand_v)):
            channels = int(hidden_size * expand)
            if channels < 1 or channels % num_heads:
                raise ValueError(f"{name}={expand} makes {channels} channels; expected a multiple of num_heads={num_heads}.")
        self.layer = xLSTMLayer(
            xLSTMConfig(
                hidden_size=hidden_size, num_heads=num_heads, qk_dim_factor=float(expand_k), v_dim_factor=float(expand_v)
            )
        )
        self.key_dim, self.value_dim = self.layer.qk_dim // num_heads, self.layer.v_dim // num_heads  # of a head
        backend = self.layer.mlstm_backend
        self.layer.mlstm_backend = _Chunks(backend.chunkwise_kernel_fn, chunk_size, self.layer.config.eps)
        gates = self.layer.igate_preact, self.layer.fgate_preact, self.layer.ogate_preact
        for gate in gates:
            nn.init.zeros_(gate.weight)
        with torch.no_grad():
            self.layer.igate_preact.bias.fill_(-10.0)
            self.layer.fgate_preact.bias.copy_(torch.linspace(3.0, 6.0, num_heads))
        _keep_init(*gates)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]

    def state_size(self) -> int:
        """C, n and m of every head."""
        return self.num_heads * (self.key_dim * self.value_dim + self.key_dim + 1)

    def flops_per_token(self) -> int:
        """Linear maps; for each head C's update and C q, n and n^T q, the division, the norm, and the gates."""
        K, V = self.key_dim, self.value_dim
        memory = 3 * K * V + 2 * K * V + 6 * K
        gates = 2 * 3 + 7 + 5  # their caps; log f, m, and both gates over exp(m); exp(-m), |.|, max and what is added
        return linear_flops_per_token(self) + self.num_heads * (memory + V + (5 * V + 2) + 2 * V + gates)


class RWKV7(RWKV7Attention):
    r"""FLA's RWKV-7 time mixing, without the values that its model hands from the first layer to the others.

    Source: arXiv 2503.14456.

    Example:
        >>> import torch
        >>> from benchmarks.compare.mixers import RWKV7
        >>> assert len(RWKV7(32)(torch.randn(2, 6, 32))) == 3
    """

    def __init__(self, hidden_size: int, num_heads: int = 4, layer_idx: int | None = None):
        # the number of layers sets initial values only
        super().__init__(hidden_size=hidden_size, head_dim=None, num_heads=num_heads, layer_idx=0, num_hidden_layers=2)
        _keep_init(self)

    def forward(self, *args, **kwargs) -> tuple[torch.Tensor, None, object]:
        return super().forward(*args, **kwargs)[:3]


register_mixer("rwkv7", RWKV7)
register_mixer("pd_ssm", PDSSM)
register_mixer("slice", SLiCE)
register_mixer("mlstm", MLSTM)
