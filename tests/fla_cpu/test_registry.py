"""How replacements get in: everything in the table, signatures, the CPU check, the switch, the names FLA's modules hold."""

import importlib
import inspect
import sys

import pytest
import torch
from fla.backends import _function_registries, _operation_registries
from fla.modules.activations import swish
from fla.modules.activations.ops import swish_fwd
from fla.modules.norm.layernorm import rms_norm
from torch._subclasses.fake_tensor import FakeTensorMode

from fla_bdlru import fla_cpu
from fla_bdlru.fla_cpu import cpu_backend, is_enabled, registry, table
from fla_bdlru.patches import resolve

TARGETS = {**table.ENTRY_POINTS, **table.WRAPPED, **table.TRACEABLE, **table.TRACED}
OPERATIONS = {target: f for implementations in table.OPERATIONS.values() for target, f in implementations.items()}


def on_a_gpu():
    """A tensor on a GPU, without one."""
    with FakeTensorMode():
        return torch.empty(2, device="cuda")


def original_of(target):
    _, _, function = resolve(target)
    return inspect.unwrap(getattr(function, "_fla_bdlru_original", function))


def replacement_of(target):
    """What takes a call of FLA's function on CPU tensors."""
    _, name, function = resolve(target)
    for operation, implementations in table.OPERATIONS.items():
        if target in implementations:
            return _operation_registries[operation]._backends["fla_bdlru_cpu"].get_implementation(name)
    if target in table.ENTRY_POINTS:
        return _function_registries[original_of(target)]._backends["fla_bdlru_cpu"].implementation
    while "implementation" not in inspect.getclosurevars(function).nonlocals:
        function = function.__wrapped__
    return inspect.getclosurevars(function).nonlocals["implementation"]


def parameters_of(function):
    return {name: (p.default, p.kind) for name, p in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("target", [*TARGETS, *OPERATIONS])
def test_replacements_have_the_parameters_of_what_they_replace(target):
    theirs, ours = parameters_of(original_of(target)), parameters_of(replacement_of(target))
    if list(theirs) == ["args", "kwargs"]:
        pytest.skip("the apply of an autograd function shows no parameters")
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("target", [*TARGETS, *OPERATIONS])
def test_replacements_name_what_fla_has(target):
    """A name that FLA's function neither has nor could take through `**kwargs` would be a slip."""
    theirs = inspect.signature(original_of(target)).parameters
    for name, parameter in inspect.signature({**TARGETS, **OPERATIONS}[target]).parameters.items():
        assert name in theirs or "kwargs" in theirs or name == "options" or parameter.default is not parameter.empty, name


@pytest.mark.parametrize("target", table.ENTRY_POINTS)
def test_entry_points_take_cpu_tensors_only(target):
    entry = _function_registries[original_of(target)]
    backend = entry._backends["fla_bdlru_cpu"]
    cpu, meta, elsewhere = torch.ones(2), torch.ones(2, device="meta"), on_a_gpu()
    assert backend.verify("f", meta, [meta])[0]
    assert backend.verify("f", cpu)[0]
    assert backend.verify("f", None, x=[cpu, cpu])[0]
    for args in ((elsewhere,), (elsewhere, None), ([elsewhere],), ()):
        assert not backend.verify("f", *args)[0]
    for args in ((cpu, meta), (meta, None, cpu), ([cpu, meta],)):
        with pytest.raises(ValueError, match="came with meta tensors"):
            backend.verify("f", *args)
    # asked before every other backend, so that no other one can take a CPU tensor
    assert entry._get_sorted_backends()[0] is backend


@pytest.mark.parametrize("target", [*table.WRAPPED, *table.TRACEABLE, *table.TRACED])
def test_wrapped_functions_are_held_under_every_name(target):
    _, name, wrapper = resolve(target)
    original = wrapper._fla_bdlru_original
    assert wrapper.__name__ == original.__name__ if hasattr(original, "__name__") else True
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("fla."):
            assert all(value is not original for value in vars(module).values()), (module_name, name)


def test_wrapped_functions_take_cpu_tensors_only():
    calls = []
    wrapper = registry.wrap(lambda *args, **kwargs: calls.append("fla"), lambda *args, **kwargs: calls.append("ours"))
    cpu, meta, elsewhere = torch.ones(2), torch.ones(2, device="meta"), on_a_gpu()
    wrapper(cpu, 3, None)
    wrapper(x=[cpu, cpu])
    wrapper(meta)
    assert calls == ["ours"] * 3
    wrapper(elsewhere, y=elsewhere)
    wrapper(3)
    assert calls[3:] == ["fla"] * 2


def test_meta_tensors_among_cpu_tensors_are_refused():
    """As a weight that is offloaded or was never loaded: it holds no values."""
    cpu, meta = torch.ones(2, 8), torch.ones(8, device="meta")
    wrapper = registry.wrap(lambda *args, **kwargs: None, lambda *args, **kwargs: None)
    for args, kwargs in (((cpu, meta), {}), ((meta,), {"y": cpu}), (([cpu],), {"y": (meta,)})):
        with pytest.raises(ValueError, match="came with meta tensors, which hold no values"):
            wrapper(*args, **kwargs)
    with pytest.raises(ValueError, match="came with meta tensors"):
        rms_norm(cpu, meta, None)


def test_wrapped_functions_compile_without_a_graph_break():
    wrapper = registry.wrap(lambda x, y=None: 2 * x, lambda x, y=None: x + 1)
    compiled = torch.compile(lambda x: 3 * wrapper(x, y=[x]), backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 6.0))
    assert compiled(torch.ones(2, device="meta")).device.type == "meta"


def test_a_builtin_function_has_no_parameters_to_check():
    """As `torch.autograd.Function.apply` with torch 2.14, where the import raised."""
    wrapper = registry.wrap(max, registry.by_name(max, lambda x, y: x + y))
    assert torch.equal(wrapper(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
    assert wrapper(3, 4) == 4


def test_gradients_through_what_was_converted_to_what_it_is(monkeypatch):
    """torch 2.11 loses them where a Function returns a tensor that it has under another name, too; so it gets a view."""

    def product(x, y):
        return [(x * y).to(x.dtype).contiguous()], None

    wrapper = registry.wrap(lambda *_: None, product)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            return wrapper(x, y)[0][0]

        @staticmethod
        def backward(ctx, do):
            x, y = ctx.saved_tensors
            return do * y, do * x

    x, y = torch.ones(2, requires_grad=True), torch.tensor([2.0, 3.0])
    torch.compile(Product.apply, backend="eager", fullgraph=True)(x, y).sum().backward()
    assert torch.equal(x.grad, y)
    assert not wrapper(x.detach(), y)[0][0]._is_view()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (o,), nothing = wrapper(x.detach(), y)
    assert o._is_view()
    assert torch.equal(o, y)
    assert nothing is None


def test_traced_functions_take_the_place_of_fla_only_while_a_tracer_is_at_work():
    original = torch.compiler.disable(lambda x: 2 * x)
    wrapper = registry.wrap(original, lambda x: x + 1, while_tracing=True)
    x = torch.full((2,), 5.0)
    assert torch.equal(wrapper(x), 2 * x)
    assert torch.equal(torch.compile(wrapper, backend="eager", fullgraph=True)(x), x + 1)
    with cpu_backend(False):
        assert torch.equal(torch.compile(wrapper, backend="eager")(x), 2 * x)


def test_the_switch(monkeypatch):
    x = torch.randn(2, 3)

    def takes_cpu_tensors():
        entry = _function_registries[inspect.unwrap(swish_fwd)]
        return entry.get_active() is entry._backends["fla_bdlru_cpu"]

    assert is_enabled()
    assert takes_cpu_tensors()
    assert torch.allclose(swish(x), torch.nn.functional.silu(x))
    monkeypatch.setenv("FLA_BDLRU_CPU_BACKEND", "0")
    assert not is_enabled()
    assert not takes_cpu_tensors()
    with cpu_backend():
        assert takes_cpu_tensors()
        with cpu_backend(False):
            assert not takes_cpu_tensors()
        assert takes_cpu_tensors()
    assert not is_enabled()
    wrapper = registry.wrap(lambda x: "fla", lambda x: "ours")
    assert wrapper(x) == "fla"
    monkeypatch.setenv("FLA_BDLRU_CPU_BACKEND", "1")
    assert wrapper(x) == "ours"
    monkeypatch.setenv("FLA_BDLRU_CPU_BACKEND", "false")
    with pytest.raises(ValueError, match="FLA_BDLRU_CPU_BACKEND='false' is not known; expected 0 or 1"):
        is_enabled()
    with pytest.raises(ValueError, match="expected 0 or 1"):
        swish(x)


def test_the_switch_is_restored_after_an_error():
    with pytest.raises(RuntimeError, match="boom"), cpu_backend(False):
        raise RuntimeError("boom")
    assert is_enabled()


def test_registering_twice_changes_nothing():
    before = {target: resolve(target)[2] for target in TARGETS}
    fla_cpu.register()
    fla_cpu._registered = False
    try:
        fla_cpu.register()
        for target, function in before.items():
            again = resolve(target)[2]
            assert again is function, target
    finally:
        fla_cpu._registered = True


def test_a_target_that_fla_does_not_have_is_a_warning():
    for name in ("fla.modules.mlp:no_such_function", "fla.no_such_module:f"):
        with pytest.warns(UserWarning, match="is not in this version of FLA"):
            registry.wrap_functions({name: lambda x: x})
        with pytest.warns(UserWarning, match="is not in this version of FLA"):
            registry.register_dispatched(None, {name: lambda x: x})
        with pytest.warns(UserWarning, match="is not in this version of FLA"):
            registry.register_dispatched("no_such_operation", {name: lambda x: x})


def test_optional_functions():
    module = importlib.import_module("fla.layers.attn")
    for name in table.FLASH_ATTENTION_MODULES:
        other = importlib.import_module(name)
        assert other.flash_attn_func.__name__ == module.flash_attn_func.__name__ == "flash_attn_func"
        assert callable(other.flash_attn_varlen_func)
