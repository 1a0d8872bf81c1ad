"""FLA's layer signature, cache and padding, once for every layer of this package."""

from __future__ import annotations

from importlib import import_module
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import nn

from fla_bdlru.ops.common.autograd import is_traced
from fla_bdlru.ops.common.checks import check_count, check_cu_seqlens, check_tensor, is_readable, num_sequences
from fla_bdlru.ops.common.context_parallel import check_cp_context

if TYPE_CHECKING:
    from fla.models.utils import Cache
    from fla.ops.cp import FLACPContext


def fla_part(module: str, name: str):
    """A part of flash-linear-attention, whose modules need Triton; a layer that uses none of them runs without it."""
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} comes from flash-linear-attention, which needs {error.name!r}: `pip install {error.name}`.",
            name=error.name,
        ) from error


# Boundaries under another name would be ignored, as what a layer does not know is, and documents run into each other.
MISSPELT = ("cu_seqlen", "cu_seq_lens")


class Mixer(nn.Module):
    """Base of the layers: takes padding away, brings states from and to the cache, and leaves the rest to `mix`."""

    hidden_size: int
    layer_idx: int | None
    supports_context_parallel = False

    def mix(
        self,
        hidden_states: torch.Tensor,
        last_state: dict | None,
        use_cache: bool,
        cu_seqlens: torch.LongTensor | None,
        cp_context: FLACPContext | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Mixes unpadded inputs; returns outputs, the recurrent state, and the convolution's state (or `None`)."""
        raise NotImplementedError

    def mix_steps(
        self, hidden_states: torch.Tensor, last_state: dict | None, num_steps: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, list[dict | None]]:
        """As `mix` with a cache, and the states (as `last_state`) before each of the last `num_steps` tokens."""
        raise NotImplementedError(f"{type(self).__name__} does not keep the states between single steps (step_states).")

    def state_size(self) -> int:
        """Number of values that one sequence carries from step to step (a short convolution's cache included)."""
        raise NotImplementedError

    def flops_per_token(self) -> int:
        """Floating-point operations of one step of the forward pass, a multiply-add counted as two."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Number of parameters of the layer."""
        return sum(p.numel() for p in self.parameters())

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs,
    ) -> tuple[torch.Tensor, None, Cache | None]:
        """Mixes a batch of sequences along time.

        Args:
            hidden_states (torch.Tensor):
                Inputs of shape `[B, T, hidden_size]`.
            attention_mask (torch.Tensor, Optional):
                Padding mask of shape `[B, S]`, S >= T, 0 where padded and else 1: a padded step leaves the state as it is.
                Default: `None`.
            past_key_values (fla.models.utils.Cache, Optional):
                The cache that holds the state of earlier steps; needs `layer_idx`. Default: `None`.
            use_cache (bool, Optional):
                Whether to put the new state into the cache. Default: `False`.
            output_attentions (bool, Optional):
                Accepted for FLA's signature; there are none. Default: `False`.
            **kwargs:
                `cu_seqlens` (torch.LongTensor): document boundaries of a packed batch, B = 1; wins over `attention_mask`.
                `cp_context` (fla.ops.cp.FLACPContext): the sequence is split over the ranks of its group, and its
                `cu_seqlens` win; needs sequences without padding, and no cache.
                `step_states` (int): keep the states before each of the last so many tokens in the cache, for
                `fla_bdlru.rewind_cache`; needs tokens without padding. Anything else is ignored, as in FLA's layers.

        Returns:
            (torch.Tensor, None, fla.models.utils.Cache | None):
                Outputs of shape `[B, T, hidden_size]`, no attentions, and the cache.

        Raises:
            ValueError: on inputs or an `attention_mask` of another shape, a mask of other values than 0 and 1 (looked at on a
                CPU), boundaries that do not fit, `step_states` that cannot be kept, a `cp_context` with padding or a cache or
                to a layer that cannot be split along time, or as the op does.
        """
        check_hidden_states(hidden_states, self.hidden_size)
        for name in MISSPELT:
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not an argument of {type(self).__name__}; did you mean 'cu_seqlens'?")
        batch_size, q_len = hidden_states.shape[:2]
        cu_seqlens, indices, num_steps = kwargs.get("cu_seqlens"), None, kwargs.get("step_states")
        cp_context = kwargs.get("cp_context")
        if cp_context is not None:
            cu_seqlens = self.check_context_parallel(cp_context, attention_mask, past_key_values)
        num_sequences("hidden_states", hidden_states, cu_seqlens)
        check_cu_seqlens(cu_seqlens, q_len)
        if attention_mask is not None and kwargs.get("cu_seqlens") is None:
            check_attention_mask(attention_mask, batch_size, q_len)
        if num_steps:
            plain = cu_seqlens is None and cp_context is None
            check_step_states(num_steps, q_len, attention_mask, past_key_values is not None and use_cache and plain)
        elif attention_mask is not None and cu_seqlens is None and hidden_states.numel():
            packed = unpad(hidden_states, of_this_call(attention_mask), q_len)
            # where nothing is padded, rows stay side by side: kernels go through what is packed a token after the other
            if is_traced() or len(packed[1]) < batch_size * q_len:
                hidden_states, indices, cu_seqlens = packed
        last_state = None
        if past_key_values is not None:
            last_state = fla_part("fla.layers.utils", "get_layer_cache")(self, past_key_values)
            self.check_cached(last_state, batch_size if indices is not None or cu_seqlens is None else len(cu_seqlens) - 1)
        if num_steps:
            o, recurrent_state, conv_state, step_states = self.mix_steps(hidden_states, last_state, num_steps)
        else:
            o, recurrent_state, conv_state = self.mix(hidden_states, last_state, bool(use_cache), cu_seqlens, cp_context)
            step_states = None
        if past_key_values is not None and use_cache:
            update = fla_part("fla.layers.utils", "update_layer_cache")
            state = update(self, past_key_values, recurrent_state=recurrent_state, conv_state=conv_state, offset=q_len)
            state["step_states"] = step_states
        if indices is not None:
            o = repad(o, indices, batch_size, q_len)
        return o, None, past_key_values

    def cached_states(self) -> tuple[str, ...]:
        """Names of the states that the layer keeps in a cache."""
        return ("recurrent_state",)

    def check_cached(self, last_state: dict | None, num_seqs: int) -> None:
        """Raises `ValueError` where a cache holds other states than this layer's, or those of more or fewer sequences."""
        if last_state is None:
            return
        for name in ("recurrent_state", "conv_state"):
            held, kept = last_state.get(name) is not None, name in self.cached_states()
            if held != kept:
                raise ValueError(
                    f"past_key_values holds {'a' if held else 'no'} {name} for layer {self.layer_idx}, where "
                    f"{type(self).__name__} keeps {'one' if kept else 'none'}: it is the cache of another model."
                )
        held = last_state["recurrent_state"].shape[0]
        if held != num_seqs:
            repeats = num_seqs // held if held and num_seqs % held == 0 else 0
            hint = f"; repeat it first: past_key_values.batch_repeat_interleave({repeats})" if repeats else ""
            raise ValueError(f"past_key_values holds states of {held} sequences, the inputs are {num_seqs}{hint}.")

    def check_context_parallel(
        self, cp_context: FLACPContext, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor:
        """The boundaries of this rank's documents; `ValueError` for what does not go together with `cp_context`."""
        if not self.supports_context_parallel:
            raise ValueError(f"cp_context={cp_context!r}: {type(self).__name__} cannot be split along time; pass None.")
        if past_key_values is not None:
            raise ValueError("cp_context takes whole sequences, without a cache: pass use_cache=False and no past_key_values.")
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("attention_mask has padding, which cp_context does not take: pack the sequences (cu_seqlens).")
        return check_cp_context(cp_context)


def of_this_call(mask: torch.Tensor) -> torch.Tensor:
    """The same mask as an object of its own, which all layers share that a model hands it to.

    FLA keeps what it has found out of a mask, and looks it up by the object: of one that is written to in place, as where all
    batches come into one buffer, it would go on to use what stood there before, and what it found in inference mode is of no
    use to autograd. Not all writes are counted, so an object is good for one call.
    """
    if torch.compiler.is_compiling() or hasattr(mask, "_is_of_one_call"):
        return mask
    mask = mask.view_as(mask)
    mask._is_of_one_call = True
    return mask


def _is_transformed() -> bool:
    # by torch.func, which FLA's own functions for this do not know
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def unpad(x: torch.Tensor, mask: torch.Tensor, q_len: int) -> tuple[torch.Tensor, torch.Tensor, torch.LongTensor]:
    """The tokens `[1, N, D]` of x `[B, T, D]` that a mask keeps, their places among all, and where each row's begin.

    `ValueError`, if `torch.vmap` maps over the mask, whose rows keep different numbers of tokens.
    """
    if not _is_transformed():
        return fla_part("fla.layers.utils", "unpad_hidden_states")(x, None, mask, q_len)
    if torch._C._functorch.is_batchedtensor(mask):
        raise ValueError("attention_mask is mapped over by vmap, which needs equal lengths; pass None, or cu_seqlens.")
    indices, cu_seqlens = fla_part("fla.layers.utils", "get_unpad_indices_and_cu")(mask, q_len)
    return x.flatten(0, 1)[indices][None], indices, cu_seqlens


def repad(o: torch.Tensor, indices: torch.Tensor, batch_size: int, q_len: int) -> torch.Tensor:
    """The outputs `[B, T, D]` of what `unpad` returned, zeros elsewhere."""
    if not _is_transformed():
        return fla_part("fla.layers.utils", "repad_hidden_states")(o, indices, batch_size, q_len)
    return o.new_zeros(batch_size * q_len, o.shape[-1]).index_put((indices,), o[0]).unflatten(0, (batch_size, q_len))


def check_hidden_states(hidden_states: torch.Tensor, hidden_size: int) -> None:
    """Raises `ValueError` unless a layer's inputs are of shape `[B, T, hidden_size]`."""
    check_tensor("hidden_states", hidden_states)
    if hidden_states.ndim != 3 or hidden_states.shape[-1] != hidden_size:
        raise ValueError(f"hidden_states must have shape [B, T, {hidden_size}]; got {list(hidden_states.shape)}.")
    if not hidden_states.is_floating_point():
        raise ValueError(f"hidden_states must be of a floating-point dtype (embeddings, not ids); got {hidden_states.dtype}.")


def check_attention_mask(attention_mask: torch.Tensor, batch_size: int, q_len: int) -> None:
    """Raises `ValueError` unless a mask fits inputs `[batch_size, q_len, ...]` and, where it can be read, holds 0 and 1."""
    check_tensor("attention_mask", attention_mask)
    shape = attention_mask.shape
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < q_len:
        raise ValueError(
            f"attention_mask must have shape [{batch_size}, S] with S >= {q_len}, as inputs of {batch_size} rows and {q_len} "
            f"tokens (a mask of token pairs has no meaning for a recurrence); got {list(shape)}."
        )
    if attention_mask.dtype != torch.bool and is_readable(attention_mask):
        values = attention_mask[:, -q_len:]  # what is read
        other = values[(values != 0) & (values != 1)]
        if other.numel():
            raise ValueError(f"attention_mask must hold 1 for a token and 0 for padding; got {other[0].item()!r}.")


def check_step_states(num_steps: int, q_len: int, attention_mask: torch.Tensor | None, possible: bool) -> None:
    """Raises `ValueError` where the states before each of the last `num_steps` tokens cannot be kept."""
    check_count("step_states", num_steps)
    if num_steps > q_len:
        raise ValueError(f"step_states must lie between 1 and the number of tokens, {q_len}; got {num_steps}.")
    if not possible:
        raise ValueError(f"step_states={num_steps} needs past_key_values and use_cache=True, no cu_seqlens or cp_context.")
    if attention_mask is not None and not attention_mask[:, -q_len:].all():
        raise ValueError(f"step_states={num_steps} needs tokens without padding; put the padded prompt into the cache first.")


def check_number(field: str, value: object) -> None:
    """Raises `ValueError` unless `value` is a positive, finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{field} must be a positive number; got {value!r}.")


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not known; expected one of {', '.join(map(repr, choices))}.")


def check_switch(field: str, value: object) -> None:
    """Raises `ValueError` unless `value` is `True` or `False`: any other would be taken for one of them."""
    if not isinstance(value, bool):
        raise ValueError(f"{field} must be True or False; got {value!r}.")


def channels_from(
    field: str, count: int | None, unit: int, hidden_size: int, expand: float, unit_field: str | None = None
) -> int:
    """The number of blocks or channels: given, or `expand * hidden_size` values in units of `unit`, called `unit_field`.

    Raises:
        ValueError: if a number is not positive or the widths do not divide.
    """
    check_count("hidden_size", hidden_size)
    if count is not None:
        check_count(field, count)
        return count
    check_number("expand", expand)
    width = round(expand * hidden_size)  # 432 * (7 / 6) is 503.99999999999994
    if width < unit or abs(width - expand * hidden_size) > 1e-9 * width or width % unit:
        ours = f"{unit_field}={unit} does not divide the state: " if unit_field else ""
        raise ValueError(
            f"{ours}expand={expand} times hidden_size={hidden_size} gives {expand * hidden_size:g} values, which must be a "
            f"positive multiple of {unit}; change expand or hidden_size, or set {field}."
        )
    return width // unit
