"""What is replaced on a CPU, and by what: the one list of it."""

from functools import partial

from fla_bdlru.fla_cpu import (
    activation,
    again,
    attention,
    convolution,
    delta_rule,
    documents,
    linear_attn,
    loss,
    mamba,
    norm,
    rotary,
)


def _alike(module, *functions):
    """Replacements that bear the names of FLA's functions in `module`."""
    return {f"{module}:{function.__name__}": function for function in functions}


def _both(package, function):
    """One replacement of an op's chunked and its fused form."""
    op = package.rpartition(".")[2]
    return {f"{package}.{form}:{form}_{op}": function for form in ("chunk", "fused_recurrent")}


# Functions that FLA decorates with a bare `@dispatch`.
ENTRY_POINTS = {
    **_alike("fla.modules.norm.layernorm", norm.layer_norm_fwd, norm.layer_norm_bwd),
    **_alike("fla.modules.norm.fused_norm_gate", norm.layer_norm_gated_fwd, norm.layer_norm_gated_bwd),
    **_alike("fla.modules.norm.l2norm", norm.l2norm_fwd, norm.l2norm_bwd),
    **activation.elementwise(activation.sigmoid),
    **activation.elementwise(activation.elu_p1),
    **activation.elementwise(activation.logsigmoid),
    **activation.elementwise(activation.swish),
    **activation.glu("swiglu", activation.swish),
    **activation.glu("powglu", activation.powlu),
    **_alike("fla.modules.rotary.ops", rotary.rotary_embedding_fwdbwd),
    **_alike(
        "fla.modules.causal_conv1d.ops",
        *(convolution.causal_conv1d_fwd, convolution.causal_conv1d_bwd, convolution.compute_dh0_triton),
        *(convolution.causal_conv1d_update, convolution.causal_conv1d_update_states),
    ),
    **_alike("fla.modules.fused_cross_entropy.ops", loss.cross_entropy_fwd, loss.cross_entropy_bwd),
    **_alike("fla.modules.fused_linear_cross_entropy.ops", loss.logsumexp_fwd, loss.fused_linear_cross_entropy_bwd),
    **_alike("fla.modules.fused_kl_div.ops", loss.fused_kl_div_fwd, loss.fused_kl_div_bwd),
    **_alike("fla.ops.utils.cumsum", linear_attn.chunk_global_cumsum, linear_attn.chunk_local_cumsum),
    **_alike("fla.ops.simple_gla.parallel", linear_attn.parallel_simple_gla),
    **_alike("fla.ops.gsa.gate", linear_attn.fused_additive_gate),
    "fla.ops.kda.chunk:chunk_kda": delta_rule.kda,
}

# Functions that FLA decorates with `@dispatch("operation")`.
OPERATIONS = {
    "attnres": _alike("fla.ops.attnres.fused", linear_attn.fused_attnres),
    "common": _alike("fla.ops.common.gate", delta_rule.fused_beta_sigmoid_fwd, delta_rule.fused_beta_sigmoid_bwd),
    "gated_delta_rule": {"fla.ops.gated_delta_rule.chunk:chunk_gated_delta_rule": delta_rule.gated_delta_rule},
    "generalized_delta_rule.dplr": {"fla.ops.generalized_delta_rule.dplr.chunk:chunk_dplr_delta_rule": delta_rule.dplr},
    "kda": _alike("fla.ops.kda.gate", delta_rule.fused_kda_gate),
}

# Functions and methods without a dispatch point.
WRAPPED = {
    **_alike("fla.modules.norm.layernorm", norm.layer_norm_linear),
    "fla.modules.norm.layernorm_gated:layer_norm_fwd": norm.layernorm_gated_fwd,
    "fla.modules.norm.layernorm_gated:layer_norm_bwd": norm.layernorm_gated_bwd,
    **_alike("fla.modules.norm.fused_norm_gate", norm.layer_norm_swish_gate_linear),
    "fla.modules.norm.fused_norm_gate:rms_norm_swish_gate_linear": partial(
        norm.layer_norm_swish_gate_linear, is_rms_norm=True
    ),
    **_alike("fla.modules.norm.layernorm_quant", norm.layer_norm_quant_fwd, norm.layer_norm_quant_bwd),
    **_alike("fla.modules.fused_bitlinear", norm.layer_norm_linear_quant),
    **_alike(
        activation.OPS,
        *(activation.gelu_fwd, activation.gelu_bwd, activation.bias_gelu, activation.bias_gelu_bwd),
        *(activation.relu_bwd, activation.sqrelu_fwd, activation.sqrelu_bwd),
    ),
    **_alike("fla.ops.utils.index", documents.prepare_chunk_indices),
    **_alike("fla.modules.token_shift", convolution.token_shift_fwd, convolution.token_shift_bwd),
    "fla.modules.fused_cross_entropy.ops:FusedCrossEntropyLoss.forward": loss.cross_entropy_loss_forward,
    "fla.ops.common.fused_recurrent:fused_recurrent": linear_attn.simple_gla,
    "fla.ops.common.fused_chunk:fused_chunk": linear_attn.simple_gla,
    "fla.ops.simple_gla.chunk:chunk_simple_gla": linear_attn.simple_gla,
    "fla.ops.gla.chunk:chunk_gla": linear_attn.gla,
    **_both("fla.ops.hgrn", linear_attn.hgrn),
    **_both("fla.ops.gsa", linear_attn.gsa),
    **_both("fla.ops.rwkv6", linear_attn.rwkv6),
    "fla.ops.abc.chunk:chunk_abc": linear_attn.abc,
    **_both("fla.ops.delta_rule", delta_rule.delta_rule),
    "fla.ops.gated_delta_rule.fused_recurrent:fused_recurrent_gated_delta_rule": delta_rule.gated_delta_rule,
    **_alike("fla.ops.gated_delta_rule.gate", delta_rule.fused_gdn_gate),
    "fla.ops.gated_delta_product.chunk:chunk_gated_delta_product": delta_rule.gated_delta_product,
    "fla.ops.kda.fused_recurrent:fused_recurrent_kda": delta_rule.kda,
    **_both("fla.ops.gdn2", delta_rule.gdn2),
    **_both("fla.ops.comba", delta_rule.comba),
    "fla.ops.generalized_delta_rule.dplr.fused_recurrent:fused_recurrent_dplr_delta_rule": delta_rule.dplr,
    "fla.ops.rwkv7.fused_recurrent:fused_mul_recurrent_rwkv7": delta_rule.rwkv7,
    **_alike("fla.ops.rwkv7.fused_addcmul", delta_rule.fused_addcmul_rwkv7),
    **_alike("fla.ops.rwkv7.fused_k_update", delta_rule.fused_k_rwkv7),
    **_alike("fla.ops.rwkv7.gate_output_correction", delta_rule.gate_output_correction),
    **_alike("fla.ops.attn.parallel", attention.parallel_attn),
    **_alike("fla.ops.attn.decoding", attention.attn_decoding_one_step),
    "fla.layers.mamba:Mamba.slow_forward": mamba.mamba_slow_forward,
    "fla.layers.mamba2:Mamba2.forward": mamba.mamba2_forward,
    "fla.layers.mamba2:Mamba2.torch_forward": mamba.mamba2_torch_forward,
    "fla.layers.mamba3:Mamba3.forward": mamba.mamba3_forward,
}

# Those that are part of a graph of `torch.compile`, too.
TRACEABLE = activation.glu("sigmoidglu", activation.sigmoid)

# FLA keeps its dispatch out of `torch.compile`, a graph break a call: while a tracer is at work, its modules go past it. Its
# ops stay outside of graphs, where their loops over time would be unrolled.
TRACED = {
    **{target: function for target, function in ENTRY_POINTS.items() if target.startswith("fla.modules.")},
    "fla.modules.causal_conv1d.ops:causal_conv1d": convolution.causal_conv1d,
}

# FLA's autograd functions whose second derivatives need the graph of what they save: for each saved tensor the positions of
# the arguments that it is made of, and what makes the others again.
AGAIN = {
    "fla.modules.norm.layernorm:LayerNormFunction": (((0, 3), (1,), (2,)), norm.layer_norm_again),
    "fla.modules.norm.fused_norm_gate:LayerNormGatedFunction": (((0, 5), (1,), (2,), (3,)), norm.layer_norm_gated_again),
    "fla.modules.norm.layernorm_gated:LayerNormFn": (((0,), (1,), (2,), (), (), (3,)), norm.layernorm_gated_again),
    "fla.modules.norm.l2norm:L2NormFunction": (((0,),), norm.l2norm_again),
    "fla.modules.fused_cross_entropy.ops:FusedCrossEntropyFunction": (((0,),), again.as_saved),
    "fla.ops.common.gate:BetaSigmoidFunction": (((0,),), again.as_saved),
}

# FLA's autograd functions whose gradients are made before they are asked for, and the positions of what those depend on.
ONCE = {
    "fla.modules.fused_linear_cross_entropy.ops:FusedLinearCrossEntropyFunction": (0, 2, 3),
    "fla.modules.fused_kl_div.ops:FusedKLDivLossFunction": (0, 2),
}

# FLA modules that import these functions of the flash_attn package, which does not run on a CPU.
FLASH_ATTENTION_MODULES = tuple(f"fla.layers.{name}" for name in ("attn", "bitattn", "mla", "moba", "rodimus"))
FLASH_ATTENTION = {function.__name__: function for function in (attention.flash_attn_func, attention.flash_attn_varlen_func)}
