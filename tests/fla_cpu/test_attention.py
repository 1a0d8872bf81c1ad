"""The stand-ins for flash_attn, and FLA's attention layer with them: masks, windows, grouped heads, cache, packing."""

import pytest
import torch
from fla.layers import Attention
from fla.layers import attn as attn_module
from fla.models.cache_utils import Cache
from float64 import rand
from torch._subclasses.fake_tensor import FakeTensorMode

from fla_bdlru.fla_cpu.attention import flash_attn_func, flash_attn_varlen_func


def reference(q, k, v, causal=False, window=(-1, -1), scale=None):
    """One pair at a time for one sequence: q [Tq, H, D], k and v [Tk, Hk, D]; the last query stands at the last key."""
    (Tq, H, D), (Tk, Hk, _) = q.shape, k.shape
    scale = D**-0.5 if scale is None else scale
    rows = []
    for i in range(Tq):
        at = i + Tk - Tq
        seen = [j for j in range(Tk) if not (causal and j > at)]
        seen = [j for j in seen if not (window[0] >= 0 and j < at - window[0])]
        seen = [j for j in seen if not (window[1] >= 0 and j > at + window[1])]
        heads = []
        for h in range(H):
            kh = h // (H // Hk)
            if not seen:
                heads.append(torch.zeros_like(v[0, 0]) if Tk else q.new_zeros(D))
                continue
            weights = (k[seen, kh] @ q[i, h] * scale).softmax(0)
            heads.append(weights @ v[seen, kh])
        rows.append(torch.stack(heads))
    return torch.stack(rows) if rows else q


OPTIONS = [
    {"causal": True},
    {"causal": False},
    {"causal": True, "window_size": (2, 0)},
    {"causal": False, "window_size": (1, 2)},
    {"causal": True, "window_size": (1, 0), "softmax_scale": 0.3},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def as_reference(options):
    window, scale = options.get("window_size", (-1, -1)), options.get("softmax_scale")
    return lambda q, k, v: reference(q, k, v, options["causal"], window, scale)


@each_dtype
@each_option
@pytest.mark.parametrize("Tq, Tk, H, Hk", [(6, 6, 4, 4), (1, 7, 4, 2), (5, 3, 2, 1), (3, 8, 6, 2)])
def test_flash_attn_func(check, dtype, options, Tq, Tk, H, Hk):
    inputs = [rand(2, Tq, H, 8), rand(2, Tk, Hk, 8), rand(2, Tk, Hk, 8)]
    one = as_reference(options)
    expected = lambda q, k, v: torch.stack([one(*qkv) for qkv in zip(q, k, v)])  # noqa: E731
    check(lambda q, k, v: flash_attn_func(q, k, v, **options), expected, inputs, dtype)


@each_option
def test_flash_attn_varlen_func(check, options):
    q_lens, k_lens = [3, 1, 0, 4, 2], [3, 5, 2, 2, 0]
    bounds = [torch.tensor([0, *lens]).cumsum(0) for lens in (q_lens, k_lens)]
    inputs = [rand(10, 4, 8), rand(12, 2, 8), rand(12, 2, 8)]
    one = as_reference(options)

    def expected(q, k, v):
        return torch.cat([one(*qkv) for qkv in zip(q.split(q_lens), k.split(k_lens), v.split(k_lens))])

    check(lambda q, k, v: flash_attn_varlen_func(q, k, v, *bounds, 4, 5, **options), expected, inputs)


def test_unsupported_options_are_refused():
    q = torch.randn(1, 3, 2, 8)
    with pytest.raises(ValueError, match="flash_attn options: dropout_p, alibi_slopes"):
        flash_attn_func(q, q, q, dropout_p=0.1, alibi_slopes=torch.ones(2))
    flash_attn_func(q, q, q, softcap=0.0, deterministic=True)


def test_a_gpu_without_flash_attn_gets_an_import_error():
    if attn_module.flash_attn_func._fla_bdlru_original is not None:
        pytest.skip("flash_attn is installed")
    with FakeTensorMode():
        q = torch.empty(1, 3, 2, 8, device="cuda")
    with pytest.raises(ImportError, match="flash_attn is not installed"):
        attn_module.flash_attn_func(q, q, q)


def layer(**kwargs):
    return Attention(hidden_size=32, num_heads=4, num_kv_heads=2, layer_idx=0, **kwargs).eval()


@pytest.mark.parametrize("kwargs", [{}, {"window_size": 3}, {"qk_norm": True, "qkv_bias": True}], ids=str)
def test_attention_layer(kwargs):
    """Cache, left padding and packing all give what the plain forward gives."""
    attention, x = layer(**kwargs), torch.randn(2, 9, 32)
    expected = attention(x)[0]

    cache, outputs = Cache(), []
    with torch.no_grad():
        outputs.append(attention(x[:, :4], past_key_values=cache, use_cache=True)[0])
        for t in range(4, 9):
            outputs.append(attention(x[:, t : t + 1], past_key_values=cache, use_cache=True)[0])
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-5)

    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    masked = attention(x, attention_mask=mask)[0]
    assert torch.allclose(masked[:1], expected[:1], atol=1e-5)
    assert torch.allclose(masked[1:, 3:], attention(x[1:, 3:])[0], atol=1e-5)

    packed = attention(x.reshape(1, 18, 32)[:, :15], cu_seqlens=torch.tensor([0, 9, 9, 15]))[0]
    assert torch.allclose(packed[:, :9], expected[:1], atol=1e-5)
    assert torch.allclose(packed[:, 9:], attention(x[1:, :6])[0], atol=1e-5)


def test_attention_layer_decodes_a_left_padded_batch():
    attention, x = layer(), torch.randn(2, 7, 32)
    mask = torch.tensor([[1] * 7, [0] * 2 + [1] * 5])
    expected = attention(x[1:, 2:])[0]
    cache = Cache()
    with torch.no_grad():
        outputs = [attention(x[:, :4], attention_mask=mask[:, :4], past_key_values=cache, use_cache=True)[0]]
        for t in range(4, 7):
            step = attention(x[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, use_cache=True)
            outputs.append(step[0])
    assert torch.allclose(torch.cat(outputs, 1)[1:, 2:], expected, atol=1e-5)
