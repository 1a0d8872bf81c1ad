"""Mamba and Mamba2 on a CPU: against FLA's own PyTorch fallbacks where those are right, with cache and padding."""

import pytest
import torch
from fla.layers import Mamba, Mamba2
from fla.models.cache_utils import Cache

MAMBA = {
    "plain": {},
    "no bias, long kernel": {"use_conv_bias": False, "conv_kernel": 7},
    "relu": {"hidden_act": "relu", "use_bias": True},
}
MAMBA2 = {
    "plain": {},
    "gate after the norm": {"norm_before_gate": True},
    "no norm": {"rmsnorm": False, "D_has_hdim": True, "use_bias": True},
    "time step limits": {"dt_limit": (0.01, 0.5), "use_conv_bias": False},
    "relu": {"hidden_act": "relu", "conv_kernel": 3},
}
CASES = [(Mamba, name) for name in MAMBA] + [(Mamba2, name) for name in MAMBA2]
each_case = pytest.mark.parametrize("cls, name", CASES, ids=lambda value: getattr(value, "__name__", value))


def make(cls, name, **kwargs):
    if cls is Mamba:
        layer = Mamba(hidden_size=12, state_size=4, intermediate_size=24, layer_idx=0, **{**MAMBA[name], **kwargs})
    else:
        options = {"chunk_size": 8, **MAMBA2[name], **kwargs}
        layer = Mamba2(hidden_size=12, head_dim=6, state_size=4, layer_idx=0, **options)
    # time steps of about 1, so that the state matters
    bias = layer.dt_proj.bias if cls is Mamba else layer.dt_bias
    torch.nn.init.normal_(bias)
    return layer.eval()


def fla_forward(layer, *args):
    """FLA's own fallback."""
    method = Mamba.slow_forward if isinstance(layer, Mamba) else Mamba2.torch_forward
    return method._fla_bdlru_original(layer, *args)


def our_forward(layer, *args):
    return (layer.slow_forward if isinstance(layer, Mamba) else layer.torch_forward)(*args)


def test_mamba_takes_one_mask_for_all_and_refuses_others():
    layer, x, mask = make(Mamba, "plain"), torch.randn(2, 6, 12), torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.nn.init.normal_(layer.conv1d.bias)
    assert torch.equal(layer(x, attention_mask=mask)[0], layer(x, attention_mask=mask.expand(2, -1))[0])
    assert torch.allclose(layer(x, attention_mask=mask)[0], fla_forward(layer, x, None, False, mask)[0], atol=1e-5)
    for wrong in (torch.ones(2, 7), torch.ones(3, 6), torch.ones(6), torch.ones(2, 1, 6)):
        with pytest.raises(ValueError, match=r"shape \[B, T\] = \[2, 6\] or \[1, T\]; got"):
            layer(x, attention_mask=wrong)


@each_case
@pytest.mark.parametrize("T", [1, 3, 8, 19])
def test_forward_agrees_with_fla(with_gradients, close, cls, name, T):
    layer, x = make(cls, name), torch.randn(2, T, 12)
    names, parameters = zip(*layer.named_parameters())

    def run(forward):
        def fn(x, *parameters):
            with torch.nn.utils.stateless._reparametrize_module(layer, dict(zip(names, parameters))):
                return forward(layer, x, None, True)

        return fn

    expected, expected_grads, weights = with_gradients(run(fla_forward), [x, *parameters])
    outputs, grads, _ = with_gradients(run(our_forward), [x, *parameters], weights)
    for what, a, b in zip(("output", "conv state", "state"), outputs, expected):
        close(a, b, 2e-5, what)
    for what, a, b in zip(("x", *names), grads, expected_grads):
        # the fallback sums terms that cancel in fp32 (A_log)
        close(a, b, 5e-4, what)


@each_case
def test_cache(cls, name):
    """Prefill and decoding agree with the whole forward, and each step with FLA's own step."""
    layer, x = make(cls, name), torch.randn(2, 9, 12)
    expected, cache = layer(x)[0], Cache()
    with torch.no_grad():
        outputs = [layer(x[:, :4], past_key_values=cache, use_cache=True)[0]]
        for t in range(4, 9):
            token = x[:, t : t + 1]
            fla_step = fla_forward(layer, token, cache[0], True)
            outputs.append(layer(token, past_key_values=cache, use_cache=True)[0])
            for a, b in zip(fla_step, (outputs[-1], cache[0]["conv_state"], cache[0]["recurrent_state"])):
                assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-5)
    assert cache.get_seq_length() == 9


def test_a_cache_that_is_given_is_kept_up_to_date():
    layer, x, cache = make(Mamba2, "plain"), torch.randn(2, 9, 12), Cache()
    with torch.no_grad():
        outputs = [layer(part, past_key_values=cache)[0] for part in (x[:, :7], x[:, 7:8], x[:, 8:])]
    assert torch.allclose(torch.cat(outputs, 1), layer(x)[0], atol=1e-5)


@each_case
def test_left_padding(cls, name):
    layer, x = make(cls, name), torch.randn(2, 9, 12)
    mask, cache = torch.tensor([[1] * 9, [0] * 4 + [1] * 5]), Cache()
    expected = layer(x[1:, 4:])[0]
    masked = layer(x, attention_mask=mask)[0]
    assert torch.allclose(masked[1:, 4:], expected, atol=1e-5)
    assert torch.allclose(masked[:1], layer(x[:1])[0], atol=1e-5)
    with torch.no_grad():
        outputs = [layer(x[:, :6], attention_mask=mask[:, :6], past_key_values=cache, use_cache=True)[0]]
        for t in range(6, 9):
            step = layer(x[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, use_cache=True)[0]
            outputs.append(step)
    assert torch.allclose(torch.cat(outputs, 1)[1:, 4:], expected, atol=1e-5)


@pytest.mark.parametrize("n_groups", [2, 4])
def test_mamba2_groups(n_groups):
    """With n_groups between 1 and the number of heads, FLA's prefill and decoding disagree; here they agree.

    FLA's fallback tiles the groups over the heads (0 1 0 1) in the prefill and repeats them (0 0 1 1) when decoding,
    as the CUDA kernels do throughout.
    """
    layer, x = make(Mamba2, "plain", n_groups=n_groups), torch.randn(2, 6, 12)
    expected, _, state = our_forward(layer, x, None, True)
    cache = {"conv_state": torch.zeros(2, layer.conv_dim, 4), "recurrent_state": torch.zeros_like(state)}
    steps = []
    for t in range(6):
        y, conv_state, recurrent_state = fla_forward(layer, x[:, t : t + 1], cache, True)
        cache = {"conv_state": conv_state, "recurrent_state": recurrent_state}
        steps.append(y)
    assert torch.allclose(torch.cat(steps, 1), expected, atol=1e-5)
    assert torch.allclose(cache["recurrent_state"], state, atol=1e-5)
    fla_prefill = fla_forward(layer, x, None, True)[0]
    assert torch.allclose(fla_prefill, expected, atol=1e-5) == (n_groups == layer.num_heads)


@each_case
def test_half_precision(cls, name):
    layer = make(cls, name)
    x = torch.randn(2, 9, 12)
    expected = layer(x)[0]
    y = layer.bfloat16()(x.bfloat16())[0]
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() / expected.norm() < 3e-2


@pytest.mark.parametrize("cls", [Mamba, Mamba2])
def test_what_the_layers_do_not_have_is_refused(cls):
    layer, x = make(cls, "plain"), torch.randn(1, 6, 12)
    with pytest.raises(ValueError, match="cu_seqlens has to be None"):
        layer(x, cu_seqlens=torch.tensor([0, 2, 6]))
    cache = Cache()
    with torch.no_grad():
        layer(x, past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="one token at a time; got 6"):
            layer(x, past_key_values=cache, use_cache=True)
    assert layer(x[:, :0])[0].shape == (1, 0, 12)


@each_case
def test_autocast_keeps_the_state_in_full_precision(cls, name):
    layer, x = make(cls, name), torch.randn(2, 9, 12)
    expected, _, state = our_forward(layer, x, None, True)
    with torch.autocast("cpu", torch.bfloat16):
        y, _, low_state = our_forward(layer, x, None, True)
    assert low_state.dtype == state.dtype == torch.float32
    assert (y.float() - expected).norm() / expected.norm() < 5e-2


@pytest.mark.parametrize("cls, name", [(Mamba, "plain"), (Mamba2, "no norm")])
def test_gradients_of_each_sequence_by_torch_func(cls, name, close):
    layer, x = make(cls, name), torch.randn(3, 9, 12)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x[None],))[0].square().mean()

    detached = {key: weight.detach() for key, weight in weights.items()}
    per_sequence = torch.func.vmap(torch.func.grad(loss), (None, 0))(detached, x)
    for i in range(3):
        for key, expected in zip(weights, torch.autograd.grad(loss(weights, x[i]), list(weights.values()))):
            close(per_sequence[key][i], expected, 1e-4, key)
