"""Both directions: each document and each row is turned round within itself, and nothing else differs from two layers."""

import pytest
import torch
from fla.models.utils import Cache

from fla_bdlru.layers import BDLRU, HLRU, LSTM, Bidirectional

MAKE = {
    "bdlru": lambda: BDLRU(12, block_size=2, use_short_conv=True, gate_bias="memory"),
    "hlru": lambda: HLRU(12, order=3, expand=0.5),
    "lstm": lambda: LSTM(12),
}


@pytest.fixture(params=MAKE)
def layer(request):
    return Bidirectional(MAKE[request.param](), MAKE[request.param]())


def alone(layer, x):
    """A row by itself, without an index or a mask."""
    return layer.ahead(x)[0] + layer.back(x.flip(1))[0].flip(1)


def test_documents_and_padding(layer):
    x = torch.randn(1, 11, 12, requires_grad=True)
    expected = torch.cat([alone(layer, part) for part in x.split([4, 1, 6], 1)], 1)
    packed = layer(x, cu_seqlens=torch.tensor([0, 4, 5, 11]))[0]
    torch.testing.assert_close(packed, expected)
    weight = torch.randn_like(packed)
    grads = [torch.autograd.grad((o * weight).sum(), [x, *layer.parameters()]) for o in (packed, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    # left, right, both, inside; what stands in the padding does not matter
    rows, mask = torch.randn(4, 7, 12), torch.ones(4, 9, dtype=torch.long)
    for row, padded in zip(mask, ([0, 1], [5, 6], [0, 6], [2, 3])):
        row[2:][padded] = 0
    o = layer(rows.masked_fill(mask[:, 2:, None] == 0, 1e4), mask)[0]
    for row, out, seen in zip(rows, o, mask[:, 2:].bool()):
        torch.testing.assert_close(out[seen], alone(layer, row[None, seen])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(rows)[0], alone(layer, rows))


def test_what_it_costs():
    one, both = BDLRU(16), Bidirectional(BDLRU(16), BDLRU(16))
    for count in ("num_parameters", "state_size", "flops_per_token"):
        assert getattr(both, count)() == 2 * getattr(one, count)()


def test_errors():
    a, b, x = BDLRU(8, layer_idx=0), HLRU(8, layer_idx=0), torch.randn(1, 3, 8)
    layer = Bidirectional(a, b)
    for name, value in {"past_key_values": Cache(), "use_cache": True, "step_states": 2, "cp_context": object()}.items():
        with pytest.raises(ValueError, match=f"{name}=.* is not accepted: a bidirectional layer reads whole sequences"):
            layer(x, **{name: value})
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[1, S\] .* got \[1, 1, 3, 3\]"):
        layer(x, torch.ones(1, 1, 3, 3))
    for kwargs, message in (
        ({"attention_mask": [[1, 1, 1]]}, "attention_mask must be a tensor"),
        ({"cu_seqlens": [0, 3]}, "cu_seqlens must be a tensor"),
        ({"cu_seqlens": torch.tensor([[0, 3]])}, "cu_seqlens must be integers of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, **kwargs)
    with pytest.raises(ValueError, match=r"hidden_states must have shape \[B, T, 8\]"):
        layer(x[..., :4])
    for pair, found in (
        ((a, a), "BDLRU and BDLRU of 8 and 8"),
        ((a, BDLRU(16)), "of 8 and 16"),
        ((a, torch.nn.ReLU()), "ReLU"),
    ):
        with pytest.raises(ValueError, match=f"ahead and back must be two layers of this package of one hidden_size.*{found}"):
            Bidirectional(*pair)
