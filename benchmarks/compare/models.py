"""The models that are compared: named mixer variants, matched in size, on one FLA backbone."""

from __future__ import annotations

import logging
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from fla.models import TransformerConfig, TransformerForCausalLM
from torch import nn

import benchmarks.compare.mixers  # noqa: F401  registers them
from benchmarks.compare.readout import AutoEncoder
from benchmarks.records.cell import MATCHES
from benchmarks.records.naming import SUFFIXES, parse_name
from fla_bdlru.layers.measure import (
    count_parameters,
    linear_flops_per_token,
    measure_flops_per_token,
    measure_state_size,
)
from fla_bdlru.mixers.registry import available_mixers, build_mixer, find_mixer, mixer_arguments

TOLERANCE = 0.02
KNOBS = ("num_blocks", "num_channels", "d_state", "intermediate_size")  # arguments that set a layer's width, whatever it is
HEADS = (4, 2, 1)
READOUTS = ("tokens", "autoencoder")


@dataclass(frozen=True)
class Variant:
    """A mixer with the arguments that make it this variant, and the knob that sets its size."""

    mixer: str  # name in `fla_bdlru.mixers`
    # size knobs map (width, n) to layer arguments, larger n to a larger layer; the first one that comes close to the budget is
    # used, so the layer's usual shape stands first
    sizes: tuple[Callable[[int, int], dict], ...]
    args: dict = field(default_factory=dict)  # that do not depend on the size
    fixed: str = ""  # why this mixer has no knob; the block's MLP is widened instead until the parameters match


def _knob(name: str) -> Callable[[int, int], dict]:
    return lambda width, n: {name: n}


def _sized(mixer: str, knob: str, **args) -> Variant:
    return Variant(mixer, (_knob(knob),), args)


def _bdlru(m: int, **args) -> Variant:
    return _sized("bdlru", "num_blocks", block_size=m, **args)


def _hlru(m: int, **args) -> Variant:
    return _sized("hlru", "num_channels", order=m, **args)


def _ratio(n: int, width: int) -> float:
    # FLA's layers take widths as ratios of the model's and truncate: make sure that n comes back
    ratio = n / width
    return ratio if int(ratio * width) == n else math.nextafter(ratio, math.inf)


def _expanded(heads: int, k: int, v: int) -> Callable[[int, int], dict]:
    # a head has k n key and v n value channels
    return lambda width, n: {
        "num_heads": heads,
        "expand_k": _ratio(heads * k * n, width),
        "expand_v": _ratio(heads * v * n, width),
    }


def _only(known: Iterable[str], size: Callable[[int, int], dict]) -> Callable[[int, int], dict]:
    # leaves out what a constructor does not take
    return lambda width, n: {name: value for name, value in size(width, n).items() if name in known}


def _head_dim(heads: int, expand_v: int) -> Callable[[int, int], dict]:
    return lambda width, n: {"num_heads": heads, "head_dim": n, "expand_v": expand_v}


_DELTA = tuple(_expanded(heads, 1, 1) for heads in HEADS)
_GATED_DELTA = tuple(_head_dim(heads, expand) for expand in (2, 1) for heads in HEADS)
_GLA = (*(_expanded(heads, 1, 2) for heads in HEADS), *(_expanded(heads, 1, 1) for heads in HEADS))
# at a small budget of state, one head with few keys
_MLSTM = (*_GLA, lambda width, n: {"num_heads": 1, "expand_k": _ratio(8, width), "expand_v": _ratio(n, width)})
_MAMBA = tuple(lambda width, n, s=s: {"intermediate_size": n, "state_size": s} for s in (16, 8, 4))
_MAMBA2 = tuple(
    lambda width, n, s=s, h=h: {"num_heads": h, "head_dim": n, "expand": _ratio(h * n, width), "state_size": s}
    for s, h in ((64, 4), (64, 2), (16, 2), (16, 1), (4, 1))
)
_MAMBA3 = tuple(_only(("expand", "head_dim", "state_size"), size) for size in _MAMBA2)


def _deltaproduct(reflections: int) -> Variant:
    return Variant("gated_deltaproduct", _GATED_DELTA, {"allow_neg_eigval": True, "num_householder": reflections})


VARIANTS: dict[str, Variant] = {
    **{f"bdlru-m{m}": _bdlru(m) for m in (1, 2, 3, 4, 5, 8)},
    **{f"bdlru-m{m}-tanh": _bdlru(m, gate_norm="tanh") for m in (1, 2, 4)},
    **{f"hlru-m{m}": _hlru(m) for m in (2, 4, 8)},
    "lstm": _sized("lstm", "num_channels"),
    "delta_net": Variant("delta_net", _DELTA),
    "delta_net-neg": Variant("delta_net", _DELTA, {"allow_neg_eigval": True}),
    "gated_deltanet": Variant("gated_deltanet", _GATED_DELTA),
    "gated_deltanet-neg": Variant("gated_deltanet", _GATED_DELTA, {"allow_neg_eigval": True}),
    "gated_deltaproduct-neg": _deltaproduct(2),
    **{f"gated_deltaproduct-neg-r{n}": _deltaproduct(n) for n in (4, 8)},
    "gla": Variant("gla", _GLA),
    "hgrn": Variant("hgrn", (lambda width, n: {"expand_ratio": _ratio(n, width)},)),
    "mamba": Variant("mamba", _MAMBA),
    "mamba2": Variant("mamba2", _MAMBA2),
    "mamba3": Variant("mamba3", _MAMBA3),
    "pd_ssm": _sized("pd_ssm", "d_state"),
    **{f"slice-m{m}": _sized("slice", "num_blocks", block_size=m) for m in (2, 3, 4, 5)},
    "mlstm": Variant("mlstm", _MLSTM),
    "attn": Variant("attn", (), {"num_heads": 4}, fixed="softmax attention's size is set by the model's width"),
}

# mixers whose arguments do not say how they are sized
RECIPES: dict[str, Variant] = {
    # its norm asks for as many value channels as the model is wide
    "gsa": Variant(
        "gsa",
        tuple(lambda width, n, h=h: {"num_heads": h, "expand_k": _ratio(h * n, width)} for h in HEADS),
        {"expand_v": 1.0},
    ),
    "hgrn2": Variant(
        "hgrn2",
        (),
        {"num_heads": HEADS[0], "expand_ratio": None},
        fixed="the size of hgrn2 is set by the model's width",
    ),
    # pairs of conjugates, two at least
    "lrnnx_s4d": Variant("lrnnx_s4d", (lambda width, n: {"d_state": 2 * (n + 1)},)),
}
# what arguments set a layer's size together, and the sizes that they give; the first that a constructor has counts
SHAPES: tuple[tuple[set[str], tuple[Callable[[int, int], dict], ...]], ...] = (
    *(({knob}, (_knob(knob),)) for knob in KNOBS),
    ({"expand", "head_dim", "state_size"}, _MAMBA2),
    ({"num_heads", "head_dim"}, _GATED_DELTA),
    # rotary embeddings ask for an even number of key channels
    (
        {"num_heads", "expand_k", "expand_v"},
        tuple(_expanded(heads, k, v) for k, v in ((1, 2), (1, 1), (2, 4), (2, 2)) for heads in HEADS),
    ),
    ({"num_heads", "expand_ratio"}, tuple(lambda width, n, h=h: {"num_heads": h, "expand_ratio": n} for h in HEADS)),
)

# six that differ, and all; slow ones early, so that no core idles at the end
DEFAULT_VARIANTS = ("gated_deltaproduct-neg", "mamba2", "lstm", "bdlru-m4", "hlru-m4", "bdlru-m1")
ALL_VARIANTS = (
    "bdlru-m4",
    "mamba",
    "mamba2",
    "gated_deltaproduct-neg",
    "gated_deltanet",
    "gated_deltanet-neg",
    "delta_net",
    "gla",
    "attn",
    "hgrn",
    "lstm",
    "hlru-m4",
    "bdlru-m2",
    "bdlru-m1",
)


def get_variant(name: str) -> Variant:
    r"""The variant called `name`: one of `VARIANTS`, a BD-LRU or H-LRU of any size, gate norm and parts
    (`bdlru-m6-silu-conv`, see `benchmarks.records.naming`), or any other registered mixer by its name.

    A mixer without a recipe here is sized by the first of `SHAPES` whose arguments its constructor takes; without any of
    them its block's MLP is widened.

    Raises:
        ValueError: if there is none.

    Example:
        >>> from benchmarks.compare.models import get_variant
        >>> assert get_variant("hlru-m3-relu").args == {"order": 3, "gate_norm": "relu"}
        >>> assert get_variant("retnet").mixer == "retnet"
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if name in available_mixers():
        return RECIPES.get(name) or _without_recipe(name)
    ours = parse_name(name)
    if ours is None:
        raise ValueError(
            f"mixer {name!r} is not known; expected some of {', '.join(VARIANTS)}, bdlru-m<M> and hlru-m<M> with some of "
            f"{', '.join(SUFFIXES)} (bdlru-m4-silu-conv), or a registered mixer: {', '.join(available_mixers())}."
        )
    return (_bdlru if ours.family == "bdlru" else _hlru)(ours.size, **ours.args)


def _without_recipe(mixer: str) -> Variant:
    arguments = mixer_arguments(find_mixer(mixer))
    for names, sizes in SHAPES:
        if names <= arguments.keys():
            return Variant(mixer, tuple(_only(arguments, size) for size in sizes))
    args = {"num_heads": HEADS[0]} if "num_heads" in arguments else {}
    return Variant(mixer, (), args, fixed=f"{mixer} has no argument that sets it")


def quiet() -> None:
    """Silences what FLA's layers log on each construction (which optional kernels are not installed)."""
    logging.getLogger("fla").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def build_layer(mixer: str, width: int, args: dict) -> nn.Module:
    """Builds one mixer layer through the registry."""
    return build_mixer(mixer, width, layer_idx=0, **args)


def layer_params(mixer: str, width: int, args: dict) -> int:
    """Number of parameters of one layer, without allocating it where its constructor allows that."""
    try:
        with torch.device("meta"):
            return count_parameters(build_layer(mixer, width, args))
    except (NotImplementedError, RuntimeError):  # its constructor reads what it has computed
        return count_parameters(build_layer(mixer, width, args))


def layer_state(mixer: str, width: int, args: dict, device: str = "cpu", tokens: int = 1) -> int:
    """Number of elements that one layer carries from one token to the next, per sequence (recurrent and convolution).

    It has seen `tokens`, which matters where the state grows. ValueError, if the layer cannot run there, or refuses a cache.
    """
    try:
        return measure_state_size(build_layer(mixer, width, args).to(device), tokens=tokens)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "it is not implemented there"
        raise ValueError(f"mixer {mixer!r} cannot decode on {device}, so its state cannot be measured: {reason}") from error


def state_grows(mixer: str, width: int, args: dict, device: str = "cpu") -> bool:
    """Whether a layer's state is larger after eight tokens than after one."""
    few, many = (layer_state(mixer, width, args, device, tokens) for tokens in (1, 8))
    return many > few


def layer_flops(mixer: str, width: int, args: dict, context: int) -> tuple[int | None, int | None]:
    """FLOPs of one layer's forward pass for the last of `context` tokens: all, and without its linear maps.

    `None` where they cannot be counted; `fla_bdlru.layers.measure` says what is.
    """
    layer = build_layer(mixer, width, args)
    try:
        flops = measure_flops_per_token(layer, context)
    except ValueError:
        return None, None
    return flops, flops - linear_flops_per_token(layer)


def default_budget(match: str, width: int) -> int:
    """Parameters or state elements of the reference mixer, a BD-LRU of block size 4 whose state is as wide as the model."""
    measure = layer_params if match == "params" else layer_state
    return measure("bdlru", width, {"block_size": 4, "num_blocks": width // 4})


@dataclass(frozen=True)
class Matched:
    """A variant with its size settled."""

    args: dict  # all arguments of the layer
    extra_mlp: int = 0  # columns added to the block's MLP because the mixer itself has no size knob
    note: str = ""  # what the reader has to know about the match
    rule: str = ""  # what was made equal, and to what: "params 28992"


def match_variant(name: str, match: str, width: int, budget: int | None = None) -> Matched:
    """Settles a variant's size so that its parameters or its state come within `TOLERANCE` of the budget.

    That is one of a mixer layer, the reference mixer's if it is `None`. ValueError, if the name or the rule is unknown, or no
    size comes close enough; the message says what is possible.
    """
    variant = get_variant(name)
    if match not in MATCHES:
        raise ValueError(f"match={match!r} is not known; expected one of {', '.join(MATCHES)}.")
    budget = default_budget(match, width) if budget is None else budget
    if variant.fixed and match == "state" and state_grows(variant.mixer, width, variant.args):
        matched = _match_by_mlp(name, variant, width, default_budget("params", width))
        note = f"{matched.note}; its state grows with the sequence, so it is matched by parameters instead"
        return replace(matched, note=note)
    if variant.fixed and match == "params":
        return _match_by_mlp(name, variant, width, budget)

    measure = layer_params if match == "params" else layer_state
    sizes = variant.sizes or (lambda width, n: {},)
    tried, refused = [], []
    for size in sizes:
        make = lambda n, size=size: {**variant.args, **size(width, n)}  # noqa: E731
        try:
            args, got = nearest_size(make, variant.mixer, measure, width, budget)
        except ValueError as error:  # the layer cannot be built so, or not run
            refused.append(error)
            continue
        tried.append((abs(got - budget) / budget, got, args))
        if tried[-1][0] <= TOLERANCE:
            return Matched(args, rule=f"{match} {budget}")
    unit = "parameters" if match == "params" else "state elements"
    head = f"mixer {name!r} cannot be matched to {budget:,} {unit} at width={width} (within {TOLERANCE:.0%})"
    if not tried:
        raise ValueError(f"{head}: {refused[0]}") from refused[0]
    closest = sorted(tried, key=lambda t: t[0])[:3]
    reason = f"{variant.fixed}, " if variant.fixed else ""
    raise ValueError(
        f"{head}; {reason}the closest are {', '.join(f'{g:,} with {a}' for _, g, a in closest)}. "
        "Choose another --budget or --width, or leave this mixer out."
    )


def nearest_size(make: Callable[[int], dict], mixer: str, measure: Callable, width: int, budget: int) -> tuple[dict, int]:
    # sizes grow with n: double n until the budget is reached, then bisect
    @cache
    def size(n: int) -> int:
        return measure(mixer, width, make(n))

    high = 1
    while size(high) < budget and make(high) != make(2 * high):
        high *= 2
    n = 1 + bisect_left(range(1, high + 1), budget, key=size)
    return min(((make(k), size(k)) for k in (n - 1, n) if k >= 1), key=lambda pair: abs(pair[1] - budget))


def _match_by_mlp(name: str, variant: Variant, width: int, budget: int) -> Matched:
    own, column = layer_params(variant.mixer, width, variant.args), 3 * width  # a SwiGLU column is three vectors of that width
    extra = max(0, round((budget - own) / column))
    if abs(own + extra * column - budget) > TOLERANCE * budget:
        other = "larger" if own > budget else "other"
        raise ValueError(
            f"mixer {name!r} cannot be matched to {budget:,} parameters at width={width} (within {TOLERANCE:.0%}): "
            f"{variant.fixed}, {own:,} parameters, and a column of its MLP has {column:,}. Choose a{'n' * (other == 'other')} "
            f"{other} --budget, or leave this mixer out."
        )
    note = f"{variant.fixed}; its MLP has {extra} more columns to match parameters"
    return Matched(variant.args, extra, note, f"params {budget}")


def build_model(
    mixer: str,
    args: dict,
    vocab_size: int,
    width: int,
    layers: int,
    mlp_width: int,
    readout: str = "tokens",
    initializer_range: float = 0.02,
) -> nn.Module:
    """The host model: FLA's Transformer with its attention replaced, `layers` blocks of mixer + SwiGLU MLP.

    Nothing outside the mixer encodes position. The readout is `"tokens"`, the language-model head, or `"autoencoder"`
    (`benchmarks.compare.readout`), ValueError for another. Weights come from torch's global generator,
    those of embeddings and linear maps with the standard deviation `initializer_range`.
    """
    if readout not in READOUTS:
        raise ValueError(f"readout={readout!r} is not known; expected one of {', '.join(READOUTS)}.")
    config = TransformerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_heads=4,
        intermediate_size=mlp_width,
        vocab_size=vocab_size,
        mixer=mixer,
        mixer_config=args,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        initializer_range=initializer_range,
    )
    host = TransformerForCausalLM(config)
    return AutoEncoder(host) if readout == "autoencoder" else host
