"""Packed batches as transformers makes them: `position_ids` that start again, `seq_idx`, FlashAttention's lengths.

FLA's models take document boundaries as `cu_seqlens` and ignore, in silence, what transformers' padding-free collator
(`DataCollatorWithFlattening`) gives instead; a recurrence would then run on from one document into the next. So a model whose
mixers this package knows turns it into `cu_seqlens`, or refuses it by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fla.layers
import torch
from torch import nn

from fla_bdlru.layers.base import Mixer, check_attention_mask
from fla_bdlru.mixers.arguments import heed_arguments
from fla_bdlru.ops.common.checks import check_tensor
from fla_bdlru.patches import when_imported, wrap

if TYPE_CHECKING:
    from fla.models.modeling_utils import FLAPreTrainedModel
    from transformers import Trainer

# what a padding-free collator gives, the surest first; the lengths' other half says nothing new
FIELDS = ("cu_seq_lens_q", "seq_idx", "position_ids")
DROPPED = (*FIELDS, "cu_seq_lens_k", "max_length_q", "max_length_k")

# FLA's layers that take `cu_seqlens` without a word and run on over the boundaries
NOT_PACKED = (fla.layers.Mamba, fla.layers.Mamba2, fla.layers.LogLinearMamba2)


def boundaries(starts: torch.Tensor) -> torch.IntTensor:
    """`cu_seqlens` `[num_seqs+1]` from `starts`, `[T]`, which is true where a document starts; int32, as FlashAttention's."""
    return nn.functional.pad(starts.nonzero().flatten(), (0, 1), value=starts.numel()).int()


def documents(
    batch_size: int, seq_len: int, attention_mask: torch.Tensor | None = None, **fields: Any
) -> torch.IntTensor | None:
    r"""Document boundaries from what transformers calls them.

    Args:
        batch_size (int):
            Number of rows.
        seq_len (int):
            Number of tokens of a row, T.
        attention_mask (torch.Tensor, Optional):
            Padding mask `[B, S]`, S >= T; the positions of padded tokens do not count. Default: `None`.
        **fields:
            Any of `cu_seq_lens_q` `[num_seqs+1]`, `seq_idx` `[1, T]`, and `position_ids` `[T]` or `[B, T]`; the first of them
            counts.

    Returns:
        torch.IntTensor | None:
            `cu_seqlens` `[num_seqs+1]`; `None` where every row is one document.

    Raises:
        ValueError: where a field or the mask is of another shape, documents share a row of a batch of several or of a padded
            one, or positions skip tokens.

    Example:
        >>> import torch
        >>> from fla_bdlru.mixers.packing import documents
        >>> assert documents(1, 5, position_ids=torch.tensor([[0, 1, 2, 0, 1]])).tolist() == [0, 3, 5]
    """
    name = next((name for name in FIELDS if fields.get(name) is not None), None)
    if name is None or seq_len == 1:
        return None
    value = fields[name]
    check_tensor(name, value)
    if attention_mask is not None:
        check_attention_mask(attention_mask, batch_size, seq_len)
    if name == "cu_seq_lens_q":
        other = fields.get("cu_seq_lens_k")
        if other is not None and not torch.equal(value, other):
            raise ValueError(f"cu_seq_lens_q and cu_seq_lens_k must be equal; got {value.tolist()} and {other.tolist()}.")
        return value.int()
    if value.ndim not in (1, 2) or value.shape[-1] != seq_len or value.shape[:-1] not in ((), (1,), (batch_size,)):
        raise ValueError(f"{name} must have shape {[batch_size, seq_len]}, as the inputs; got {list(value.shape)}.")
    value = value.view(-1, seq_len)
    step = value.diff()
    inside = None if attention_mask is None else attention_mask[:, -seq_len:].bool()
    padded = inside is not None and not inside.all()
    if name == "seq_idx":
        starts = step != 0
    elif padded:  # padded tokens may be numbered in any way
        before = value.where(inside, -1).cummax(1).values
        starts = inside[:, 1:] & (value[:, 1:] <= before[:, :-1])
    else:
        starts = step != 1
        if (step == 0).all():
            raise ValueError(
                f"position_ids hold {int(value[0, 0])} for every token, which would make each of them a document; "
                "number the tokens of a document from 0, or pass cu_seqlens for documents of one token."
            )
        if (step > 1).any():
            raise ValueError(
                "position_ids must count up by one, or start again where a document does: a recurrence reads every token in "
                f"turn. Got a step of {int(step.max())}; pass cu_seqlens for boundaries."
            )
    if not starts.any():
        return None
    if batch_size != 1 or padded:
        found = "padding in attention_mask" if batch_size == 1 else f"a batch of {batch_size}"
        raise ValueError(f"{name} has several documents in a row, which needs a batch of 1 without padding; got {found}.")
    return boundaries(nn.functional.pad(starts.view(-1), (1, 0), value=True))


def heed_documents(model: FLAPreTrainedModel) -> None:
    """Makes `model` take what a padding-free collator gives, where it has mixers of this package's registry."""
    mixers = [module for module in model.modules() if isinstance(module, (Mixer, *NOT_PACKED))]
    packs = hasattr(model, "_cannot_pack")  # from here before, and mixers may have been swapped since
    if not packs and getattr(model.config, "mixer", None) is None and not any(isinstance(mixer, Mixer) for mixer in mixers):
        return
    refusing = sorted({type(mixer).__name__ for mixer in mixers if isinstance(mixer, NOT_PACKED)})
    base = type(getattr(model, model.base_model_prefix, model))
    if not any(p.kind is p.VAR_KEYWORD or p.name == "cu_seqlens" for p in inspect.signature(base.forward).parameters.values()):
        refusing.append(base.__name__)
    model._cannot_pack = refusing
    if not packs:
        heed_arguments(model)
        model.register_forward_pre_hook(_pack_inputs, with_kwargs=True)


def _pack_inputs(model: FLAPreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Puts `cu_seqlens` in the place of what `FIELDS` says; an explicit one wins."""
    fields = {name: kwargs.pop(name) for name in DROPPED if name in kwargs}
    cu_seqlens = kwargs.get("cu_seqlens")
    if cu_seqlens is None and any(value is not None for value in fields.values()):
        given = {**dict(zip(("input_ids",), args)), **kwargs}
        name = "input_ids" if given.get("input_ids") is not None else "inputs_embeds"
        tokens = given.get(name)
        if tokens is None:
            return args, kwargs  # the model says what is missing
        if tokens.ndim < 2:
            shape = "[B, T]" if name == "input_ids" else "[B, T, D]"
            raise ValueError(f"{name} must have shape {shape}; got {list(tokens.shape)}.")
        cu_seqlens = documents(*tokens.shape[:2], given.get("attention_mask"), **fields)
        if cu_seqlens is not None:
            kwargs["cu_seqlens"] = cu_seqlens
    if cu_seqlens is not None and model._cannot_pack:
        raise ValueError(
            f"{' and '.join(model._cannot_pack)} of flash-linear-attention would run on over the boundaries of packed "
            "documents (cu_seqlens, position_ids); pad the documents to rows and pass attention_mask."
        )
    return args, kwargs


def _add_fields(original: Callable, self: Trainer) -> None:
    original(self)
    model = self.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's
    if hasattr(base, "_cannot_pack"):
        self._signature_columns += [name for name in ("cu_seqlens", *DROPPED) if name not in self._signature_columns]


def install_hook() -> None:
    """Has `Trainer` keep the columns that say where documents begin, once it is imported; `import fla_bdlru` calls it.

    A `forward` that named `position_ids` would have `generate` make some.
    """
    why = "of a dataset it keeps the columns that `forward` names, and hooks take `position_ids` and other names of documents"
    target = "transformers.trainer:Trainer._set_signature_columns_if_needed"
    when_imported("transformers.trainer", lambda: wrap(target, _add_fields, why))
