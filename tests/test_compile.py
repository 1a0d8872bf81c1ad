"""torch.compile and torch.export of whole models: one graph, equal to eager, few compilations; and what breaks it."""

import pytest
import torch
import torch.distributed as dist
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, TransformerConfig, TransformerForCausalLM
from fla.ops.cp import build_cp_context
from ranks import run_ranks
from torch._dynamo.exc import Unsupported
from torch.export import Dim

from fla_bdlru.fla_cpu import activation, convolution, norm
from fla_bdlru.layers import HLRU
from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM

VOCAB = 32
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": VOCAB, "hidden_ratio": 2}
MIXED = {
    "mixer": ["bdlru", "hlru"],
    "mixer_config": {"bdlru": {"use_short_conv": True, "use_output_gate": True}, "hlru": {"order": 2}},
}
MODELS = {
    "bdlru": (BDLRUForCausalLM, BDLRUConfig, {}),
    "gated_deltanet-hlru": (GatedDeltaNetForCausalLM, GatedDeltaNetConfig, {"num_heads": 2, "head_dim": 8, "mixer": "hlru"}),
    "transformer-hybrid": (
        TransformerForCausalLM,
        TransformerConfig,
        {"num_hidden_layers": 2, "num_heads": 2, "mixer": ["bdlru", "native"]},
    ),
    "transformer-mixed": (TransformerForCausalLM, TransformerConfig, {"num_hidden_layers": 2, "num_heads": 2, **MIXED}),
}
SHAPES = [(2, 12), (2, 7), (3, 33), (5, 12), (7, 64)]


@pytest.fixture(autouse=True)
def _fresh():
    """No compiled code of another test, and one thread: the tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.set_num_threads(threads)


def build(name, **fields):
    cls, config, own = MODELS[name]
    return cls(config(**{**SIZES, **own, **fields}))


def tokens(*shape):
    return torch.randint(0, VOCAB, shape)


class Count:
    """A backend that counts what it is given to compile, and runs it as it is."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


def step(model, function, x, **kwargs):
    """Loss, logits and all gradients of a training step."""
    model.zero_grad()
    out = function(x, labels=x, **kwargs)
    # copied, as FLA's cross entropy writes its gradient into them
    logits = [] if out.logits is None else [out.logits.detach().clone()]
    out.loss.backward()
    return [out.loss.detach(), *logits, *(p.grad.clone() for p in model.parameters())]


def assert_equal(found, expected):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, backend, dynamic",
    [
        ("bdlru", "inductor", None),
        ("gated_deltanet-hlru", "inductor", True),
        ("transformer-hybrid", "eager", None),
        ("transformer-mixed", "aot_eager", True),
    ],
)
def test_compiled_training_equals_eager(name, backend, dynamic):
    """With FLA's fused norms, SwiGLU and cross entropy as they are by default."""
    model, x = build(name), tokens(2, 12)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    assert_equal(step(model, compiled, x), step(model, model, x))


@pytest.mark.parametrize(
    "name, dynamic",
    [("bdlru", None), ("bdlru", True), ("bdlru", False), ("gated_deltanet-hlru", None), ("transformer-mixed", True)],
)
def test_training_is_one_graph_and_few_compilations(name, dynamic):
    """By default T and then B are marked as dynamic when they change first; from the fourth shape on nothing is compiled."""
    model, count, graphs = build(name), Count(), []
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=count)
    shapes = SHAPES if dynamic is not False else SHAPES[:2] * 2
    for shape in shapes:
        x = tokens(*shape)
        assert_equal(step(model, compiled, x), step(model, model, x))
        graphs.append(count.graphs)
    assert graphs[-1] <= {None: 3, True: 2, False: 2}[dynamic], graphs
    assert graphs[-1] == graphs[-2]


def test_packed_documents_are_one_graph():
    model, count = build("transformer-mixed"), Count()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    graphs = []
    for ends in ([3, 4, 12], [7, 20], [2, 5, 6, 15]):
        x, cu_seqlens = tokens(1, ends[-1]), torch.tensor([0, *ends])
        assert_equal(step(model, compiled, x, cu_seqlens=cu_seqlens), step(model, model, x, cu_seqlens=cu_seqlens))
        graphs.append(count.graphs)
    assert len(set(graphs[1:])) == 1, graphs


@pytest.mark.parametrize("name", ["bdlru", "transformer-mixed"])
def test_inference_mode(name, monkeypatch):
    """The same bits where FLA's modules run in PyTorch; close to what numba makes of them where nobody traces."""
    model, count = build(name).eval(), Count()
    compiled = torch.compile(model, fullgraph=True, backend=count)
    with torch.inference_mode():
        for shape in SHAPES:
            x = tokens(*shape)
            found = compiled(x, use_cache=False).logits
            torch.testing.assert_close(found, model(x, use_cache=False).logits, rtol=1e-5, atol=1e-6)
            with monkeypatch.context() as patch:
                for module in (activation, convolution, norm):
                    patch.setattr(module, "are_for_kernels", lambda *tensors: False)
                assert torch.equal(found, model(x, use_cache=False).logits)
    assert count.graphs <= 3


@pytest.mark.parametrize("name", ["bdlru", "transformer-mixed"])
def test_decoding_compiles_nothing_after_the_first_token(name):
    """FLA keeps its cache out of graphs, so a step is several, but always the same ones."""
    model, count, x = build(name).eval(), Count(), tokens(2, 9)
    compiled, graphs = torch.compile(model, backend=count), []
    with torch.inference_mode():
        out = compiled(x[:, :5], use_cache=True)
        logits = [out.logits]
        for t in range(5, 9):
            out = compiled(x[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
            graphs.append(count.graphs)
        torch.testing.assert_close(torch.cat(logits, 1), model(x).logits, rtol=1e-4, atol=1e-6)
    assert len(set(graphs)) == 1, graphs


@pytest.mark.parametrize("name, strict", [("bdlru", True), ("gated_deltanet-hlru", False), ("transformer-mixed", False)])
def test_export_of_a_forward(name, strict, tmp_path):
    model = build(name).eval()
    shapes = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}, "use_cache": None}
    exported = torch.export.export(model, (tokens(2, 12),), {"use_cache": False}, dynamic_shapes=shapes, strict=strict)
    called = {str(node.target) for node in exported.graph.nodes if "fla_bdlru" in str(node.target)}
    assert (
        called
        == {
            "bdlru": {"fla_bdlru.bdlru.default"},
            "gated_deltanet-hlru": {"fla_bdlru.hlru.default"},
            "transformer-mixed": {"fla_bdlru.bdlru.default", "fla_bdlru.hlru.default"},
        }[name]
    )
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for shape in SHAPES[:3]:
        x = tokens(*shape)
        torch.testing.assert_close(loaded(x, use_cache=False).logits, model(x).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_window_takes_inputs_shorter_than_the_order(strict):
    layer, x = HLRU(16, order=4).eval(), torch.randn(3, 9, 16)
    shapes = ({0: Dim("batch", min=2), 1: Dim("length", min=2)},)
    exported = torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=strict).module()
    for length in (2, 3, 4, 40):
        x = torch.randn(2, length, 16)
        torch.testing.assert_close(exported(x)[0], layer(x)[0])


# What README says about graphs that FLA breaks, and that the model then still computes the same.
BROKEN = {
    "fuse_linear_cross_entropy": ({"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True}, {}),
    "torch's cross entropy": ({"fuse_cross_entropy": False}, {}),
    "padding": ({}, {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}),
    "cache": ({}, {"use_cache": True}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_graphs_that_fla_breaks(what):
    fields, kwargs = BROKEN[what]
    model, x = build("bdlru", **fields), tokens(2, 5)
    with pytest.raises(Unsupported):
        torch.compile(model, fullgraph=True, backend="eager")(x, labels=x, **kwargs)
    torch.compiler.reset()
    assert_equal(step(model, torch.compile(model, backend="eager"), x, **kwargs), step(model, model, x, **kwargs))


def with_a_context(rank):
    """Whether `fullgraph=True` is refused, and what the model and its compiled self compute."""
    model, x = build("bdlru").train(), tokens(1, 12)
    kwargs = {"cp_context": build_cp_context(torch.tensor([0, 5, 12]), dist.group.WORLD)}
    try:
        torch.compile(model, fullgraph=True, backend="eager")(x, labels=x, **kwargs)
    except Unsupported as error:
        refusal = str(error)
    torch.compiler.reset()
    return refusal, step(model, torch.compile(model, backend="eager"), x, **kwargs), step(model, model, x, **kwargs)


def test_context_parallelism_runs_outside_the_graph():
    ((refusal, compiled, eager),) = run_ranks(1, with_a_context)
    assert "context_parallel" in refusal
    assert_equal(compiled, eager)


def test_torch_s_cross_entropy_as_the_criterion_is_one_graph():
    model, x = build("bdlru", fuse_cross_entropy=False), tokens(2, 12)
    model.criterion = torch.nn.CrossEntropyLoss()
    assert_equal(step(model, torch.compile(model, fullgraph=True, backend="eager"), x), step(model, model, x))
