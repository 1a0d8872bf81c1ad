"""FLA's own Triton kernels on CPU tensors, beside the replacements: `python interpreter_cases.py results.json`.

`CASES` says what is compared. Run as a script with TRITON_INTERPRET=1, it writes, for each case, the relative errors
of the replacement's outputs and gradients against the kernel's, or the error that the kernel raised.
"""

import json
import sys
import traceback
from types import SimpleNamespace

import torch
import torch.nn.functional as F

B, T, H, K, V = 2, 9, 2, 8, 8


def r(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


def half(*shape):
    # the interpreter multiplies the bit patterns of bf16 matrices, so half types are fp16 here
    return r(*shape, dtype=torch.float16)


def unit(x):
    return F.normalize(x.float(), dim=-1).to(x.dtype)


def gate(*shape):
    return F.logsigmoid(r(*shape))


def packing(*bounds):
    return torch.tensor(bounds)


def module_cases():
    from fla.modules import activations, fused_bitlinear, fused_norm_gate, l2norm, layernorm, layernorm_gated, token_shift
    from fla.modules.causal_conv1d import causal_conv1d, causal_conv1d_update
    from fla.modules.fused_cross_entropy import cross_entropy_loss
    from fla.modules.fused_kl_div import fused_kl_div_loss
    from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss, logsumexp_fwd
    from fla.modules.rotary import rotary_embedding

    x, y, cos, sin = r(2, 5, 12), r(2, 5, 12), r(16, 3), r(16, 3)
    target, teacher = torch.tensor([1, 4, -100]), (r(3, 8), r(7, 8))
    options = {"label_smoothing": 0.1, "logit_scale": 0.5, "lse_square_scale": 0.1, "logit_softcapping": 2.0}
    yield "rms_norm", lambda x, w, res: layernorm.rms_norm(x, w, None, res, prenorm=True), [x, r(12), y]
    yield (
        "layer_norm, half precision",
        lambda x, w, b: layernorm.layer_norm(x, w, b, None, prenorm=True, residual_in_fp32=True),
        [x.half(), r(12), r(12)],
    )
    yield "layer_norm, wide", lambda x, w, b, res: layernorm.layer_norm(x, w, b, res), [r(3, 520), r(520), r(520), r(3, 520)]
    yield "group_norm", lambda x, w, b: layernorm.group_norm(x, w, b, num_groups=3), [x, r(12), r(12)]
    yield (
        "layer_norm_linear",
        lambda x, w, nw, b: layernorm.layer_norm_linear(x, nw, b, w, None),
        [x, r(7, 12), r(12), r(12)],
    )
    yield (
        "group_norm_linear",
        lambda x, w, nw: layernorm.group_norm_linear(x, nw, None, w, None, num_groups=2, is_rms_norm=True),
        [x, r(7, 12), r(12)],
    )
    yield "rms_norm_gated", lambda x, g, w: fused_norm_gate.rms_norm_gated(x, g, w, None), [x, y, r(12)]
    yield (
        "layer_norm_gated, wide",
        lambda x, g, w, b: fused_norm_gate.layer_norm_gated(x, g, w, b, "sigmoid"),
        [r(3, 520), r(3, 520), r(520), r(520)],
    )
    yield (
        "rms_norm_swish_gate_linear",
        lambda x, g, w, nw: fused_norm_gate.rms_norm_swish_gate_linear(x, g, nw, None, w, None),
        [x, y, r(7, 12), r(12)],
    )
    for before in (False, True):
        yield (
            f"layernorm_gated, norm_before_gate={before}",
            lambda x, z, w, b, before=before: layernorm_gated.layernorm_fn(x, w, b, z, group_size=6, norm_before_gate=before),
            [x, y, r(12), r(12)],
        )
    yield "l2norm", l2norm.l2norm, [x]
    yield "l2norm, wide", l2norm.l2norm, [r(3, 520)]
    yield (
        "layer_norm_linear_quant",
        lambda x, w, nw: fused_bitlinear.layer_norm_linear_quant(x, nw, None, w, None, is_rms_norm=True),
        [x, r(7, 12), r(12)],
    )
    for name in ("sigmoid", "swish", "logsigmoid"):
        yield name, getattr(activations, name), [x]
    for name in ("swiglu", "sigmoidglu", "powglu"):
        yield name, getattr(activations, name), [x, y]
        yield f"{name}_linear", getattr(activations, f"{name}_linear"), [x, y, r(7, 12), r(7)]
    offsets = torch.tensor([2, -2])
    yield "rotary_embedding", lambda x: rotary_embedding(x, cos, sin, seqlen_offsets=offsets), [r(2, 5, 2, 8)]
    yield (
        "rotary_embedding, packed",
        lambda x: rotary_embedding(x, cos, sin, interleaved=True, cu_seqlens=packing(0, 2, 7)),
        [r(1, 7, 2, 8)],
    )
    for bounds in (None, packing(0, 2, 9)):
        N, batch = 2, 2 if bounds is None else 1

        def conv(x, w, b, state, bounds=bounds):
            y, final = causal_conv1d(x, w, b, None, state, True, "silu", cu_seqlens=bounds)
            return y, final[..., 1:]

        kind = "" if bounds is None else ", packed"
        yield f"causal_conv1d{kind}", conv, [r(batch, 9, 8), r(8, 4), r(8), r(N, 8, 4)]
        yield (
            f"causal_conv1d{kind}, through the first column of the final state",
            lambda x, w, bounds=bounds: causal_conv1d(x, w, output_final_state=True, cu_seqlens=bounds)[1][..., 0],
            [r(batch, 9, 8), r(8, 4)],
        )
        yield (
            f"token_shift{kind}",
            lambda x, c, bounds=bounds: token_shift.token_shift(x, bounds, c, True),
            [r(batch, 9, 8), r(N, 8)],
        )
    yield (
        "causal_conv1d_update",
        lambda x, c, res, w, b: causal_conv1d_update(
            x.detach(), c.detach().clone(), res.detach(), w.detach(), b.detach(), "silu"
        ),
        [r(3, 1, 8), r(3, 8, 4), r(3, 1, 8), r(8, 4), r(8)],
    )
    yield "cross_entropy_loss", lambda x: cross_entropy_loss(x, target, **options)[0], [r(3, 7)]
    yield (
        "fused_linear_cross_entropy_loss",
        lambda x, w, b: 3 * fused_linear_cross_entropy_loss(x, target, w, b, use_l2warp=True, l2_penalty_factor=0.1),
        [r(3, 8), r(7, 8), r(7)],
    )
    yield "logsumexp_fwd", lambda x: logsumexp_fwd(x.detach(), scale=0.5), [r(3, 70)]
    yield "fused_kl_div_loss", lambda x, w: 2 * fused_kl_div_loss(x, teacher[0], w, teacher[1]), [r(3, 8), r(7, 8)]


def variant_cases(kind, shape, bounds):
    from fla.ops.attn.decoding import attn_decoding_one_step
    from fla.ops.attn.parallel import parallel_attn
    from fla.ops.comba import chunk_comba, fused_recurrent_comba
    from fla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
    from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
    from fla.ops.gsa import chunk_gsa, fused_recurrent_gsa
    from fla.ops.gsa.gate import fused_additive_gate
    from fla.ops.rwkv6 import chunk_rwkv6, fused_recurrent_rwkv6
    from fla.ops.rwkv7 import fused_mul_recurrent_rwkv7
    from fla.ops.rwkv7.fused_addcmul import fused_addcmul_rwkv7
    from fla.ops.rwkv7.fused_k_update import fused_k_rwkv7
    from fla.ops.rwkv7.gate_output_correction import gate_output_correction

    c = {"cu_seqlens": bounds, "output_final_state": True}
    q, k, v, state = half(*shape, H, K), unit(half(*shape, H, K)), half(*shape, H, V), r(2, H, K, V)
    q32, k32, v32 = (x.float() for x in (q, k, v))
    p, beta, gk = unit(half(*shape, H, K)), torch.rand(*shape, H).half(), gate(*shape, H, K).clamp_min(-0.6)
    yield (
        f"chunk_comba{kind}",
        lambda q, k, v, p, g, b, s: chunk_comba(q, k, v, p, g, b, None, s, use_qk_l2norm_in_kernel=True, **c),
        [q, k, v, p, gate(*shape, H), beta, state],
    )
    yield (
        f"fused_recurrent_comba{kind}",
        lambda *xs: fused_recurrent_comba(*(x.detach() for x in xs[:6]), None, xs[6].detach(), **c),
        [q32, k32, p.float(), v32, gate(*shape, H), beta.float(), state],
    )
    yield (
        f"chunk_gdn2{kind}",
        lambda q, k, v, g, b, w, s: chunk_gdn2(q, k, v, g, b, w, None, s, **c),
        [q, k, v, gk, torch.rand(*shape, H, K).half(), torch.rand(*shape, H, V).half(), state],
    )
    yield (
        f"fused_recurrent_gdn2{kind}",
        lambda *xs: fused_recurrent_gdn2(*(x.detach() for x in xs[:6]), initial_state=xs[6].detach(), **c),
        [q32, k32, v32, gk, torch.rand(*shape, H, K), torch.rand(*shape, H, V), state],
    )
    a, b = -unit(r(*shape, H, K)), unit(r(*shape, H, K))
    yield (
        f"chunk_dplr_delta_rule{kind}",
        lambda q, k, v, a, b, g, s: chunk_dplr_delta_rule(q, k, v, a, b, g, None, s, chunk_size=16, **c),
        [q32, k32, v32, a, b, gk, state],
    )
    yield (
        f"fused_recurrent_dplr_delta_rule{kind}",
        lambda *xs: fused_recurrent_dplr_delta_rule(*(x.detach() for x in xs[:6]), None, xs[6].detach(), **c),
        [q32, k32, v32, a, b, gk, state],
    )
    yield (
        f"fused_mul_recurrent_rwkv7{kind}",
        lambda *xs: fused_mul_recurrent_rwkv7(*(x.detach() for x in xs[:6]), 1.0, xs[6].detach(), **c),
        [q32, gk, k32, v32, -a, torch.rand(*shape, H, K), state],
    )
    rwkv6 = [q32, k32, v32, gk, r(H, K)]
    yield (f"chunk_rwkv6{kind}", lambda q, k, v, w, u, s: chunk_rwkv6(q, k, v, w, u, None, s, **c), [*rwkv6, state])
    yield (
        f"fused_recurrent_rwkv6{kind}",
        lambda q, k, v, w, u, s: fused_recurrent_rwkv6(q, k, v, w, u, None, s, cu_seqlens=bounds)[0],
        [*rwkv6, state],
    )
    yield f"fused_recurrent_rwkv6{kind}, through the final state", lambda *xs: fused_recurrent_rwkv6(*xs, **c)[1], rwkv6
    slots, memory = r(*shape, H, 8), r(2, H, 8, V)
    for op in (chunk_gsa, fused_recurrent_gsa):

        def gsa(q, k, v, s, g, hk, hv, op=op):
            o, (hk, hv) = op(q, k, v, s, g, None, (hk, hv), **c)
            return o, hk, hv

        yield f"{op.__name__}{kind}", gsa, [q32, k32, v32, slots, gate(*shape, H, 8), r(2, H, K, 8), memory]
    yield (
        f"chunk_gsa{kind}, additive gate",
        lambda q, k, v, s: chunk_gsa(q, k, v, s, cu_seqlens=bounds)[0],
        [q32, k32, v32, slots],
    )
    yield (
        f"fused_additive_gate{kind}",
        lambda x, z: fused_additive_gate(x, z, cu_seqlens=bounds),
        [r(*shape, H, K), r(2, 1, H, K)],
    )
    grouped = [r(*shape, 2 * H, K), k32, v32, gate(*shape, 2 * H)]
    yield f"parallel_attn{kind}", lambda *xs: parallel_attn(*xs, cu_seqlens=bounds), grouped
    yield (
        f"parallel_attn{kind}, with a window and a sink",
        lambda q, k, v, sink: parallel_attn(q, k, v, window_size=3, cu_seqlens=bounds, sink_bias=sink),
        [*grouped[:3], r(2 * H)],
    )
    if bounds is not None:
        yield (
            "attn_decoding_one_step",
            lambda *xs: attn_decoding_one_step(*(x.detach() for x in xs), cu_seqlens=bounds, do_gate_scale=True),
            [r(1, 2, 2 * H, K), *grouped[1:]],
        )
        return
    x, mixes = r(B, T, H * K), [r(1, 1, H * K) for _ in range(6)]
    yield "fused_addcmul_rwkv7", fused_addcmul_rwkv7, [x, r(B, T, H * K), *mixes]
    yield "fused_k_rwkv7", fused_k_rwkv7, [x, r(B, T, H * K), r(H * K)]
    yield "gate_output_correction", gate_output_correction, [x, q32, k32, r(H, K), v32, r(B, T, H * V)]


def op_cases():
    from fla.ops.abc import chunk_abc
    from fla.ops.attnres import fused_attnres
    from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
    from fla.ops.gated_delta_product import chunk_gated_delta_product
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    from fla.ops.gated_delta_rule.gate import fused_gdn_gate
    from fla.ops.gla import chunk_gla, fused_recurrent_gla
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn
    from fla.ops.kda import chunk_kda, fused_recurrent_kda
    from fla.ops.kda.gate import fused_kda_gate
    from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn
    from fla.ops.retention import chunk_retention, fused_chunk_retention, fused_recurrent_retention, parallel_retention
    from fla.ops.simple_gla import chunk_simple_gla, fused_chunk_simple_gla, fused_recurrent_simple_gla, parallel_simple_gla
    from fla.ops.utils.cumsum import chunk_global_cumsum, chunk_local_cumsum

    def without_grad(fn):
        """For kernels that have no backward."""
        return lambda *args: fn(*(x.detach() for x in args))

    for bounds in (None, packing(0, 4, 13)):
        kind, shape = ("", (B, T)) if bounds is None else (", packed", (1, 13))
        c = {"cu_seqlens": bounds, "output_final_state": True}
        q, k, v, beta = half(*shape, H, K), unit(half(*shape, H, K)), half(*shape, H, V), torch.rand(*shape, H).half()
        state, g, gk, gv = r(2, H, K, V), gate(*shape, H), gate(*shape, H, K), gate(*shape, H, V)
        full = [x.float() for x in (q, k, v)]
        yield (
            f"chunk_delta_rule{kind}",
            lambda q, k, v, b, s, c=c: chunk_delta_rule(q, k, v, b, None, s, use_qk_l2norm_in_kernel=True, chunk_size=16, **c),
            [q, k, v, beta, state],
        )
        yield (
            f"fused_recurrent_delta_rule{kind}",
            lambda q, k, v, b, s, c=c: fused_recurrent_delta_rule(q, k, v, b, None, s, **c),
            [*full, beta.float(), state],
        )
        yield (
            f"chunk_gated_delta_rule{kind}",
            lambda q, k, v, g, b, s, c=c: chunk_gated_delta_rule(
                q, k, v, g, b, None, s, use_qk_l2norm_in_kernel=True, chunk_size=16, **c
            ),
            [q, k, v, g, beta, state],
        )
        yield (
            f"chunk_gated_delta_rule{kind}, every option",
            lambda q, k, v, g, b, s, A, dt, c=c: chunk_gated_delta_rule(
                q, k, v, g, b, None, s, use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True,
                allow_neg_eigval=True, use_gate_in_kernel=True, A_log=A, dt_bias=dt, state_v_first=True, chunk_size=16, **c
            ),
            [q, k, half(*shape, 2 * H, V), r(*shape, 2 * H), r(*shape, 2 * H), r(2, 2 * H, V, K), r(2 * H), r(2 * H)],
        )  # fmt: skip
        yield (
            f"fused_recurrent_gated_delta_rule{kind}",
            without_grad(
                lambda q, k, v, g, gk, gv, b, s, c=c: fused_recurrent_gated_delta_rule(
                    q, k, v, g, gk, gv, b, None, s, use_qk_l2norm_in_kernel=True, **c
                )
            ),
            [*full, g, gk, gv, r(*shape, H, V), state],
        )
        yield (
            f"chunk_gated_delta_product{kind}",
            lambda q, k, v, g, b, s, c=c: chunk_gated_delta_product(
                q, k, v, g, b, 2, None, s, use_qk_l2norm_in_kernel=True, **c
            ),
            [q, half(shape[0], 2 * shape[1], H, K), half(shape[0], 2 * shape[1], H, V), g,
             torch.rand(shape[0], 2 * shape[1], H).half(), state],
        )  # fmt: skip
        yield (
            f"chunk_kda{kind}",
            lambda q, k, v, g, b, s, c=c: chunk_kda(q, k, v, g, b, None, s, chunk_size=32, **c),
            [q, k, v, gk, beta.float(), state],
        )
        yield (
            f"fused_recurrent_kda{kind}",
            without_grad(lambda q, k, v, g, b, s, c=c: fused_recurrent_kda(q, k, v, g, b, initial_state=s, **c)),
            [*full, gk, beta.float(), state],
        )
        yield f"chunk_gla{kind}", lambda q, k, v, g, s, c=c: chunk_gla(q, k, v, g, None, s, **c), [*full, gk, state]
        yield (
            f"fused_recurrent_gla{kind}, backwards in time",
            lambda q, k, v, gk, gv, s, c=c: fused_recurrent_gla(q, k, v, gk, gv, None, s, reverse=True, **c),
            [*full, gk, gv, state],
        )
        for op in (chunk_simple_gla, fused_chunk_simple_gla, fused_recurrent_simple_gla):
            yield (
                f"{op.__name__}{kind}",
                lambda q, k, v, g, s, op=op, c=c: op(q, k, v, g, initial_state=s, **c),
                [*full, g, state],
            )
        yield (
            f"parallel_simple_gla{kind}",
            lambda q, k, v, g, bounds=bounds: parallel_simple_gla(q, k, v, g, cu_seqlens=bounds)[0],
            [*full, g],
        )
        for op in (chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn):

            def normalised(q, k, v, s, z, op=op, c=c):
                o, (s, z) = op(q, k, v, None, (s, z), normalize=True, **c)
                return o, s, z

            inputs = [full[0].exp(), full[1].exp(), full[2], state, r(2, 1, H, K).exp()]
            yield f"{op.__name__}{kind}", normalised, inputs
        for op in (chunk_retention, fused_chunk_retention, fused_recurrent_retention):
            yield f"{op.__name__}{kind}", lambda q, k, v, s, op=op, c=c: op(q, k, v, None, s, **c), [*full, state]
        yield (
            f"parallel_retention{kind}",
            lambda q, k, v, bounds=bounds: parallel_retention(q, k, v, cu_seqlens=bounds)[0],
            full,
        )
        yield from variant_cases(kind, shape, bounds)
        yield (
            f"fused_recurrent_hgrn{kind}",
            lambda x, g, s, bounds=bounds: fused_recurrent_hgrn(x, g, s, True, bounds),
            [r(*shape, K), gate(*shape, K), r(2, K)],
        )
        yield (
            f"chunk_global_cumsum{kind}",
            lambda x, bounds=bounds: chunk_global_cumsum(x.detach(), reverse=True, cu_seqlens=bounds, scale=0.5),
            [r(*shape, H, K)],
        )
        yield (
            f"chunk_local_cumsum{kind}",
            lambda x, bounds=bounds: chunk_local_cumsum(x.detach(), 4, cu_seqlens=bounds),
            [r(*shape, H)],
        )
    yield "chunk_hgrn", lambda x, g: chunk_hgrn(x, g)[0], [r(B, T, K), gate(B, T, K)]
    yield "chunk_hgrn, through the initial state", lambda x, g, s: chunk_hgrn(x, g, s)[0], [r(B, T, K), gate(B, T, K), r(B, K)]
    yield (
        "chunk_hgrn, through the final state",
        lambda x, g: chunk_hgrn(x, g, output_final_state=True)[1],
        [r(B, T, K), gate(B, T, K)],
    )
    yield (
        "chunk_abc",
        lambda q, k, v, s: chunk_abc(q, k, v, s)[0],
        [r(1, T, H, K), r(1, T, H, K), r(1, T, H, V), r(1, T, H, 8)],
    )
    yield "fused_gdn_gate", fused_gdn_gate, [r(B, T, H), r(H), r(H)]
    yield "fused_kda_gate", fused_kda_gate, [r(B, T, H, K), r(H), r(H * K)]
    yield "fused_attnres", lambda q, a, b, w: fused_attnres(q, [a, b], w), [r(16), r(2, 3, 16), r(2, 3, 16), r(16)]


def cases():
    torch.manual_seed(0)
    yield from module_cases()
    yield from op_cases()


def prepare_interpreter():
    """Lets FLA's kernels run in Triton's interpreter, before FLA is imported: its autotuner would need a GPU to time with."""
    from triton.runtime.autotuner import Autotuner

    init = Autotuner.__init__

    def first_config_only(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.configs = self.configs[:1]

    Autotuner.__init__ = first_config_only


class Counter(int):
    """A loop counter that kernels may call `.to` on; the interpreter hands them plain integers."""

    def to(self, *args, **kwargs):
        return self


def _keeps_type(name):
    method = getattr(int, name)

    def operator(self, *args):
        result = method(self, *args)
        return Counter(result) if isinstance(result, int) else result

    return operator


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", "neg"):
    setattr(Counter, f"__{_name}__", _keeps_type(f"__{_name}__"))


def prepare_kernels():
    """Replaces what the interpreter lacks in the globals of FLA's kernels: loop counters with a type, libdevice, gather."""
    import fla.modules.fused_cross_entropy.ops as cross_entropy
    import fla.ops.utils.op as op
    import triton.language as tl

    for name, module in list(sys.modules.items()):
        if name.startswith(("fla.ops", "fla.modules")):
            module.range = lambda *bounds: map(Counter, range(*map(int, bounds)))
            if hasattr(module, "gather"):
                # through `tl`, which is what the interpreter patches
                module.gather = lambda *args, **kwargs: tl.gather(*args, **kwargs)
    op.tldevice = SimpleNamespace(log1p=lambda x: tl.log(1 + x))
    cross_entropy.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def run(fn, inputs):
    """Outputs of the case, and gradients of a fixed random sum of them."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = fn(*leaves)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o is not None]
    torch.manual_seed(1)
    terms = [(o.float() * torch.randn(o.shape)).sum() for o in outputs if o.requires_grad]
    grads = torch.autograd.grad(sum(terms), leaves, allow_unused=True) if terms else [None] * len(leaves)
    return outputs, grads


def error(ours, kernel):
    if ours is None or kernel is None:
        return None if ours is kernel else f"{'replacement' if ours is None else 'kernel'} gives none"
    return ((ours.float() - kernel.float()).norm() / kernel.float().norm().clamp_min(1e-6)).item()


def compare(fn, inputs):
    from fla_bdlru.fla_cpu import cpu_backend

    with cpu_backend(True):
        outputs, grads = run(fn, inputs)
    try:
        with cpu_backend(False):
            expected, expected_grads = run(fn, inputs)
    except Exception as failure:
        return {"failure": f"{type(failure).__name__}: {failure}", "trace": traceback.format_exc()[-2000:]}
    return {
        "outputs": [error(*pair) for pair in zip(outputs, expected)],
        "gradients": [error(*pair) for pair in zip(grads, expected_grads)],
        "types": [[str(o.dtype), str(e.dtype)] for o, e in zip(outputs, expected)],
        "shapes": [[list(o.shape), list(e.shape)] for o, e in zip(outputs, expected)],
    }


def main(path):
    prepare_interpreter()
    from fla_bdlru.fla_cpu import register

    register()
    prepare_kernels()
    results = {}
    for name, fn, inputs in cases():
        results[name] = compare(fn, inputs)
    with open(path, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(sys.argv[1])
