"""`recompute_gates`: the same gradients, to the bit, without the logits that are kept for the backward otherwise."""

import pytest
import torch
from fla.models.utils import Cache
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call

from fla_bdlru.layers import BDLRU, HLRU
from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM

D, B, T = 16, 2, 6
LAYERS = {
    "bdlru": lambda **kw: BDLRU(D, block_size=4, **kw),
    "bdlru-constant": lambda **kw: BDLRU(D, block_size=2, selective=False, mode="fused_recurrent", **kw),
    "bdlru-conv-gate": lambda **kw: BDLRU(D, block_size=4, use_short_conv=True, use_output_gate=True, **kw),
    "hlru": lambda **kw: HLRU(D, order=3, **kw),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


class LoRA(nn.Module):
    """A projection that is frozen, with a trained detour through dropout."""

    def __init__(self, base):
        super().__init__()
        self.base, self.bias = base.requires_grad_(False), base.bias
        self.down, self.up = nn.Linear(D, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(nn.functional.dropout(self.down(x)))


def build(name, recompute, change=None):
    torch.manual_seed(0)
    layer = LAYERS[name](recompute_gates=recompute, layer_idx=0)
    nn.init.normal_(layer.a_proj.bias)
    if change is not None:
        change(layer)
    return layer


def run(layer, grad=True, **kwargs):
    """Outputs and every gradient."""
    torch.manual_seed(1)
    x = torch.randn(B, T, D).requires_grad_(grad)
    if "cu_seqlens" in kwargs:
        x = x.detach().view(1, B * T, D).requires_grad_(grad)
    o = layer(x, **kwargs)[0]
    torch.rand(3)  # the random state moves on before the backward
    o.float().square().sum().backward()
    return {"o": o.detach(), "x": x.grad, **{key: p.grad for key, p in layer.named_parameters()}}


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] is value is None or torch.equal(got[key], value), key


def saved_bytes(layer, x):
    """Bytes of the tensors that are saved for the backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        o = layer(x)[0]
    assert o.requires_grad
    return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in own)


@each_layer
def test_the_logits_are_not_kept(name):
    x = torch.randn(B, T, D, requires_grad=True)
    plain, ours = (saved_bytes(build(name, recompute), x) for recompute in (False, True))
    assert plain - ours == 4 * B * T * build(name, True).num_gates()


CALLS = {
    "plain": dict,
    "frozen input": lambda: {"grad": False},
    "padded": lambda: {"attention_mask": PADDED},
    "packed": lambda: {"cu_seqlens": torch.tensor([0, 1, 1, 7, 12])},
    "cached": lambda: {"past_key_values": Cache(), "use_cache": True},
}


@each_layer
@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_equal(name, call):
    assert_equal(*(run(build(name, recompute), **CALLS[call]()) for recompute in (True, False)))


def freeze(layer):
    layer.a_proj.requires_grad_(False)


def hook(layer):
    layer.a_proj.register_forward_hook(lambda module, args, output: output.tanh())


def random_hook(layer):
    layer.a_proj.register_forward_hook(lambda module, args, output: nn.functional.dropout(output, 0.5))


def random_pre_hook(layer):
    layer.a_proj.register_forward_pre_hook(lambda module, args: nn.functional.dropout(args[0], 0.5))


def random_forward(layer):
    forward = layer.a_proj.forward
    layer.a_proj.forward = lambda x: nn.functional.dropout(forward(x), 0.5)


def lora(layer):
    layer.a_proj = LoRA(layer.a_proj)
    nn.init.normal_(layer.a_proj.up.weight)


class Noisy(BDLRU):
    """A layer of a user's own, whose gates are random where nothing of the projection is."""

    def gates(self, hidden_states):
        return nn.functional.dropout(super().gates(hidden_states), 0.5)


def random_subclass(layer):
    layer.__class__ = Noisy


def random_gates(layer):
    gates = layer.gates
    layer.gates = lambda x: nn.functional.dropout(gates(x), 0.5)


CHANGES = [freeze, hook, random_hook, random_pre_hook, random_forward, lora, random_subclass, random_gates]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_whatever_the_projection_is(change, autocast):
    """The backward runs outside of autocast, and from another random state."""

    class Called:
        def __init__(self, layer):
            self.layer, self.named_parameters = layer, layer.named_parameters

        def __call__(self, x):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return self.layer(x)

    got, expected = (run(Called(build("bdlru", recompute, change))) for recompute in (True, False))
    assert_equal(got, expected)
    assert got["o"].dtype == (torch.bfloat16 if autocast else torch.float32)


def test_backward_twice_and_an_input_that_changed():
    layer, x = build("bdlru", True), torch.randn(B, T, D)
    o = layer(x)[0].sum()
    grads = [torch.autograd.grad(o, layer.v_proj.weight, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.backward()


def spectral(layer):
    nn.utils.parametrizations.spectral_norm(layer.a_proj)


def own_gates(layer):
    layer.gates = lambda x: 2 * type(layer).gates(layer, x)


@pytest.mark.parametrize("name, change", [*((name, None) for name in LAYERS), ("bdlru", lora), ("hlru", own_gates)])
def test_parameters_of_a_functional_call(name, change):
    """The layer has its own again when the backward computes with those of the call."""
    results = []
    for recompute in (True, False):
        layer = build(name, recompute, change)
        others = {key: (1.5 * p.detach()).requires_grad_() for key, p in layer.named_parameters()}
        own, x = dict(layer.named_parameters()), torch.randn(B, T, D, generator=torch.Generator().manual_seed(2))
        torch.manual_seed(3)
        o = functional_call(layer, others, (x,))[0]
        results.append(dict(zip(others, torch.autograd.grad(o.square().sum(), list(others.values())))))
        assert all(p is own[key] for key, p in layer.named_parameters())
    assert_equal(*results)


@pytest.mark.parametrize("key", ["weight", "bias"])
def test_parameters_that_changed(key):
    """An optimiser's step before the backward, that autograd itself need not see."""
    layer = build("bdlru", True)
    o = layer(torch.randn(B, T, D))[0].sum()
    with torch.no_grad():
        getattr(layer.a_proj, key).add_(1)
    with pytest.raises(RuntimeError, match=f"a_proj.{key} has been modified by an inplace operation since the forward"):
        o.backward()


class Dropping(BDLRU):
    """A layer of a user's own, whose gates depend on the mode."""

    def gates(self, hidden_states):
        return nn.functional.dropout(super().gates(hidden_states), 0.5, self.training)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_forward(training):
    results = []
    for recompute in (True, False):
        torch.manual_seed(0)
        layer = Dropping(D, recompute_gates=recompute).train(training)
        o = layer(torch.randn(B, T, D))[0].square().sum()
        layer.train(not training)
        o.backward()
        assert layer.training is layer.a_proj.training is not training
        results.append({key: p.grad for key, p in layer.named_parameters()})
    assert_equal(*results)


def test_a_norm_that_changes_at_every_call():
    """Two forwards and two backwards: vectors that the gates write to are no error."""
    layer = build("bdlru", True, spectral)
    o = sum(layer(torch.randn(B, T, D))[0].sum() for _ in range(2))
    o.backward(retain_graph=True)
    o.backward()


def test_a_projection_that_is_sharded_on_its_own(tmp_path):
    """The backward finds it sharded or whole, as FSDP will have it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer, plain = build("bdlru", True), build("bdlru", False)
        for part in (layer.a_proj, layer):
            fully_shard(part, mesh=init_device_mesh("cpu", (1,)))
        x = torch.randn(2, B, T, D)
        for each in (layer, plain):
            (each(x[0])[0] + each(x[1])[0]).square().sum().backward()
        assert torch.equal(layer.a_proj.weight.grad.full_tensor(), plain.a_proj.weight.grad)
    finally:
        torch.distributed.destroy_process_group()


class Tempered(BDLRU):
    def recur(self, v, g, **options):
        return super().recur(v, 2 * g, **options)


class Doubled(BDLRU):
    def recur(self, v, g, **options):
        o, state = super().recur(v, g, **options)
        return o + super().recur(o, -g, **options)[0], state


class Overwritten(BDLRU):
    def recur(self, v, g, **options):
        return super().recur(v, g.mul_(2), **options)


@pytest.mark.parametrize("cls", [Tempered, Doubled, Overwritten])
def test_a_subclass_that_changes_the_logits(cls):
    results = []
    for recompute in (True, False):
        torch.manual_seed(0)
        layer = cls(D, recompute_gates=recompute)
        results.append(run(layer))
    assert_equal(*results)


@pytest.mark.parametrize("name", ["bdlru", "hlru"])
def test_what_runs_next_keeps_its_own_logits(name):
    """The input of a layer's gates is that of its recurrence alone, and not of the one after it, which computes none again."""
    others = [build(name, False) for _ in range(2)]
    for other in others:
        nn.init.constant_(other.a_proj.weight, 0.5)
    expected = run(others[0])
    run(build(name, True))
    assert_equal(run(others[1]), expected)


def test_the_backward_draws_no_random_numbers_of_the_user():
    """It repeats those of the forward, and gives the random state back as it was."""
    layer = build("bdlru", True, random_hook)
    o = layer(torch.randn(B, T, D))[0].sum()
    torch.rand(3)
    before = torch.get_rng_state()
    o.backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_models_with_checkpointing(reentrant):
    """The field of a config reaches the layers, and checkpoints of whole blocks hold one."""

    def train(recompute):
        torch.manual_seed(0)
        sizes = {"hidden_size": D, "num_hidden_layers": 2, "vocab_size": 32, "hidden_ratio": 2}
        model = BDLRUForCausalLM(BDLRUConfig(block_size=4, recompute_gates=recompute, **sizes))
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ids = torch.arange(12).view(2, 6)
        model(ids, labels=ids).loss.backward()
        assert model.model.layers[1].attn.recompute_gates is recompute
        return {key: p.grad for key, p in model.named_parameters()}

    assert_equal(train(True), train(False))


@pytest.mark.parametrize("name", ["bdlru", "hlru"])
def test_compiled(name):
    """One graph, that keeps no logits either."""
    x = torch.randn(B, T, D, requires_grad=True)
    plain, ours = build(name, False), torch.compile(build(name, True), fullgraph=True, backend="aot_eager_decomp_partition")
    expected, got = run(plain), run(ours)
    for key, value in expected.items():
        torch.testing.assert_close(got[key if key in got else f"_orig_mod.{key}"], value, rtol=1e-5, atol=1e-5, msg=key)
    assert saved_bytes(ours, x) < saved_bytes(plain, x) - 2 * B * T * plain.num_gates()


def test_exported():
    """An exported graph has no backward, and holds no checkpoint."""
    layer, x = build("bdlru", True), torch.randn(B, T, D)
    program = torch.export.export(layer, (x,), strict=True)
    assert not any("checkpoint" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])
