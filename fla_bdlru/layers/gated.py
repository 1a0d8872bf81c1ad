"""What BD-LRU and H-LRU layers share: projections, gates, short convolution, output gate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import wraps

import torch
import torch.nn.functional as F
from torch import nn

from fla_bdlru.layers.base import Mixer, check_choice, check_count, check_number, check_switch, fla_part
from fla_bdlru.layers.gate_bias import GATE_BIASES, check_memory_range, gate_logits, rounded_down
from fla_bdlru.layers.measure import linear_flops_per_token
from fla_bdlru.ops.common.context_parallel import entering_tokens
from fla_bdlru.ops.common.gate_norm import check_gate_norm
from fla_bdlru.ops.common.recompute import with_gates


class ConstantGates(nn.Module):
    """Gate logits that do not depend on the input: a projection that is all bias."""

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(num_gates))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.bias.to(hidden_states.dtype).expand(*hidden_states.shape[:-1], -1)


def gathered(parameter: nn.Parameter) -> AbstractContextManager:
    """Within it a parameter is whole that DeepSpeed's ZeRO-3 has split as it was made; then rank 0's goes to all."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter], modifier_rank=0)


def placed_as(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """`value` in the dtype of a parameter, and sharded as it is."""
    value = value.to(parameter.dtype)
    if not hasattr(parameter, "device_mesh"):  # sharded before it was initialised, as torchtitan does
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)


START_STD = 0.1  # of a learned initial state: about what a first token leaves in a new layer


def takes_options(init: Callable) -> Callable:
    """Writes the options of `GatedRecurrence.build` into the signature of a constructor that hands `**options` on to it."""
    own, shared = (inspect.signature(f).parameters.values() for f in (init, GatedRecurrence.build))
    options = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in shared if p.kind is p.KEYWORD_ONLY]
    signature = inspect.Signature([*(p for p in own if p.kind is not p.VAR_KEYWORD), *options])

    @wraps(init)
    def __init__(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            _, *accepted = signature.parameters
            raise TypeError(f"{type(args[0]).__name__}: {error}; it takes {', '.join(accepted)}.") from None
        init(**given.arguments)

    __init__.__signature__ = signature
    return __init__


class GatedRecurrence(Mixer):
    """Base of the layers: `o_proj(readout(recurrence(v_proj(x), a_proj(x))))`.

    A subclass sets `gate_shape`, `width` (channels of v) and `readout_width` before `build`, and gives `ops` (chunkwise, step
    by step), `recur`, `initial_gates` and `state_size`.
    """

    ops: tuple[Callable, Callable]
    gate_shape: tuple[int, ...]
    width: int
    readout_width: int
    supports_context_parallel = True

    def build(
        self,
        hidden_size: int,
        *,
        gate_norm: str = "softmax",
        selective: bool = True,
        gate_bias: str = "uniform",
        memory_range: tuple[float, float] = (2.0, 1024.0),
        use_short_conv: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        use_output_gate: bool = False,
        output_gate_activation: str = "swish",
        norm_eps: float = 1e-5,
        mode: str = "chunk",
        layer_idx: int | None = None,
        recompute_gates: bool = False,
        initial_state: str = "zero",
    ) -> None:
        """Checks the options that the layers share and makes the parameters."""
        check_gate_norm(gate_norm)
        check_count("conv_size", conv_size)
        check_number("norm_eps", norm_eps)
        check_memory_range(memory_range)
        switches = {"selective": selective, "use_short_conv": use_short_conv, "conv_bias": conv_bias}
        for field, value in {**switches, "use_output_gate": use_output_gate, "recompute_gates": recompute_gates}.items():
            check_switch(field, value)
        check_choice("gate_bias", gate_bias, GATE_BIASES)
        check_choice("initial_state", initial_state, ("zero", "learned"))
        check_choice("mode", mode, ("chunk", "fused_recurrent"))
        check_choice("output_gate_activation", output_gate_activation, ("swish", "silu", "sigmoid"))
        self.hidden_size = hidden_size
        self.gate_norm = gate_norm
        self.selective = selective
        self.gate_bias = gate_bias
        self.memory_range = tuple(memory_range)
        self.use_short_conv = use_short_conv
        self.use_output_gate = use_output_gate
        self.conv_size = conv_size
        self.mode = mode
        self.layer_idx = layer_idx
        self.recompute_gates = recompute_gates
        self.initial_state = initial_state

        num_gates = self.num_gates()
        self.v_proj = nn.Linear(hidden_size, self.width, bias=False)
        self.a_proj = nn.Linear(hidden_size, num_gates, bias=True) if selective else ConstantGates(num_gates)
        if use_short_conv:
            self.v_conv1d = fla_part("fla.modules", "ShortConvolution")(
                hidden_size=self.width, kernel_size=conv_size, bias=conv_bias, activation="silu"
            )
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, self.readout_width, bias=False)
            self.o_norm = fla_part("fla.modules", "FusedRMSNormGated")(
                hidden_size=self.readout_width, eps=norm_eps, activation=output_gate_activation
            )
        self.o_proj = nn.Linear(self.readout_width, hidden_size, bias=False)
        *_, columns, num = self.gate_shape
        self.h0 = nn.Parameter(torch.empty(columns - 1, num)) if initial_state == "learned" else None  # gate-major
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """(Re)initialises the gates' bias and the initial state, all that differs from what a model's `_init_weights` draws.

        What transformers has loaded stays, and transformers leaves alone what is set here.
        """
        for parameter in self.mark_parameters():
            loaded = getattr(parameter, "_is_hf_initialized", False) and not getattr(parameter, "_is_set_here", False)
            if parameter.is_meta or loaded:
                continue
            with torch.no_grad(), gathered(parameter):
                if parameter is self.h0:
                    nn.init.normal_(parameter, std=START_STD)
                else:
                    self.reset_bias(parameter)
            parameter._is_set_here = parameter._is_hf_initialized = True

    def mark_parameters(self) -> list[nn.Parameter]:
        """The gates' bias and the initial state, marked to have no weight decay; what transformers loads bears no mark.

        A subclass may have put a projection there that has no bias.
        """
        parameters = [p for p in (getattr(self.a_proj, "bias", None), self.h0) if p is not None]
        for parameter in parameters:
            parameter._no_weight_decay = True
        return parameters

    def reset_bias(self, bias: nn.Parameter) -> None:
        """Starts the gates' bias as `gate_bias` says."""
        if self.gate_bias == "memory":
            logits = gate_logits(self.initial_gates(), self.gate_norm).flatten()
            if self.gate_norm == "none":
                logits = rounded_down(logits, bias.dtype)
            bias.copy_(placed_as(logits, bias))
        elif self.selective:
            nn.init.zeros_(bias)
        else:
            nn.init.normal_(bias)  # nothing else tells the rows apart

    def start(self, num_seqs: int) -> torch.Tensor | None:
        """The learned state `[num_seqs, H, M]` that sequences begin with, in float32; `None` for zeros."""
        if self.h0 is None:
            return None
        return self.h0.to(torch.promote_types(self.h0.dtype, torch.float32)).t().expand(num_seqs, -1, -1)

    def initial_gates(self) -> torch.Tensor:
        """Gates of shape `gate_shape` with time constants spread over `memory_range`."""
        raise NotImplementedError

    def recur(self, v: torch.Tensor, g: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        """From v `[B, T, width]` and logits `[B, T, *gate_shape]` to the readout `[B, T, readout_width]` and the last state.

        `options` are the arguments of the op.
        """
        raise NotImplementedError

    def num_gates(self) -> int:
        """Number of gate logits of a step."""
        return torch.Size(self.gate_shape).numel()

    def gates(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Gate logits `[B, T, *gate_shape]`."""
        return self.a_proj(hidden_states).unflatten(-1, self.gate_shape)

    def op(self, v: torch.Tensor) -> Callable:
        """The op for inputs v `[B, T, ...]`."""
        step = v.shape[1] == 1 and not torch.is_grad_enabled()
        return self.ops[1 if step or self.mode == "fused_recurrent" else 0]

    def cached_states(self) -> tuple[str, ...]:
        return ("recurrent_state", "conv_state") if self.use_short_conv else ("recurrent_state",)

    def conv_state_size(self) -> int:
        """Number of values in the short convolution's cache."""
        return self.width * self.conv_size if self.use_short_conv else 0

    def flops_per_token(self) -> int:
        """Floating-point operations of one step of the forward pass, a multiply-add counted as two.

        Projections and the recurrence are counted in full, the gates' norm as three operations per logit, what an output gate
        and a short convolution's activation do element by element not at all.
        """
        return linear_flops_per_token(self) + 2 * self.conv_state_size() + 5 * self.num_gates()

    def mix(self, hidden_states, last_state, use_cache, cu_seqlens, cp_context):
        v = self.v_proj(hidden_states)
        readout, state = with_gates(
            self.gates,
            hidden_states,
            lambda g: self.scan(v, g, last_state, use_cache, cu_seqlens, cp_context),
            read=self.read_by_gates,
            recompute=self.recompute_gates,
            is_random=self.may_draw_gates(),
            can_trace=cp_context is None,
        )
        return self.project_out(readout, hidden_states), state["recurrent_state"], state["conv_state"]

    def has_own_gates(self) -> bool:
        """Whether a subclass or its user makes the logits."""
        return type(self).gates is not GatedRecurrence.gates or "gates" in self.__dict__

    def read_by_gates(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules by name that hold what logits are made with."""
        return self.named_modules() if self.has_own_gates() else self.a_proj.named_modules(prefix="a_proj")

    def may_draw_gates(self) -> bool:
        """Whether logits may depend on random numbers: by LoRA's dropout, or by whatever a hook or a subclass does."""
        if self.has_own_gates():
            return True
        proj = self.a_proj
        hooked = proj._forward_hooks or proj._forward_pre_hooks or "forward" in proj.__dict__  # torch 2.8: no vars
        return bool(hooked) or type(proj) not in (nn.Linear, ConstantGates)

    def mix_steps(self, hidden_states, last_state, num_steps):
        v, g = self.v_proj(hidden_states), self.gates(hidden_states)
        first = hidden_states.shape[1] - num_steps
        pieces = [first] * (first > 0) + [1] * num_steps
        # a snapshot: the cache's own dictionary is about to change
        first_state = last_state and {name: last_state[name] for name in ("recurrent_state", "conv_state")}
        readouts, states = [], [first_state]
        for v_piece, g_piece in zip(v.split(pieces, 1), g.split(pieces, 1)):
            readout, state = self.scan(v_piece, g_piece, states[-1], True)
            readouts.append(readout)
            states.append(state)
        *before, state = states
        o = self.project_out(torch.cat(readouts, 1), hidden_states)
        return o, state["recurrent_state"], state["conv_state"], before[-num_steps:]

    def scan(self, v, g, last_state, use_cache, cu_seqlens=None, cp_context=None) -> tuple[torch.Tensor, dict]:
        """Convolution and recurrence, from projections to the readout and the states, by the cache's names."""
        conv_state, num_seqs = None, v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if self.use_short_conv:
            if cp_context is not None and cp_context.group is not None and self.conv_size > 1:
                # [num_seqs, width, conv_size]; the convolution does not look at the first column
                conv_state = F.pad(entering_tokens(v, self.conv_size - 1, cp_context).transpose(1, 2), (1, 0))
            elif last_state is not None:
                # the convolution's decode kernel writes into its cache: give it a copy, a cache is never changed in place
                conv_state = last_state["conv_state"].to(v.dtype, copy=True)
            v, conv_state = self.v_conv1d(v, cache=conv_state, output_final_state=use_cache, cu_seqlens=cu_seqlens)
        readout, state = self.recur(
            v,
            g,
            initial_state=self.start(num_seqs) if last_state is None else last_state["recurrent_state"],
            output_final_state=use_cache,
            gate_norm=self.gate_norm,
            cu_seqlens=cu_seqlens,
            cp_context=cp_context,
        )
        return readout, {"recurrent_state": state, "conv_state": conv_state}

    def project_out(self, readout: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Output gate and projection."""
        if self.use_output_gate:
            readout = self.o_norm(readout, self.g_proj(hidden_states))
        return self.o_proj(readout)

    def extra_repr(self) -> str:
        names = ("gate_norm", "selective", "gate_bias", "initial_state")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
