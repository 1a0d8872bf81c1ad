"""Mamba3 on a CPU: against the paper's recurrence token by token, with cache, padding and packed documents."""

import math

import pytest
import torch
import torch.nn.functional as F
from fla.layers import Mamba3
from fla.models.cache_utils import Cache
from fla.ops.utils.index import prepare_cu_seqlens_from_lens

from fla_bdlru.fla_cpu.mamba import mamba3_scan
from fla_bdlru.mixers import build_mixer

CASES = {
    "plain": {},
    "groups": {"n_groups": 2},
    "norm": {"is_outproj_norm": True},
    "all pairs turn": {"rope_fraction": 1.0, "use_bias": True},
    "an odd state": {"state_size": 7},
    "slow decay is bounded": {"A_floor": 0.7},
}
each_case = pytest.mark.parametrize("name", CASES)


def make(name="plain", dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    layer = Mamba3(**{"hidden_size": 12, "state_size": 8, "head_dim": 6, "layer_idx": 0, **CASES[name], **kwargs}).to(dtype)
    for parameter in layer.parameters():  # time steps of about 1 and turns of about a radian, so that all of it matters
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def by_the_paper(layer, x):
    """arXiv 2603.15569: the state decays and turns, the trapezoid begins at the token before; pairs as complex numbers."""
    heads, size, width = layer.num_heads, layer.head_dim, layer.ssm_state_size
    z, v, k, q, dt, a, trapezoid, angles = layer._project_and_split(x)

    def pairs(t, norm, bias):
        t = norm(t.unflatten(-1, (layer.n_groups, width))).repeat_interleave(heads // layer.n_groups, 2) + bias[:, 0]
        return torch.view_as_complex(F.pad(t, (0, width % 2)).unflatten(-1, (-1, 2)).contiguous())

    k, q = pairs(k, layer.B_norm, layer.B_bias), pairs(q, layer.C_norm, layer.C_bias)
    v = v.unflatten(-1, (heads, size))
    dt, a, trapezoid = F.softplus(dt + layer.dt_bias), -F.softplus(a).clamp_min(layer.A_floor), trapezoid.sigmoid()
    angles = F.pad(math.pi * angles.tanh(), (0, k.shape[-1] - angles.shape[-1]))
    h = before = torch.zeros(len(x), heads, size, k.shape[-1], dtype=torch.complex128)
    outputs = []
    for t in range(x.shape[1]):
        step, share = dt[:, t, :, None, None], trapezoid[:, t, :, None, None]
        turn = (
            step * torch.complex(a[:, t, :, None].expand_as(k[:, t]), -angles[:, t, None].expand_as(k[:, t]))[:, :, None]
        ).exp()
        new = v[:, t, ..., None] * k[:, t, :, None]
        h = turn * (h + (1 - share) * step * before) + share * step * new
        before = new
        outputs.append((h * q[:, t, :, None].conj()).real.sum(-1) + layer.D[:, None] * v[:, t])
    y = torch.stack(outputs, 1).flatten(-2)
    return layer.out_proj(layer.norm(y, z) if layer.is_outproj_norm else y * F.silu(z))


@each_case
@pytest.mark.parametrize("T", [1, 3, 11])
def test_outputs_and_gradients_are_the_papers(with_gradients, close, name, T):
    layer, x = make(name), torch.randn(2, T, 12, dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters())

    def run(forward):
        def fn(x, *parameters):
            with torch.nn.utils.stateless._reparametrize_module(layer, dict(zip(names, parameters))):
                return (forward(layer, x),)

        return fn

    expected, expected_grads, weights = with_gradients(run(by_the_paper), [x, *parameters])
    outputs, grads, _ = with_gradients(run(lambda layer, x: layer(x)[0]), [x, *parameters], weights)
    close(outputs[0], expected[0], 1e-10, "output")
    for what, a, b in zip(("x", *names), grads, expected_grads):
        close(a, b, 1e-9, what)


@each_case
def test_single_precision(close, name):
    """By numba and by PyTorch's operators."""
    layer, x = make(name), torch.randn(2, 40, 12, dtype=torch.float64)
    expected = layer(x)[0]
    close(layer.float()(x.float())[0], expected.float(), 1e-4, "numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLA_BDLRU_BACKEND", "torch")
        close(layer(x.float())[0], expected.float(), 1e-4, "torch")


@each_case
def test_a_cache_takes_any_number_of_tokens(name):
    layer, x, cache = make(name), torch.randn(2, 11, 12, dtype=torch.float64), Cache()
    with torch.no_grad():
        outputs = [layer(part, past_key_values=cache, use_cache=True)[0] for part in x.split([4, 1, 1, 3, 2], 1)]
        assert torch.allclose(torch.cat(outputs, 1), layer(x)[0], atol=1e-10)
        whole = Cache()
        layer(x, past_key_values=whole, use_cache=True)
    assert cache.get_seq_length() == 11
    # as the layer's own allocation for CUDA, whose kernels keep no angle's whole turns either
    for one, other, own in zip(
        cache[0]["recurrent_state"], whole[0]["recurrent_state"], layer.allocate_inference_cache(2, 11)
    ):
        assert torch.allclose(one, other, atol=1e-10)
        assert one.shape == own.shape
    assert (whole[0]["recurrent_state"][0] < 2 * math.pi).all()


def test_a_state_is_h_and_the_last_token(close):
    """What a step hands on is h of the paper, without what the next token will add to it."""
    q, k = torch.randn(2, 1, 5, 3, 4, dtype=torch.float64)
    v, (a, dt, trapezoid) = torch.randn(1, 5, 3, 2, dtype=torch.float64), torch.rand(3, 1, 5, 3, dtype=torch.float64)
    still = torch.zeros(1, 5, 3, 2, dtype=torch.float64)
    o, (angle, h, k_last, v_last) = mamba3_scan(q, k, v, -a, dt, trapezoid, still, None, None, True)
    expected = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    for t in range(5):
        before = v[:, t - 1, ..., None] * k[:, t - 1, :, None] if t else 0.0
        decay, step, share = (x[:, t, :, None, None] for x in (-a, dt, trapezoid))
        expected = (
            decay.exp() * (expected + (1 - share) * step * before) + share * step * v[:, t, ..., None] * k[:, t, :, None]
        )
        close(o[:, t], (expected * q[:, t, :, None]).sum(-1), 1e-12, f"o_{t}")
    close(h, expected, 1e-12, "h")
    assert torch.equal(k_last[:, 0], k[:, -1])
    assert torch.equal(v_last, v[:, -1])
    assert not angle.any()


@each_case
def test_left_padding(name):
    layer, x, cache = make(name), torch.randn(2, 9, 12, dtype=torch.float64), Cache()
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    expected = layer(x[1:, 4:])[0]
    padded = layer(x, attention_mask=mask)[0]
    assert torch.allclose(padded[1:, 4:], expected, atol=1e-10)
    assert not padded[1, :4].any()
    assert torch.allclose(padded[:1], layer(x[:1])[0], atol=1e-10)
    assert torch.equal(layer(x, attention_mask=torch.ones_like(mask))[0], layer(x)[0])
    with torch.no_grad():
        # the second row is all padding at first
        pieces, end = [], 0
        for length in (3, 3, 1, 2):
            part, end = x[:, end : end + length], end + length
            pieces.append(layer(part, attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)[0])
    assert torch.allclose(torch.cat(pieces, 1)[1:, 4:], expected, atol=1e-10)


@each_case
def test_packed_documents(name):
    layer, lengths = make(name), [3, 0, 1, 6]
    x, cu_seqlens = torch.randn(1, 10, 12, dtype=torch.float64), prepare_cu_seqlens_from_lens(torch.tensor(lengths))
    parts = x.split(lengths, 1)
    expected = torch.cat([layer(part)[0] for part in parts], 1)
    assert torch.allclose(layer(x, cu_seqlens=cu_seqlens)[0], expected, atol=1e-10)
    with torch.no_grad():  # goes on from states, one a document; of no tokens they stay
        cache = Cache()
        layer(x, cu_seqlens=cu_seqlens, past_key_values=cache, use_cache=True)
        first = [s.clone() for s in cache[0]["recurrent_state"]]
        assert not any(s[1].any() for s in first)
        again = layer(x, cu_seqlens=cu_seqlens, past_key_values=cache, use_cache=True)[0]
        twice = [layer(torch.cat([part, part], 1))[0][:, part.shape[1] :] for part in parts]
    assert torch.allclose(again, torch.cat(twice, 1), atol=1e-10)
    with pytest.raises(ValueError, match=r"batch size is 2; with cu_seqlens it has to be 1"):
        layer(torch.randn(2, 10, 12, dtype=torch.float64), cu_seqlens=cu_seqlens)


def test_angles_are_summed_in_double_precision():
    """After 4,000 tokens of a turn of two radians each a sum in float32 is off by 1e-4 and more."""
    T = 4000
    q, k, v = torch.randn(1, T, 1, 4), torch.randn(1, T, 1, 4), torch.randn(1, T, 1, 2)
    decay, dt, trapezoid = torch.full((1, T, 1), -0.1), torch.full((1, T, 1), 0.7), torch.rand(1, T, 1)
    inputs = (q, k, v, decay, dt, trapezoid, 2 + 0.1 * torch.rand(1, T, 1, 2))
    o, (angle, *_) = mamba3_scan(*inputs, None, None, True)
    expected, (double_angle, *_) = mamba3_scan(*(x.double() for x in inputs), None, None, True)
    assert (angle - double_angle).abs().max() < 1e-5
    assert (o - expected)[:, -100:].abs().max() < 1e-4


def test_a_single_token_is_never_padding_and_states_are_kept_only_if_asked():
    """As FLA's layer has it."""
    layer, x = make(), torch.randn(2, 1, 12, dtype=torch.float64)
    mask = torch.tensor([[1], [0]])
    assert torch.equal(layer(x, attention_mask=mask)[0], layer(x)[0])
    with torch.no_grad():
        cache = Cache()
        layer(x, past_key_values=cache)
        assert cache.get_seq_length() == 0
        layer(x, past_key_values=cache, use_cache=True)
        layer(x, past_key_values=cache)  # one that is there is kept up to date
        assert cache.get_seq_length() == 2


def test_nothing_depends_on_what_is_to_come():
    """To the last bit: a token's outputs are the same whatever follows."""
    layer, x = make(dtype=torch.float32), torch.randn(1, 9, 12)
    other = torch.cat([x[:, :5], 100 * torch.randn(1, 4, 12)], 1)
    assert torch.equal(layer(x)[0][:, :5], layer(other)[0][:, :5])


def test_half_precision_and_autocast():
    layer, x = make("norm", torch.float32), torch.randn(2, 9, 12)
    expected, cache = layer(x)[0], Cache()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, past_key_values=cache, use_cache=True)[0]
    assert all(state.dtype == torch.float32 for state in cache[0]["recurrent_state"])
    assert (y.float() - expected).norm() / expected.norm() < 5e-2
    y = layer.bfloat16()(x.bfloat16())[0]
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() / expected.norm() < 5e-2


def test_what_it_does_not_take_is_refused():
    layer, x = make(), torch.randn(1, 3, 12, dtype=torch.float64)
    assert layer(x[:, :0])[0].shape == (1, 0, 12)
    with pytest.raises(NotImplementedError, match="is_mimo=True runs on a GPU only"):
        make(is_mimo=True)(x)
    cache = Cache()
    with torch.no_grad():
        layer(x, past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match=r"holds 1 states; expected 2"):
            layer(x.expand(2, -1, -1), past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match=r"ssm_state must have shape \[1, 4, 6, 4\]; got \[1, 4, 6, 8\]"):
            make(state_size=4, rope_fraction=1.0)(x, past_key_values=cache, use_cache=True)


def test_the_mixer_runs_on_a_cpu():
    layer = build_mixer("mamba3", 16, layer_idx=0, head_dim=8, state_size=8)
    assert layer(torch.randn(2, 5, 16))[0].shape == (2, 5, 16)
