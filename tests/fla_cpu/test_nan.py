"""What is masked is selected, not multiplied: NaN in one row, document or padding reaches no other."""

import pytest
import torch
from fla.layers import Mamba, Mamba2
from fla.modules.causal_conv1d import causal_conv1d, causal_conv1d_update_states
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.rotary import rotary_embedding
from fla.modules.token_shift import token_shift

BOUNDS = torch.tensor([0, 2, 5, 7, 12])
EARLIER, LATER = slice(2, 5), slice(5, 12)


def poisoned(x):
    """The second of four documents is NaN; the one after it is shorter than the convolution."""
    x = x.clone()
    x[:, EARLIER] = torch.nan
    return x.requires_grad_()


@pytest.mark.parametrize("state", [None, torch.ones(4, 3, 4)], ids=["no state", "state"])
def test_the_short_convolutions_shift(state):
    x, weight, bias = torch.randn(1, 12, 3), torch.randn(3, 4), torch.randn(3)
    expected, _ = causal_conv1d(x, weight, bias, initial_state=state, cu_seqlens=BOUNDS)
    leaf = poisoned(x)
    y, _ = causal_conv1d(leaf, weight, bias, initial_state=state, cu_seqlens=BOUNDS)
    assert torch.equal(y[:, LATER], expected[:, LATER])
    y.sum().backward()
    assert leaf.grad[:, LATER].isfinite().all()
    rows = torch.stack([torch.full((5, 3), torch.nan), x[0, :5]])
    y, _ = causal_conv1d(rows, weight, bias)
    assert torch.equal(y[1], causal_conv1d(rows[1:], weight, bias)[0][0])


@pytest.mark.parametrize("state", [None, torch.ones(4, 3, 4)], ids=["no state", "state"])
def test_the_short_convolutions_final_state(state):
    x = torch.randn(1, 12, 3)
    expected = causal_conv1d_update_states(x, 4, state, BOUNDS)
    final = causal_conv1d_update_states(poisoned(x), 4, state, BOUNDS)
    assert torch.equal(final[[0, 2, 3]], expected[[0, 2, 3]])


def test_the_short_convolutions_gradients():
    """A gradient that is NaN in one document, too."""
    x, weight = torch.randn(1, 12, 3, requires_grad=True), torch.randn(3, 4)
    y, _ = causal_conv1d(x, weight, cu_seqlens=BOUNDS)
    dy = torch.ones_like(y)
    dy[:, EARLIER] = torch.nan
    y.backward(dy)
    assert x.grad[:, :2].isfinite().all()
    assert x.grad[:, LATER].isfinite().all()


@pytest.mark.parametrize("cache", [None, torch.ones(4, 3)], ids=["no cache", "cache"])
def test_the_token_shift(cache):
    x = torch.randn(1, 12, 3)
    expected, expected_cache = token_shift(x, BOUNDS, cache, True)
    leaf = poisoned(x)
    y, new_cache = token_shift(leaf, BOUNDS, cache, True)
    assert torch.equal(y[:, LATER], expected[:, LATER])
    assert torch.equal(new_cache[[0, 2, 3]], expected_cache[[0, 2, 3]])
    y.sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    "make", [lambda: Mamba(32, layer_idx=0), lambda: Mamba2(num_heads=4, head_dim=16, hidden_size=32, layer_idx=0)]
)
def test_left_padding_of_mamba(make):
    layer, x = make().eval(), torch.randn(2, 7, 32)
    padded = torch.cat([torch.full((2, 3, 32), torch.nan), x], 1).requires_grad_()
    mask = torch.tensor([0] * 3 + [1] * 7).expand(2, -1)
    y = layer(padded, attention_mask=mask)[0][:, 3:]
    assert torch.allclose(y, layer(x)[0], atol=1e-5)
    y.sum().backward()
    assert padded.grad[:, 3:].isfinite().all()


def test_rotary_positions_of_left_padding():
    x, cos = torch.randn(1, 5, 2, 8), torch.randn(9, 4)
    expected = rotary_embedding(x, cos, cos, seqlen_offsets=torch.tensor([-2]))
    x[:, :2] = torch.nan
    y = rotary_embedding(x, cos, cos, seqlen_offsets=torch.tensor([-2]))
    assert torch.equal(y, expected)
    assert (y[:, :2] == 0).all()


@pytest.mark.parametrize("options", [{}, {"logit_softcapping": 3.0, "label_smoothing": 0.1, "lse_square_scale": 0.1}], ids=str)
def test_labels_that_are_ignored(options):
    logits, target = torch.randn(4, 7), torch.tensor([1, -100, 2, 3])
    logits[1] = torch.nan
    leaf = logits.clone().requires_grad_()
    loss, _ = cross_entropy_loss(leaf, target, **options)
    loss.sum().backward()
    kept = logits[[0, 2, 3]].requires_grad_()
    expected, _ = cross_entropy_loss(kept, target[[0, 2, 3]], **options)
    expected.sum().backward()
    assert torch.equal(loss[[0, 2, 3]], expected)
    assert loss[1] == 0
    assert torch.equal(leaf.grad[[0, 2, 3]], kept.grad)
    assert (leaf.grad[1] == 0).all()
