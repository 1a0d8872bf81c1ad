"""Which parameters weight decay is for, found in a model as it stands: copies and sharding lose marks."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import nn

from fla_bdlru.layers.gated import GatedRecurrence

# parameters that FLA 0.6's layers mark
FLA_MARKS = {
    *("A_log", "A_log_atk", "D", "D_log", "L", "Mu_log", "dt_bias", "dt_bias_atk"),
    *("lambda_params", "log_atk_scale", "log_factor", "mu_bias"),
}


def decaying_parameters(model: nn.Module) -> list[str]:
    r"""Names of the parameters that weight decay is for: not biases, norms and what a layer has marked.

    The mark is `_no_weight_decay`; FLA's layers set it, too, Mamba among them. Theirs and ours, on the gates' bias and on
    `h0`, a learned initial state, are set anew here: sharding loses them, and so does `copy.deepcopy`, as
    `torch.optim.swa_utils.AveragedModel` copies. What
    transformers' `Trainer` has for this goes by names, does not know `h0` and lets it decay.

    Args:
        model (nn.Module):
            A model or a layer; sharded (FSDP2, ZeRO-3) or wrapped already, where it is going to be.

    Raises:
        ValueError: for a model wrapped by FSDP1, whose parameters are flat.

    Example:
        >>> from fla_bdlru.layers import BDLRU
        >>> from fla_bdlru.layers.weight_decay import decaying_parameters
        >>> layer = BDLRU(hidden_size=16, initial_state="learned")
        >>> assert decaying_parameters(layer) == ["v_proj.weight", "a_proj.weight", "o_proj.weight"]
    """
    for layer in model.modules():
        if isinstance(layer, GatedRecurrence):
            layer.mark_parameters()
        elif any(cls.__module__.startswith(("fla.", "mamba_ssm.")) for cls in type(layer).__mro__):
            for name in FLA_MARKS & layer._parameters.keys():
                if layer._parameters[name] is not None:
                    layer._parameters[name]._no_weight_decay = True
        if type(layer).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "model is wrapped by FullyShardedDataParallel (FSDP1), whose parameters are flat: find the names before it is "
                "wrapped, with use_orig_params=True, or take torch.distributed.fsdp.fully_shard (FSDP2)."
            )
    return [name for name, p in model.named_parameters() if _axes(p) > 1 and not getattr(p, "_no_weight_decay", False)]


def _axes(parameter: nn.Parameter) -> int:
    # DeepSpeed's ZeRO-3 leaves one axis, and says what it was
    return len(getattr(parameter, "ds_shape", parameter.shape))


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    r"""An optimiser's parameter groups: `decaying_parameters`, and the others, without weight decay; frozen ones are in none.

    Args:
        model (nn.Module):
            A model or a layer; sharded or wrapped already, where it is going to be.
        weight_decay (float):
            Weight decay of the first group, at least 0.

    Raises:
        ValueError: if `weight_decay` is no number from 0 on, or as `decaying_parameters`.

    Example:
        >>> import torch
        >>> from fla_bdlru.layers import BDLRU
        >>> from fla_bdlru.layers.weight_decay import weight_decay_groups
        >>> optimizer = torch.optim.AdamW(weight_decay_groups(BDLRU(hidden_size=16), 0.1), lr=1e-3)
        >>> assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(3, 0.1), (1, 0.0)]
    """
    if not isinstance(weight_decay, Real) or isinstance(weight_decay, bool) or not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be a number from 0 on; got {weight_decay!r}.")
    names = set(decaying_parameters(model))
    trained = [(name in names, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for decays, p in trained if decays], "weight_decay": weight_decay},
        {"params": [p for decays, p in trained if not decays], "weight_decay": 0.0},
    ]
