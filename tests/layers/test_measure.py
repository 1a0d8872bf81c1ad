"""FLOPs per token, against counts made by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fla_bdlru.layers.measure import linear_flops_per_token, measure_flops_per_token, measure_state_size
from fla_bdlru.mixers import build_mixer


class Counted(nn.Module):
    """A layer whose every operation is known."""

    def __init__(self, hidden_size=8, layer_idx=None):
        super().__init__()
        self.hidden_size, self.layer_idx = hidden_size, layer_idx
        self.proj = nn.Linear(hidden_size, 3, bias=False)

    def forward(self, x, attention_mask=None, past_key_values=None, use_cache=False, output_attentions=False, **kwargs):
        y = self.proj(x)  # 2 * 8 * 3
        y = y * 2 + y.exp()  # 3 * 3
        y = y / y.sum(-1, keepdim=True)  # 3 + 3
        keep = torch.arange(3) < 2  # nothing
        return torch.where(keep, y, 0).clone(), None, past_key_values


def test_every_operation_is_counted_once():
    layer = Counted()
    assert measure_flops_per_token(layer) == 48 + 9 + 6
    assert measure_flops_per_token(layer, context=5) == 48 + 9 + 6
    assert linear_flops_per_token(layer) == 48
    assert layer.training
    assert layer.layer_idx is None


def test_a_multiplication_and_an_addition_in_one_count_two():
    class Fused(Counted):
        def forward(self, x, past_key_values=None, **kwargs):
            y = self.proj(x)  # 48
            return torch.addcmul(y, y, y).lerp(y, 0.5), None, past_key_values  # 2 * 3, twice

    assert measure_flops_per_token(Fused()) == 48 + 6 + 6


def test_the_state_of_attention_grows_with_its_tokens():
    layer = build_mixer("attn", 32, layer_idx=0, num_heads=4)
    assert [measure_state_size(layer, tokens=tokens) for tokens in (1, 5)] == [2 * 32, 2 * 32 * 5]


def test_a_layers_own_figure_wins():
    layer = Counted()
    layer.flops_per_token = lambda: 7
    assert measure_flops_per_token(layer) == 7


@pytest.mark.parametrize(
    "name, arguments", [("bdlru", {"block_size": 4}), ("hlru", {"order": 3}), ("bdlru", {"selective": False})]
)
def test_the_linear_maps_of_our_layers_are_what_torch_counts(name, arguments):
    layer = build_mixer(name, 16, **arguments)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 1, 16))
    assert linear_flops_per_token(layer) == counter.get_total_flops()
    gates = torch.Size(layer.gate_shape).numel()
    assert measure_flops_per_token(layer) == counter.get_total_flops() + 5 * gates


def test_a_matrix_state_costs_a_decay_an_outer_product_and_a_query():
    layer = build_mixer("gla", 128, layer_idx=0, num_heads=1)
    state = measure_state_size(layer)
    step = measure_flops_per_token(layer) - linear_flops_per_token(layer)
    # S * decay, k v, +, q S: five operations per value of the state, and what the plain step adds
    assert 5 * state <= step <= 6.5 * state
    assert measure_flops_per_token(layer, context=9) == measure_flops_per_token(layer)


def test_attention_grows_by_two_products_per_token():
    layer = build_mixer("attn", 32, layer_idx=0, num_heads=4)
    counts = [measure_flops_per_token(layer, context) for context in (1, 2, 12)]
    products = 10 * (2 * 32 + 2 * 32)
    assert products <= counts[2] - counts[1] <= 1.15 * products  # and a few rotary angles


def test_lstm_splits_into_input_and_recurrent_weights():
    layer = build_mixer("lstm", 16, num_channels=8)
    assert linear_flops_per_token(layer) == 2 * (4 * 8 * 16 + 8 * 16)
    assert measure_flops_per_token(layer) - linear_flops_per_token(layer) == 2 * 4 * 8 * 8 + 9 * 8


def test_errors():
    with pytest.raises(ValueError, match="context=0 is not accepted"):
        measure_flops_per_token(Counted(), 0)

    class OnlyOnGPU(Counted):
        def forward(self, *args, **kwargs):
            raise RuntimeError("0 active drivers")

    with pytest.raises(ValueError, match=r"OnlyOnGPU cannot take a decoding step on the CPU.*flops_per_token.*0 active"):
        measure_flops_per_token(OnlyOnGPU())
    for measure in (measure_flops_per_token, measure_state_size):
        with pytest.raises(ValueError, match=r"one mixer with FLA's .*; LSTM has no layer_idx. Of a model, measure the mix"):
            measure(nn.LSTM(3, 3))
