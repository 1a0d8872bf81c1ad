"""Mamba and Mamba2 on a CPU: FLA's layers with a scan that a CPU can train.

FLA's own fallbacks hold [T, T] tensors of every head and state channel (Mamba2, padded to its chunk size of 256), or
index the time axis inside the graph (Mamba), which makes the backward quadratic in the length.
"""

import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import are_for_numba, check_shape, full_precision, upcast
from fla_bdlru.fla_cpu.scan import chunk_linear_attention, linear_scan
from fla_bdlru.ops.common.autograd import as_input


def _check(name: str, x, last_state, cu_seqlens) -> None:
    if cu_seqlens is not None:
        raise ValueError(f"{name} has no packed sequences: cu_seqlens has to be None (pad, and pass attention_mask).")
    if last_state is not None and x.shape[1] != 1:
        raise ValueError(f"{name} decodes one token at a time; got {x.shape[1]} with a cached state.")


def _convolve(layer, x, last_state, use_cache):
    """The layer's short convolution and activation; x: [B, T, D], state: [B, D, W] with the last W inputs."""
    from fla.modules.causal_conv1d import causal_conv1d

    fused = layer.activation in ("silu", "swish")
    y, state = causal_conv1d(
        x=x,
        weight=layer.conv1d.weight.squeeze(1),
        bias=layer.conv1d.bias,
        initial_state=None if last_state is None else last_state["conv_state"],
        output_final_state=bool(use_cache) or last_state is not None,
        activation=layer.activation if fused else None,
    )
    return y if fused else layer.act(y), state


def _mask(x, attention_mask):
    if attention_mask is None or attention_mask.shape != x.shape[:2]:
        return x
    return x.masked_fill(attention_mask[..., None] == 0, 0.0)


@full_precision
def _selective_scan(x, dt, A, B, C, last_state):
    """h_t = exp(dt A) h_{t-1} + dt x B and y_t = h_t C; x, dt: [B, T, D], A: [D, N], B and C: [B, T, N]."""
    state = None if last_state is None else last_state["recurrent_state"].to(x.dtype)
    (batch, T, D), N = x.shape, A.shape[-1]
    shapes = {"dt": (dt, x.shape), "A": (A, (D, N)), "B": (B, (batch, T, N)), "C": (C, (batch, T, N))}
    for name, (t, shape) in {**shapes, "recurrent_state": (state, (batch, D, N))}.items():
        check_shape(name, t, shape)
    if x.numel() and are_for_numba(x, dt, A, B, C, state):
        from fla_bdlru.fla_cpu.native_selective_scan import SelectiveScan

        inputs = x, dt, A.t(), B, C, None if state is None else state.mT
        # copied here, where the copies are part of the graph: what is saved has to tell what it depends on
        y, state = SelectiveScan.apply(*(None if t is None else as_input(t) for t in inputs))
        return y, state.mT
    decay = (dt[..., None] * A).exp()
    update = (dt * x)[..., None] * B[:, :, None]
    h = linear_scan(decay, update, x.new_zeros(x.shape[0], *A.shape) if state is None else state)
    return (h @ C[..., None])[..., 0], h[:, -1]


def mamba_slow_forward(self, input_states, last_state=None, use_cache=False, attention_mask=None, **kwargs):
    """`fla.layers.mamba.Mamba.slow_forward`: output, convolution state [B, D, W] and SSM state [B, D, N]."""
    _check("Mamba", input_states, last_state, kwargs.get("cu_seqlens"))
    attention_mask = attention_mask if last_state is None else None
    x, gate = self.in_proj(input_states).chunk(2, -1)
    x, conv_state = _convolve(self, _mask(x, attention_mask), last_state, use_cache)
    x = _mask(x, attention_mask)

    N = self.ssm_state_size
    dt, B, C = self.x_proj(x).split([self.dt_rank, N, N], -1)
    dt, s = F.softplus(upcast(self.dt_proj(dt))), upcast(x)
    y, state = _selective_scan(s, dt, -upcast(self.A_log).exp(), upcast(B), upcast(C), last_state)
    y = y + s * upcast(self.D)
    y = self.out_proj((y * upcast(self.act(gate))).to(input_states.dtype))
    return y, conv_state, state


def mamba2_torch_forward(self, input_states, last_state, use_cache, attention_mask):
    """`fla.layers.mamba2.Mamba2.torch_forward`: output, convolution state [B, D, W] and SSM state [B, H, P, N], if kept."""
    _check("Mamba2", input_states, last_state, None)
    attention_mask = attention_mask if last_state is None else None
    B, T, _ = input_states.shape
    H, P, N = self.num_heads, self.head_dim, self.ssm_state_size
    gate, x, dt = self.in_proj(input_states).split([self.intermediate_size, self.conv_dim, H], -1)
    x, conv_state = _convolve(self, _mask(x, attention_mask), last_state, use_cache)
    x, k, q = _mask(x, attention_mask).split([self.intermediate_size, *[self.n_groups * N] * 2], -1)

    # [B, T, H, ...]; head h reads the B and C of group h // (H / n_groups)
    x = upcast(x).view(B, T, H, P)
    k, q = (upcast(t).view(B, T, -1, N).repeat_interleave(H // self.n_groups, 2) for t in (k, q))
    dt = F.softplus(upcast(dt) + upcast(self.dt_bias)).clamp(*self.dt_limit)[..., None]
    g = -dt * upcast(self.A_log).exp()[:, None]
    state = None if last_state is None else last_state["recurrent_state"].to(x.dtype).transpose(-1, -2)
    for name, t in {"dt_bias": self.dt_bias, "A_log": self.A_log}.items():
        check_shape(name, t, (H,))
    check_shape("recurrent_state", None if state is None else state.mT, (B, H, P, N))
    q, k, v, g = (t.transpose(1, 2) for t in (q, k, x * dt, g))
    y, state = chunk_linear_attention(q, k, v, None, g, state, bool(use_cache))
    y = y.transpose(1, 2) + x * upcast(self._get_D(expand_to_head_dim=True))
    y = y.reshape(B, T, -1)
    y = self.norm(y, gate) if self.rmsnorm else y * self.act(gate)
    y = self.out_proj(y.to(input_states.dtype))
    return y, conv_state, None if state is None else state.transpose(-1, -2).contiguous()


def mamba2_forward(
    self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, output_attentions=False, **kwargs
):
    """`fla.layers.mamba2.Mamba2.forward`, which would ignore `cu_seqlens`."""
    from fla.layers.utils import get_layer_cache, update_layer_cache

    if hidden_states.shape[1] == 0:
        return hidden_states, None, past_key_values
    last_state = get_layer_cache(self, past_key_values)
    _check("Mamba2", hidden_states, last_state, kwargs.get("cu_seqlens"))
    hidden_states = hidden_states if last_state is not None else _mask(hidden_states, attention_mask)
    keep = bool(use_cache) or past_key_values is not None
    output, conv_state, state = self.torch_forward(hidden_states, last_state, keep, attention_mask)
    update_layer_cache(self, past_key_values, recurrent_state=state, conv_state=conv_state, offset=hidden_states.shape[1])
    return output, None, past_key_values
