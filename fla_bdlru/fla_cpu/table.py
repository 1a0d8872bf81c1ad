"""What is replaced on a CPU, and by what: the one list of it."""

from fla_bdlru.fla_cpu import (
    activation,
    attention,
    convolution,
    delta_rule,
    linear_attn,
    loss,
    mamba,
    norm,
    norm_linear,
    rotary,
)

# Functions that FLA decorates with a bare `@dispatch`.
ENTRY_POINTS = {
    "fla.modules.norm.layernorm:layer_norm_fwd": norm.layer_norm_fwd,
    "fla.modules.norm.layernorm:layer_norm_bwd": norm.layer_norm_bwd,
    "fla.modules.norm.fused_norm_gate:layer_norm_gated_fwd": norm.layer_norm_gated_fwd,
    "fla.modules.norm.fused_norm_gate:layer_norm_gated_bwd": norm.layer_norm_gated_bwd,
    "fla.modules.norm.l2norm:l2norm_fwd": norm.l2norm_fwd,
    "fla.modules.norm.l2norm:l2norm_bwd": norm.l2norm_bwd,
    "fla.modules.activations.ops:sigmoid_fwd": activation.sigmoid_fwd,
    "fla.modules.activations.ops:sigmoid_bwd": activation.sigmoid_bwd,
    "fla.modules.activations.ops:elu_p1_fwd": activation.elu_p1_fwd,
    "fla.modules.activations.ops:elu_p1_bwd": activation.elu_p1_bwd,
    "fla.modules.activations.ops:logsigmoid_fwd": activation.logsigmoid_fwd,
    "fla.modules.activations.ops:logsigmoid_bwd": activation.logsigmoid_bwd,
    "fla.modules.activations.ops:swish_fwd": activation.swish_fwd,
    "fla.modules.activations.ops:swish_bwd": activation.swish_bwd,
    "fla.modules.activations.ops:swiglu_fwd": activation.swiglu_fwd,
    "fla.modules.activations.ops:swiglu_fwdbwd": activation.swiglu_fwdbwd,
    "fla.modules.activations.ops:swiglu_linear": activation.swiglu_linear,
    "fla.modules.activations.ops:powglu_fwd": activation.powglu_fwd,
    "fla.modules.activations.ops:powglu_fwdbwd": activation.powglu_fwdbwd,
    "fla.modules.activations.ops:powglu_linear": activation.powglu_linear,
    "fla.modules.rotary.ops:rotary_embedding_fwdbwd": rotary.rotary_embedding_fwdbwd,
    "fla.modules.causal_conv1d.ops:causal_conv1d_fwd": convolution.causal_conv1d_fwd,
    "fla.modules.causal_conv1d.ops:causal_conv1d_bwd": convolution.causal_conv1d_bwd,
    "fla.modules.causal_conv1d.ops:compute_dh0_triton": convolution.compute_dh0_triton,
    "fla.modules.causal_conv1d.ops:causal_conv1d_update": convolution.causal_conv1d_update,
    "fla.modules.causal_conv1d.ops:causal_conv1d_update_states": convolution.causal_conv1d_update_states,
    "fla.modules.fused_cross_entropy.ops:cross_entropy_fwd": loss.cross_entropy_fwd,
    "fla.modules.fused_cross_entropy.ops:cross_entropy_bwd": loss.cross_entropy_bwd,
    "fla.modules.fused_linear_cross_entropy.ops:logsumexp_fwd": loss.logsumexp_fwd,
    "fla.modules.fused_linear_cross_entropy.ops:fused_linear_cross_entropy_bwd": loss.fused_linear_cross_entropy_bwd,
    "fla.modules.fused_kl_div.ops:fused_kl_div_fwd": loss.fused_kl_div_fwd,
    "fla.modules.fused_kl_div.ops:fused_kl_div_bwd": loss.fused_kl_div_bwd,
    "fla.ops.utils.cumsum:chunk_global_cumsum": linear_attn.cumsum,
    "fla.ops.utils.cumsum:chunk_local_cumsum": linear_attn.chunk_local_cumsum,
    "fla.ops.simple_gla.parallel:parallel_simple_gla": linear_attn.parallel_simple_gla,
    "fla.ops.kda.chunk:chunk_kda": delta_rule.kda,
    "fla.ops.gsa.gate:fused_additive_gate": linear_attn.additive_gate,
}

# Functions that FLA decorates with `@dispatch("operation")`.
OPERATIONS = {
    "attnres": {"fla.ops.attnres.fused:fused_attnres": linear_attn.attnres},
    "common": {
        "fla.ops.common.gate:fused_beta_sigmoid_fwd": delta_rule.beta_sigmoid_fwd,
        "fla.ops.common.gate:fused_beta_sigmoid_bwd": delta_rule.beta_sigmoid_bwd,
    },
    "gated_delta_rule": {"fla.ops.gated_delta_rule.chunk:chunk_gated_delta_rule": delta_rule.gated_delta_rule},
    "generalized_delta_rule.dplr": {"fla.ops.generalized_delta_rule.dplr.chunk:chunk_dplr_delta_rule": delta_rule.dplr},
    "kda": {"fla.ops.kda.gate:fused_kda_gate": delta_rule.kda_gate},
}

# Functions and methods without a dispatch point.
WRAPPED = {
    "fla.modules.norm.layernorm:layer_norm_linear": norm_linear.layer_norm_linear,
    "fla.modules.norm.layernorm_gated:layer_norm_fwd": norm.layernorm_gated_fwd,
    "fla.modules.norm.layernorm_gated:layer_norm_bwd": norm.layernorm_gated_bwd,
    "fla.modules.norm.fused_norm_gate:layer_norm_swish_gate_linear": norm_linear.layer_norm_swish_gate_linear,
    "fla.modules.norm.fused_norm_gate:rms_norm_swish_gate_linear": norm_linear.rms_norm_swish_gate_linear,
    "fla.modules.norm.layernorm_quant:layer_norm_quant_fwd": norm_linear.layer_norm_quant_fwd,
    "fla.modules.norm.layernorm_quant:layer_norm_quant_bwd": norm_linear.layer_norm_quant_bwd,
    "fla.modules.fused_bitlinear:layer_norm_linear_quant": norm_linear.layer_norm_linear_quant,
    "fla.modules.activations.ops:sigmoidglu_fwd": activation.sigmoidglu_fwd,
    "fla.modules.activations.ops:sigmoidglu_fwdbwd": activation.sigmoidglu_fwdbwd,
    "fla.modules.activations.ops:sigmoidglu_linear": activation.sigmoidglu_linear,
    "fla.modules.activations.ops:gelu_fwd": activation.gelu_fwd,
    "fla.modules.activations.ops:gelu_bwd": activation.gelu_bwd,
    "fla.modules.activations.ops:bias_gelu": activation.bias_gelu,
    "fla.modules.activations.ops:bias_gelu_bwd": activation.bias_gelu_bwd,
    "fla.modules.activations.ops:relu_bwd": activation.relu_bwd,
    "fla.modules.activations.ops:sqrelu_fwd": activation.sqrelu_fwd,
    "fla.modules.activations.ops:sqrelu_bwd": activation.sqrelu_bwd,
    "fla.modules.token_shift:token_shift_fwd": convolution.token_shift_fwd,
    "fla.modules.token_shift:token_shift_bwd": convolution.token_shift_bwd,
    "fla.modules.fused_cross_entropy.ops:FusedCrossEntropyLoss.forward": loss.cross_entropy_loss_forward,
    "fla.ops.common.fused_recurrent:fused_recurrent": linear_attn.simple_gla,
    "fla.ops.common.fused_chunk:fused_chunk": linear_attn.simple_gla,
    "fla.ops.simple_gla.chunk:chunk_simple_gla": linear_attn.simple_gla,
    "fla.ops.gla.chunk:chunk_gla": linear_attn.gla,
    "fla.ops.hgrn.chunk:chunk_hgrn": linear_attn.hgrn,
    "fla.ops.hgrn.fused_recurrent:fused_recurrent_hgrn": linear_attn.hgrn,
    "fla.ops.delta_rule.chunk:chunk_delta_rule": delta_rule.delta_rule,
    "fla.ops.delta_rule.fused_recurrent:fused_recurrent_delta_rule": delta_rule.delta_rule,
    "fla.ops.gated_delta_rule.fused_recurrent:fused_recurrent_gated_delta_rule": delta_rule.gated_delta_rule,
    "fla.ops.gated_delta_rule.gate:fused_gdn_gate": delta_rule.gdn_gate,
    "fla.ops.gated_delta_product.chunk:chunk_gated_delta_product": delta_rule.gated_delta_product,
    "fla.ops.kda.fused_recurrent:fused_recurrent_kda": delta_rule.kda,
    "fla.ops.gdn2.chunk:chunk_gdn2": delta_rule.gdn2,
    "fla.ops.gdn2.fused_recurrent:fused_recurrent_gdn2": delta_rule.gdn2,
    "fla.ops.comba.chunk:chunk_comba": delta_rule.comba,
    "fla.ops.comba.fused_recurrent:fused_recurrent_comba": delta_rule.comba,
    "fla.ops.generalized_delta_rule.dplr.fused_recurrent:fused_recurrent_dplr_delta_rule": delta_rule.dplr,
    "fla.ops.rwkv7.fused_recurrent:fused_mul_recurrent_rwkv7": delta_rule.rwkv7,
    "fla.ops.rwkv7.fused_addcmul:fused_addcmul_rwkv7": delta_rule.addcmul_rwkv7,
    "fla.ops.rwkv7.fused_k_update:fused_k_rwkv7": delta_rule.k_rwkv7,
    "fla.ops.rwkv7.gate_output_correction:gate_output_correction": delta_rule.gate_output_correction,
    "fla.ops.rwkv6.chunk:chunk_rwkv6": linear_attn.rwkv6,
    "fla.ops.rwkv6.fused_recurrent:fused_recurrent_rwkv6": linear_attn.rwkv6,
    "fla.ops.gsa.chunk:chunk_gsa": linear_attn.gsa,
    "fla.ops.gsa.fused_recurrent:fused_recurrent_gsa": linear_attn.gsa,
    "fla.ops.abc.chunk:chunk_abc": linear_attn.abc,
    "fla.ops.attn.parallel:parallel_attn": attention.parallel_attn,
    "fla.ops.attn.decoding:attn_decoding_one_step": attention.attn_decoding_one_step,
    "fla.layers.mamba:Mamba.slow_forward": mamba.mamba_slow_forward,
    "fla.layers.mamba2:Mamba2.forward": mamba.mamba2_forward,
    "fla.layers.mamba2:Mamba2.torch_forward": mamba.mamba2_torch_forward,
}

# FLA keeps its dispatch out of `torch.compile`, a graph break a call: while a tracer is at work, its modules go past it. Its
# ops stay outside of graphs, where their loops over time would be unrolled.
TRACED = {
    **{target: function for target, function in ENTRY_POINTS.items() if target.startswith("fla.modules.")},
    "fla.modules.causal_conv1d.ops:causal_conv1d": convolution.causal_conv1d,
}

# FLA modules that import these functions of the flash_attn package, which does not run on a CPU.
FLASH_ATTENTION_MODULES = (
    "fla.layers.attn",
    "fla.layers.bitattn",
    "fla.layers.mla",
    "fla.layers.moba",
    "fla.layers.rodimus",
)
FLASH_ATTENTION = {
    "flash_attn_func": attention.flash_attn_func,
    "flash_attn_varlen_func": attention.flash_attn_varlen_func,
}
