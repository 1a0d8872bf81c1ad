"""BD-LRU and H-LRU as layers of mamba_ssm: `MambaConfig(ssm_cfg={"layer": "BDLRU", "block_size": 4})`.

mamba_ssm looks a block's layer up by name, in `create_block` of `mamba_ssm.models.mixer_seq_simple`. That module is extended
right after Python has executed it (or at once, where it is loaded already), so `import fla_bdlru` is all the set-up, before
or after mamba_ssm, and mamba_ssm itself is imported by whoever uses it.

On CPU tensors mamba_ssm's fused norms run through PyTorch, as FLA's do (`fla_bdlru.fla_cpu`).
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any

import torch
from fla.modules.norm.layernorm import layer_norm
from torch import nn

from fla_bdlru import layers
from fla_bdlru.fla_cpu.registry import wrap_functions
from fla_bdlru.layers.base import check_choice, check_hidden_states
from fla_bdlru.layers.gated import GatedRecurrence
from fla_bdlru.mixers.packing import boundaries
from fla_bdlru.mixers.registry import check_arguments
from fla_bdlru.patches import when_imported, wrap

MODULE = "mamba_ssm.models.mixer_seq_simple"
# what create_block builds in our layer's stead, as small as it can be
PLACEHOLDER = {"layer": "Mamba1", "d_state": 1, "d_conv": 1, "dt_rank": 1}


class MambaProtocol(GatedRecurrence):
    """mamba_ssm's side of a layer: `inference_params`, `step`, `allocate_inference_cache`, packed sequences."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        inference_params: Any = None,
        seq_idx: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mixes sequences along time.

        Args:
            hidden_states (torch.Tensor):
                Inputs of shape `[B, T, d_model]`.
            inference_params (mamba_ssm.utils.generation.InferenceParams, Optional):
                Holds the states by `layer_idx`, and by `seqlen_offset` says whether to start from them. They are written in
                place, as CUDA graphs ask for. Default: `None`.
            seq_idx (torch.Tensor, Optional):
                Number of the document that each token belongs to, `[B, T]`, for training. Default: `None`.
            cu_seqlens (torch.Tensor, Optional):
                Document boundaries `[num_seqs+1]`, B = 1; wins over `seq_idx`. Tokens behind the last are padding, as
                mamba_ssm marks it by `seq_idx` -1. `inference_params` then holds the state of each document. Default: `None`.

        Returns:
            torch.Tensor:
                Outputs of shape `[B, T, d_model]`.

        Raises:
            ValueError: if `seq_idx` comes with `inference_params` but without `cu_seqlens`, is of another shape, if
                `inference_params` holds fewer sequences than come, or as the op does.
        """
        check_hidden_states(hidden_states, self.hidden_size)
        shape = hidden_states.shape
        num_seqs = shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        if cu_seqlens is not None:
            cu_seqlens = nn.functional.pad(cu_seqlens, (0, 1), value=shape[1])  # the padding, a document that nobody reads
        elif seq_idx is not None:
            if inference_params is not None:
                raise ValueError("seq_idx with inference_params does not say whose states to keep; pass cu_seqlens as well.")
            cu_seqlens = row_boundaries(seq_idx, shape[:2])
            hidden_states = hidden_states.flatten(0, 1).unsqueeze(0)
        if inference_params is None:
            return self.mix(hidden_states, None, False, cu_seqlens, None)[0].view(shape)
        states = self._get_states_from_cache(inference_params, num_seqs)
        last = states if inference_params.seqlen_offset > 0 else None
        if last is not None and cu_seqlens is not None:
            last = tuple(None if state is None else torch.cat([state, torch.zeros_like(state[:1])]) for state in last)
        o, *new_states = self._advance(hidden_states, last, cu_seqlens)
        for state, new_state in zip(states, new_states):
            if state is not None:
                state.copy_(new_state[:num_seqs])
        return o

    def step(
        self, hidden_states: torch.Tensor, conv_state: torch.Tensor | None, ssm_state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """One step, or several, from given states, which stay as they are.

        Args:
            hidden_states (torch.Tensor):
                Inputs of shape `[B, 1, d_model]`.
            conv_state (torch.Tensor | None):
                State of the short convolution, `[B, width, conv_size]`; `None` for a layer without one.
            ssm_state (torch.Tensor):
                State of the recurrence, float32: `[B, H, M]` of BD-LRU, `[B, N, M]` of H-LRU.

        Returns:
            (torch.Tensor, torch.Tensor | None, torch.Tensor):
                Outputs `[B, 1, d_model]`, and the new states (mamba_ssm's layers return theirs, too).

        Raises:
            ValueError: if the inputs are of another shape, a state of the short convolution is missing, or as the op does.
        """
        check_hidden_states(hidden_states, self.hidden_size)
        if self.use_short_conv and conv_state is None:
            shape = [len(hidden_states), self.width, self.conv_size]
            raise ValueError(f"conv_state must have shape {shape}, as allocate_inference_cache gives it; got None.")
        return self._advance(hidden_states, (conv_state, ssm_state), None)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """States to begin with, `(conv_state, ssm_state)`, as `step` takes them; their size does not depend on `max_seqlen`.

        `dtype` is that of `conv_state` (default: the weights'); `ssm_state` is float32.
        """
        weight = self.o_proj.weight
        *_, columns, num = self.gate_shape
        ssm_state = weight.new_zeros(batch_size, columns - 1, num, dtype=torch.float32).transpose(1, 2)
        if self.h0 is not None:
            ssm_state += self.start(batch_size).detach()
        conv_shape = (batch_size, self.width, self.conv_size)
        return weight.new_zeros(conv_shape, dtype=dtype) if self.use_short_conv else None, ssm_state

    def _get_states_from_cache(self, inference_params, num_seqs: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        memory, first = inference_params.key_value_memory_dict, inference_params.batch_size_offset
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(first + num_seqs, inference_params.max_seqlen)
        held = len(memory[self.layer_idx][1])
        if first + num_seqs > held:
            raise ValueError(
                f"inference_params holds states of {held} sequences; got a batch of {num_seqs} from batch_size_offset={first} "
                "on. Pass a new InferenceParams; to keep this one, empty its key_value_memory_dict and set seqlen_offset to 0."
            )
        return tuple(None if state is None else state[first : first + num_seqs] for state in memory[self.layer_idx])

    def _advance(self, hidden_states, states, cu_seqlens):
        last_state = None if states is None else {"conv_state": states[0], "recurrent_state": states[1]}
        o, ssm_state, conv_state = self.mix(hidden_states, last_state, True, cu_seqlens, None)
        return o, conv_state, ssm_state


class BDLRU(MambaProtocol, layers.BDLRU):
    """`fla_bdlru.layers.BDLRU` as mamba_ssm calls a layer."""


class HLRU(MambaProtocol, layers.HLRU):
    """`fla_bdlru.layers.HLRU` as mamba_ssm calls a layer."""


LAYERS = {"BDLRU": BDLRU, "HLRU": HLRU}


def row_boundaries(seq_idx: torch.Tensor, shape: torch.Size) -> torch.IntTensor:
    """`cu_seqlens` of the rows of `seq_idx` `[B, T]`, put one after the other."""
    if seq_idx.shape != shape:
        raise ValueError(f"seq_idx must have shape {list(shape)}, as the inputs; got {list(seq_idx.shape)}.")
    starts = torch.ones_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return boundaries(starts.flatten())


def build_layer(name: str, d_model: int, layer_idx: int | None = None, device=None, dtype=None, **ssm_cfg) -> MambaProtocol:
    r"""Builds a layer as `create_block` of mamba_ssm does.

    Args:
        name (str):
            `"BDLRU"` or `"HLRU"`.
        d_model (int):
            Width of inputs and outputs.
        layer_idx (int, Optional):
            Index of the layer in its model, which generation needs. Default: `None`.
        device, dtype (Optional):
            Where and of which type its parameters are. Default: PyTorch's defaults.
        **ssm_cfg:
            Arguments of `fla_bdlru.layers.BDLRU` or `HLRU`.

    Raises:
        ValueError: if the name or an argument is not known, or the layer refuses a value.

    Example:
        >>> import torch
        >>> from fla_bdlru.integrations.mamba_ssm import build_layer
        >>> layer = build_layer("BDLRU", d_model=32, block_size=4)
        >>> o, _, state = layer.step(torch.randn(2, 1, 32), *layer.allocate_inference_cache(2, max_seqlen=100))
        >>> assert o.shape == (2, 1, 32) and state.shape == (2, 8, 4)
    """
    check_choice("name", name, tuple(LAYERS))
    check_arguments("ssm_cfg", name, LAYERS[name], ssm_cfg)
    with contextlib.nullcontext() if device is None else torch.device(device):
        layer = LAYERS[name](hidden_size=d_model, layer_idx=layer_idx, **ssm_cfg)
    if dtype is not None:
        layer.to(dtype)
    layer.a_proj.bias._no_reinit = True  # mamba_ssm zeroes every other bias
    return layer


def _create_block(original: Callable, *args, **kwargs) -> nn.Module:
    call = inspect.signature(original).bind(*args, **kwargs)
    given = call.arguments
    ssm_cfg = dict(given.get("ssm_cfg") or {})
    name, layer_idx = ssm_cfg.pop("layer", None), given.get("layer_idx")
    near = get_close_matches(name.upper(), LAYERS, n=1) if isinstance(name, str) and name not in LAYERS else []
    if near:
        raise ValueError(f"ssm_cfg: layer={name!r} is not known; did you mean {near[0]!r}?")
    if name not in LAYERS or layer_idx in (given.get("attn_layer_idx") or ()):
        return original(*args, **kwargs)
    check_arguments("ssm_cfg", name, LAYERS[name], ssm_cfg)  # before they meet build_layer's own
    d_model = given["d_model"]
    layer = build_layer(name, d_model, layer_idx, given.get("device"), given.get("dtype"), **ssm_cfg)
    given["ssm_cfg"] = {**PLACEHOLDER, "expand": 2 / d_model}
    block = original(*call.args, **call.kwargs)
    block.mixer = layer
    return block


def _init_weights(original: Callable, module: nn.Module, *args, **kwargs) -> None:
    original(module, *args, **kwargs)
    if isinstance(module, MambaProtocol):  # by this name mamba_ssm knows what writes into the residual stream
        original(nn.ModuleDict({"out_proj": module.o_proj}), *args, **kwargs)


def extend(module: ModuleType) -> None:
    """Makes `create_block` and `_init_weights` of mamba_ssm's `mixer_seq_simple` know the layers, once."""
    if not (hasattr(module, "create_block") and hasattr(module, "_init_weights")):
        warnings.warn(f"fla_bdlru: {MODULE} of this version has no create_block; it keeps its own layers.", stacklevel=2)
        return
    wrap(f"{MODULE}:create_block", _create_block, '`ssm_cfg={"layer": "BDLRU"}` builds our layer')
    wrap(f"{MODULE}:_init_weights", _init_weights, "`o_proj` is scaled as Mamba's `out_proj` is")
    norms = "mamba_ssm.ops.triton.layer_norm"
    wrap_functions(
        {f"{norms}:layer_norm_fn": layer_norm_fn, f"{norms}:rms_norm_fn": partial(layer_norm_fn, is_rms_norm=True)},
        package="mamba_ssm",
    )


def layer_norm_fn(
    x, weight, bias, residual=None, *, eps=1e-6, prenorm=False, residual_in_fp32=False, is_rms_norm=False, dropout_p=0.0
):
    """mamba_ssm's fused residual and norm on CPU tensors, as its models call it."""
    if dropout_p:
        raise NotImplementedError(f"dropout_p={dropout_p}: mamba_ssm's norms run without dropout on a CPU.")
    return layer_norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


def install_hook() -> None:
    """Makes mamba_ssm know `"BDLRU"` and `"HLRU"`, now or when it is imported; `import fla_bdlru` calls it."""
    when_imported(MODULE, lambda: extend(sys.modules[MODULE]))
