"""Short convolutions and token shift on a CPU: against a loop over documents and taps, packed, with states, decoding."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from fla.modules import ShortConvolution
from fla.modules.causal_conv1d import causal_conv1d, causal_conv1d_update, causal_conv1d_update_states
from fla.modules.causal_conv1d.ops import causal_conv1d_bwd, compute_dh0_triton
from fla.modules.token_shift import token_shift
from float64 import rand

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
PACKINGS = [None, [0, 9], [0, 1, 3, 9], [0, 4, 4, 9], [0, 0, 8, 9]]


def documents(x, cu_seqlens):
    return list(x) if cu_seqlens is None else list(x[0].split([b - a for a, b in itertools.pairwise(cu_seqlens)]))


def reference_conv(x, weight, bias, residual, initial_state, activation, cu_seqlens):
    """One document after the other; y_t = sum_w weight[w] x[t - W + 1 + w], the state before its start."""
    W, ys, states = weight.shape[1], [], []
    for i, doc in enumerate(documents(x, cu_seqlens)):
        before = doc.new_zeros(W, doc.shape[-1]) if initial_state is None else initial_state[i].t()
        full = torch.cat([before, doc])
        y = sum(full[w + 1 : w + 1 + len(doc)] * weight[:, w] for w in range(W))
        y = y if bias is None else y + bias
        ys.append(F.silu(y) if activation else y)
        states.append(full[len(full) - W :].t())
    y = torch.stack(ys) if cu_seqlens is None else torch.cat(ys)[None]
    return y if residual is None else y + residual, torch.stack(states)


@each_dtype
@pytest.mark.parametrize("cu_seqlens", PACKINGS, ids=str)
@pytest.mark.parametrize(
    "W, activation, bias, residual, state",
    [
        (4, "silu", True, False, True),
        (3, None, False, True, True),
        (1, "swish", True, False, True),
        (4, "silu", False, True, False),
        (12, None, True, False, True),
    ],
)
def test_causal_conv1d(check, dtype, cu_seqlens, W, activation, bias, residual, state):
    B, T, D = (2, 9, 5) if cu_seqlens is None else (1, 9, 5)
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    inputs = [
        rand(B, T, D),
        rand(D, W),
        rand(D) if bias else None,
        rand(B, T, D) if residual else None,
        rand(N, D, W) if state else None,
    ]
    packing = None if cu_seqlens is None else torch.tensor(cu_seqlens)

    def fn(*args):
        return causal_conv1d(*args, output_final_state=True, activation=activation, cu_seqlens=packing)

    check(fn, lambda *args: reference_conv(*args, activation, cu_seqlens), inputs, dtype)


def test_other_layouts_and_no_final_state(check):
    weight = rand(6, 4)

    def fn(x):
        y, state = causal_conv1d(x.transpose(1, 2), weight.float(), activation="silu")
        assert state is None
        return y

    reference = lambda x: reference_conv(x.transpose(1, 2), weight, None, None, None, "silu", None)[0]  # noqa: E731
    check(fn, reference, [rand(2, 6, 7)])


def test_errors():
    x, weight = torch.randn(2, 5, 3), torch.randn(3, 4)
    with pytest.raises(ValueError, match="activation='relu' is not known"):
        causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match="batch size is 2; with cu_seqlens it has to be 1"):
        causal_conv1d(x, weight, cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="holds 3 states; expected 2"):
        causal_conv1d(x, weight, initial_state=torch.randn(3, 3, 4))
    with pytest.raises(ValueError, match="cache=None"):
        causal_conv1d_update(x[:, :1], None, weight=weight)


@pytest.mark.parametrize("cu_seqlens", PACKINGS, ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_compute_dh0_is_the_gradient_of_the_state(cu_seqlens, activation):
    B = 2 if cu_seqlens is None else 1
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    x, weight, state, dy, dht = (torch.randn(s) for s in ((B, 9, 5), (5, 4), (N, 5, 4), (B, 9, 5), (N, 5, 4)))
    packing = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    y, _ = causal_conv1d(x, weight, initial_state=state, cu_seqlens=packing)
    expected = causal_conv1d_bwd(x, dy, dht, weight, initial_state=state, activation=activation, cu_seqlens=packing)[-1]
    got = compute_dh0_triton(dy, y, weight, state, activation, packing, dht)
    assert torch.allclose(got, expected, atol=1e-5)
    assert expected[..., 1:].abs().sum() > 0


@pytest.mark.parametrize("layout", ["N1D", "1ND", "ND"])
@pytest.mark.parametrize("bias, residual, activation", [(True, True, "silu"), (False, False, None)])
def test_update_is_a_step_of_the_convolution(layout, bias, residual, activation):
    N, D, W = 3, 5, 4
    x, weight, state = torch.randn(N, 6, D), torch.randn(D, W), torch.randn(N, D, W)
    b = torch.randn(D) if bias else None
    r = torch.randn(N, 6, D) if residual else None
    expected, final = causal_conv1d(x, weight, b, r, state, output_final_state=True, activation=activation)
    cache, shape = state.clone(), {"N1D": (N, 1, D), "1ND": (1, N, D), "ND": (N, D)}[layout]
    for t in range(6):
        token, rest = x[:, t].reshape(shape), None if r is None else r[:, t].reshape(shape)
        y, returned = causal_conv1d_update(token, cache, rest, weight, b, activation)
        assert returned is cache
        assert y.shape == shape
        assert torch.allclose(y.view(N, D), expected[:, t], atol=1e-6)
    assert torch.allclose(cache, final)


def test_update_states():
    x, state = torch.randn(1, 9, 5), torch.randn(3, 5, 4)
    cu_seqlens = torch.tensor([0, 2, 2, 9])
    got = causal_conv1d_update_states(x, 4, state, cu_seqlens)
    expected = reference_conv(x, torch.randn(5, 4), None, None, state, None, cu_seqlens.tolist())[1]
    assert torch.equal(got, expected)
    assert torch.equal(causal_conv1d_update_states(x[0], 4, state, cu_seqlens), expected)


@pytest.mark.parametrize("B, T, cu_seqlens", [(2, 0, None), (0, 3, None), (1, 0, [0, 0, 0])])
def test_the_state_after_no_tokens_has_a_gradient(B, T, cu_seqlens):
    """As where a mask hides a whole batch while a cache is kept in training."""
    x, boundaries = torch.randn(B, T, 8, requires_grad=True), None if cu_seqlens is None else torch.tensor(cu_seqlens)
    y, state = ShortConvolution(8, 4)(x, output_final_state=True, cu_seqlens=boundaries)
    assert state.shape == (B if cu_seqlens is None else 2, 8, 4)
    assert not state.any()
    (y.sum() + state.sum()).backward()
    assert x.grad.shape == x.shape


def test_short_convolution_prefill_then_decode():
    conv = ShortConvolution(6, 4, bias=True).eval()
    x = torch.randn(2, 9, 6)
    expected, _ = conv(x)
    with torch.no_grad():
        y, cache = conv(x[:, :3], output_final_state=True)
        outputs = [y]
        for t in range(3, 9):
            y, cache = conv(x[:, t : t + 1], cache=cache, output_final_state=True)
            outputs.append(y)
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-6)
    masked, _ = conv(torch.cat([torch.randn(2, 4, 6), x], 1), mask=torch.tensor([[0] * 4 + [1] * 9] * 2))
    unmasked = F.silu(conv.bias.expand_as(masked[:, :4]))
    assert torch.allclose(masked[:, 4:], expected, atol=1e-6)
    assert torch.allclose(masked[:, :4], unmasked, atol=1e-6)


def reference_shift(x, cache, cu_seqlens):
    ys, caches = [], []
    for i, doc in enumerate(documents(x, cu_seqlens)):
        full = torch.cat([doc.new_zeros(1, doc.shape[-1]) if cache is None else cache[i : i + 1], doc])
        ys.append(full[:-1] - doc)
        caches.append(full[-1])
    return torch.stack(ys) if cu_seqlens is None else torch.cat(ys)[None], torch.stack(caches)


@each_dtype
@pytest.mark.parametrize("cu_seqlens", PACKINGS, ids=str)
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("output_cache", [False, True])
def test_token_shift(check, dtype, cu_seqlens, cache, output_cache):
    B = 2 if cu_seqlens is None else 1
    inputs = [rand(B, 9, 5), rand(B if cu_seqlens is None else len(cu_seqlens) - 1, 5) if cache else None]
    packing = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    count = 1 + output_cache

    def reference(x, cache):
        return reference_shift(x, cache, cu_seqlens)[:count]

    check(lambda x, cache: token_shift(x, packing, cache, output_cache), reference, inputs, dtype)


def test_token_shift_of_one_token():
    x, cache = torch.randn(3, 1, 5), torch.randn(3, 5)
    y, new_cache = token_shift(x, cache=cache, output_cache=True)
    assert torch.equal(y[:, 0], cache - x[:, 0])
    assert torch.equal(new_cache, x[:, 0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_boundaries_of_other_integer_types(dtype, close):
    """Also where a length, rounded up to whole chunks, is more than the type holds."""
    x, w = torch.randn(1, 120, 3), torch.randn(3, 4)
    for bounds in ([0, 5, 5, 120], [0, 120]):
        narrow, wide = (torch.tensor(bounds, dtype=t) for t in (dtype, torch.long))
        close(causal_conv1d(x, w, cu_seqlens=narrow)[0], causal_conv1d(x, w, cu_seqlens=wide)[0], 0, "convolution")
        close(token_shift(x, narrow), token_shift(x, wide), 0, "token shift")
