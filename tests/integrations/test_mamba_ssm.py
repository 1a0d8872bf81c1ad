"""BD-LRU and H-LRU in mamba_ssm's own model, on a CPU: built, initialised, trained, saved, decoded, packed."""

import math
from pathlib import Path

import pytest
import torch
from fresh import run_fresh

pytest.importorskip("mamba_ssm", reason="mamba_ssm is not installed (scripts/setup_env.py says how)", exc_type=ImportError)

from mamba_ssm.models import mixer_seq_simple
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.modules import mha
from mamba_ssm.utils.generation import InferenceParams
from usage import greedy, lively, train

from fla_bdlru import layers
from fla_bdlru.integrations import mamba_ssm as integration

ROOT = Path(__file__).parents[2]
D, VOCAB = 32, 48
CFGS = {
    "bdlru": {"layer": "BDLRU", "block_size": 4, "gate_bias": "memory"},
    "bdlru-conv-gate": {"layer": "BDLRU", "block_size": 2, "use_short_conv": True, "use_output_gate": True},
    "bdlru-constant": {"layer": "BDLRU", "selective": False},
    "hlru": {"layer": "HLRU", "order": 3, "gate_norm": "tanh"},
    "hlru-conv": {"layer": "HLRU", "order": 2, "use_short_conv": True, "gate_bias": "memory", "initial_state": "learned"},
}
each_cfg = pytest.mark.parametrize("name", CFGS)
each_norm = pytest.mark.parametrize("fused_add_norm, rms_norm", [(True, True), (True, False), (False, True), (False, False)])


def build(name="bdlru", dtype=None, **kwargs):
    config = MambaConfig(**{"d_model": D, "n_layer": 2, "vocab_size": VOCAB, "ssm_cfg": CFGS[name], **kwargs})
    return lively(MambaLMHeadModel(config, dtype=dtype)).eval()


def mixers_of(model):
    return [block.mixer for block in model.backbone.layers]


def tokens(*shape):
    return torch.randint(0, VOCAB, shape)


@pytest.fixture
def cpu_events(monkeypatch):
    """mamba_ssm's `generate` makes CUDA events whether it times anything or not."""
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: None)


@each_cfg
def test_layers_are_ours(name):
    cfg = CFGS[name]
    expected = {"BDLRU": layers.BDLRU, "HLRU": layers.HLRU}[cfg["layer"]]
    for i, layer in enumerate(mixers_of(build(name))):
        assert isinstance(layer, expected)
        assert layer.layer_idx == i
        assert all(getattr(layer, key) == value for key, value in cfg.items() if key != "layer")


@each_cfg
def test_layer_equals_the_layer_called_directly(name):
    layer = mixers_of(build(name))[1]
    arguments = {key: value for key, value in CFGS[name].items() if key != "layer"}
    direct = getattr(layers, CFGS[name]["layer"])(D, **arguments)
    direct.load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, D)
    assert torch.equal(layer(x), direct(x)[0])


@each_norm
@pytest.mark.parametrize("d_intermediate", [0, 24])
def test_model_equals_its_parts(fused_add_norm, rms_norm, d_intermediate):
    """Residual, norm, layer, (MLP), written out with PyTorch's norms and the layers called directly."""
    model = build(fused_add_norm=fused_add_norm, rms_norm=rms_norm, d_intermediate=d_intermediate)
    x = tokens(2, 9)

    def norm(module, h):
        torch.nn.init.normal_(module.weight)
        if rms_norm:
            return torch.nn.functional.rms_norm(h, (D,), module.weight, module.eps)
        return torch.nn.functional.layer_norm(h, (D,), module.weight, module.bias, module.eps)

    with torch.no_grad():
        h = model.backbone.embedding(x)
        for block in model.backbone.layers:
            direct = layers.BDLRU(D, block_size=4)
            direct.load_state_dict(block.mixer.state_dict())
            h = h + direct(norm(block.norm, h))[0]
            if d_intermediate:
                h = h + block.mlp(norm(block.norm2, h))
        expected = norm(model.backbone.norm_f, h) @ model.lm_head.weight.T
        torch.testing.assert_close(model(x).logits, expected, rtol=1e-4, atol=1e-4)


@each_norm
def test_trains(fused_add_norm, rms_norm):
    model, x = build(fused_add_norm=fused_add_norm, rms_norm=rms_norm).train(), tokens(4, 12)

    def loss(model):
        return torch.nn.functional.cross_entropy(model(x[:, :-1]).logits.flatten(0, 1), x[:, 1:].flatten())

    def check():
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())

    losses = train(model, loss, 3, 1e-3, check)
    assert losses[2] < losses[1] < losses[0]


@each_cfg
def test_step_and_inference_params_equal_the_whole_forward(name):
    model, x = build(name), tokens(2, 9)
    with torch.no_grad():
        expected = model(x).logits
        for prefill in (1, 4):
            params = InferenceParams(max_seqlen=9, max_batch_size=2)
            logits = [model(x[:, :prefill], inference_params=params).logits]
            for t in range(prefill, 9):
                params.seqlen_offset = t
                logits.append(model(x[:, t : t + 1], inference_params=params).logits)
            torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=1e-4, atol=1e-4)

        layer, u = mixers_of(model)[0], torch.randn(2, 5, D)
        states, outputs = layer.allocate_inference_cache(2, max_seqlen=5), []
        for t in range(5):
            o, *states = layer.step(u[:, t : t + 1], *states)
            outputs.append(o)
        torch.testing.assert_close(torch.cat(outputs, 1), layer(u), rtol=1e-4, atol=1e-5)


@each_cfg
def test_step_is_functional_and_inference_params_keep_their_tensors(name):
    """`step` leaves the given states alone; the tensors in `inference_params` stay the same, as CUDA graphs need."""
    model, x = build(name), tokens(2, 6)
    layer, u = mixers_of(model)[0], torch.randn(2, 1, D)
    with torch.no_grad():
        given = [None if s is None else s.normal_() for s in layer.allocate_inference_cache(2, max_seqlen=5)]
        copies = [None if s is None else s.clone() for s in given]
        _, *new = layer.step(u, *given)
        assert all(a is None or torch.equal(a, b) for a, b in zip(given, copies))
        assert not torch.equal(new[1], given[1])

        memory = model.allocate_inference_cache(2, max_seqlen=6)
        params = InferenceParams(max_seqlen=6, max_batch_size=2, key_value_memory_dict=memory)
        before = {i: list(states) for i, states in memory.items()}
        model(x[:, :5], inference_params=params)
        params.seqlen_offset = 5
        last = model(x[:, 5:], inference_params=params).logits
        assert all(a is b for i in before for a, b in zip(before[i], params.key_value_memory_dict[i]))
        torch.testing.assert_close(last, model(x).logits[:, 5:], rtol=1e-4, atol=1e-4)


@each_cfg
def test_cache_shapes_are_those_of_the_states(name):
    layer, x = mixers_of(build(name))[0], torch.randn(3, 4, D)
    allocated = layer.allocate_inference_cache(3, max_seqlen=1000)
    _, *states = layer.step(x[:, :1], *allocated)
    assert [None if s is None else s.shape for s in states] == [None if s is None else s.shape for s in allocated]
    assert sum(s[0].numel() for s in allocated if s is not None) == layer.state_size()
    half = mixers_of(build(name, dtype=torch.bfloat16))[0].allocate_inference_cache(3, max_seqlen=1)
    assert half[1].dtype == torch.float32
    assert half[0] is None or half[0].dtype == torch.bfloat16
    half = layer.allocate_inference_cache(3, max_seqlen=1, dtype=torch.bfloat16)
    assert (half[0] is None or half[0].dtype == torch.bfloat16, half[1].dtype) == (True, torch.float32)


@each_cfg
def test_generate_equals_full_forwards(name, cpu_events):
    model, prompt = build(name), tokens(2, 5)
    expected, scores = prompt, []
    with torch.no_grad():
        for _ in range(8):
            scores.append(model(expected).logits[:, -1])
            expected = torch.cat([expected, scores[-1].argmax(-1, keepdim=True)], 1)
    out = model.generate(prompt, max_length=13, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(out.sequences, expected)
    torch.testing.assert_close(torch.stack(out.scores), torch.stack(scores), rtol=1e-4, atol=1e-4)


def test_mamba_ssm_generation_test(cpu_events):
    """The comparison of mamba_ssm's own tests/test_generation.py: teacher-forced scores against the whole forward."""
    model, x = build("bdlru", n_layer=4, pad_vocab_size_multiple=16), tokens(3, 20)
    with torch.no_grad():
        expected = model(x).logits[:, 9:-1]
    out = model.generate(
        x[:, :10], max_length=20, output_scores=True, return_dict_in_generate=True, teacher_outputs=x, top_k=1
    )
    torch.testing.assert_close(torch.stack(out.scores, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, cpu_events):
    model, x = build("bdlru", dtype=dtype), tokens(2, 6)
    assert {p.dtype for p in model.parameters()} == {dtype}
    reference = build("bdlru")
    reference.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits.float(), reference(x).logits, rtol=0.1, atol=0.5)
    assert model.generate(x, max_length=9).shape == (2, 9)
    for fp32 in (True, False):
        block = build("bdlru", dtype=dtype, residual_in_fp32=fp32).backbone.layers[0]
        hidden_states, residual = block(torch.randn(2, 3, D, dtype=dtype))
        assert (hidden_states.dtype, residual.dtype) == (dtype, torch.float32 if fp32 else dtype)


@each_cfg
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(name, tied, tmp_path):
    model, x = build(name, tie_embeddings=tied), tokens(2, 7)
    for layer in mixers_of(model):  # trained away from where it starts
        torch.nn.init.normal_(layer.a_proj.bias)
    model.save_pretrained(tmp_path)
    loaded = MambaLMHeadModel.from_pretrained(str(tmp_path)).eval()
    assert loaded.config.ssm_cfg == CFGS[name]
    assert (loaded.lm_head.weight is loaded.backbone.embedding.weight) == tied
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)


def attend_with_cache(q, k_cache, v_cache, k, v, cache_seqlens, softmax_scale, causal):
    """What mamba_ssm asks of flash_attn in a decoding step: put key and value into the cache, and attend to all of it."""
    assert causal
    assert q.shape[1] == 1
    k_cache[:, cache_seqlens], v_cache[:, cache_seqlens] = k[:, 0], v[:, 0]
    q, k, v = (x.transpose(1, 2) for x in (q, k_cache[:, : cache_seqlens + 1], v_cache[:, : cache_seqlens + 1]))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


@pytest.mark.parametrize("fused_add_norm", [True, False])
def test_hybrid_with_attention(fused_add_norm, cpu_events, monkeypatch):
    """flash_attn is absent, and what mamba_ssm does without it in a decoding step is a causal mask of the first key only."""
    monkeypatch.setattr(mha, "flash_attn_with_kvcache", attend_with_cache)
    attention = {"attn_layer_idx": [1], "attn_cfg": {"num_heads": 4, "causal": True}}
    model = build(n_layer=3, fused_add_norm=fused_add_norm, d_intermediate=8, **attention)
    assert [type(layer).__name__ for layer in mixers_of(model)] == ["BDLRU", "MHA", "BDLRU"]
    prompt = tokens(2, 4)
    assert torch.equal(model.generate(prompt, max_length=10), greedy(model, prompt, 6))
    model(prompt).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("layer", ["BDLRU", "HLRU"])
def test_weight_initialisation_keeps_the_gates(layer):
    """Mamba's `_init_weights` zeroes the biases of Linear layers and rescales what writes into the residual stream."""
    config = MambaConfig(d_model=D, n_layer=4, vocab_size=VOCAB, ssm_cfg={"layer": layer, "gate_bias": "memory"})
    expected = getattr(layers, layer)(D, gate_bias="memory").a_proj.bias
    assert expected.abs().max() > 1
    bound = 1 / math.sqrt(getattr(layers, layer)(D).o_proj.in_features)  # kaiming_uniform with a = sqrt(5)
    for rescale, scale in ((True, 0.5), (False, 1.0)):
        model = MambaLMHeadModel(config, initializer_cfg={"rescale_prenorm_residual": rescale})
        for mixer in mixers_of(model):
            assert torch.equal(mixer.a_proj.bias, expected)
            assert 0.95 * bound * scale < mixer.o_proj.weight.abs().max() <= bound * scale
    uniform = MambaLMHeadModel(MambaConfig(d_model=D, n_layer=1, vocab_size=VOCAB, ssm_cfg={"layer": layer}))
    assert mixers_of(uniform)[0].a_proj.bias.abs().max() == 0


@each_cfg
def test_packed_documents(name):
    """`seq_idx` (as Mamba-2 takes it, any batch) and `cu_seqlens`: outputs of the documents alone."""
    model = build(name)
    x, lengths = tokens(2, 12), [[5, 4, 3], [1, 11]]
    seq_idx = torch.stack([torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in lengths]).int()
    with torch.no_grad():
        expected = torch.stack([torch.cat([model(doc[None]).logits[0] for doc in row.split(n)]) for row, n in zip(x, lengths)])
        for numbers in (seq_idx, 7 - seq_idx):  # any that differ
            torch.testing.assert_close(model(x, seq_idx=numbers).logits, expected, rtol=1e-4, atol=1e-4)
        cu_seqlens = torch.tensor([0, 5, 9, 12], dtype=torch.int32)
        packed = model(x[:1], cu_seqlens=cu_seqlens, seq_idx=seq_idx[:1]).logits
        torch.testing.assert_close(packed, expected[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [0, 4])
@each_cfg
def test_packed_prefill_then_decode(name, padding):
    """As mamba_ssm decodes prompts of different lengths: one packed prefill, padded or not, then one token for each."""
    model, prompts = build(name), [tokens(1, n) for n in (5, 1, 3)]
    following = tokens(3, 4)
    with torch.no_grad():
        params = InferenceParams(max_seqlen=64, max_batch_size=3)
        cu_seqlens = torch.tensor([0, 5, 6, 9])
        packed = torch.cat([*prompts, tokens(1, padding)], 1)
        first = model(packed, inference_params=params, cu_seqlens=cu_seqlens).logits
        logits = [first[0, cu_seqlens[1:] - 1]]
        for t in range(4):
            params.seqlen_offset = 5 + t
            logits.append(model(following[:, t : t + 1], inference_params=params).logits[:, 0])
        for i, prompt in enumerate(prompts):
            expected = model(torch.cat([prompt, following[i : i + 1]], 1)).logits[0, -5:]
            torch.testing.assert_close(torch.stack(logits, 1)[i], expected, rtol=1e-4, atol=1e-4)


@each_cfg
def test_packed_prefill_in_parts(name):
    """A second packed call goes on from the states of the first, whatever stood in its padding."""
    model, x = build(name), tokens(3, 6)
    with torch.no_grad():
        params = InferenceParams(max_seqlen=64, max_batch_size=3)
        model(x[:, :2].reshape(1, -1), inference_params=params, cu_seqlens=torch.tensor([0, 2, 4, 6]))
        params.seqlen_offset = 2
        rest = torch.cat([x[:, 2:].reshape(1, -1), tokens(1, 3)], 1)
        logits = model(rest, inference_params=params, cu_seqlens=torch.tensor([0, 4, 8, 12])).logits
        torch.testing.assert_close(logits[0, :12].view(3, 4, -1), model(x).logits[:, 2:], rtol=1e-4, atol=1e-4)


@each_cfg
def test_reused_inference_params_start_afresh(name):
    """What `reset` leaves in the cache, as decoding with CUDA graphs does, belongs to another prompt."""
    model, x = build(name), tokens(2, 2, 5)
    params = InferenceParams(max_seqlen=5, max_batch_size=2)
    with torch.no_grad():
        for prompt in x:
            params.reset(max_seqlen=5, max_batch_size=2)
            logits = [model(prompt[:, :3], inference_params=params).logits]
            params.seqlen_offset = 3
            logits.append(model(prompt[:, 3:4], inference_params=params).logits)
            torch.testing.assert_close(torch.cat(logits, 1), model(prompt[:, :4]).logits, rtol=1e-4, atol=1e-4)


def test_part_of_a_batch():
    """`batch_size_offset`: two halves of a batch decode into one cache."""
    model, x = build("bdlru"), tokens(4, 6)
    with torch.no_grad():
        params = InferenceParams(max_seqlen=6, max_batch_size=4, key_value_memory_dict=model.allocate_inference_cache(4, 6))
        logits = torch.empty(4, 1, VOCAB)
        for first in (0, 2):
            params.batch_size_offset, params.seqlen_offset = first, 0
            model(x[first : first + 2, :5], inference_params=params)
        for first in (0, 2):
            params.batch_size_offset, params.seqlen_offset = first, 5
            logits[first : first + 2] = model(x[first : first + 2, 5:], inference_params=params).logits
        torch.testing.assert_close(logits, model(x).logits[:, 5:], rtol=1e-4, atol=1e-4)


def test_a_part_of_a_batch_makes_place_for_those_before():
    model, x = build("bdlru-conv-gate"), tokens(4, 6)
    with torch.no_grad():
        params = InferenceParams(max_seqlen=6, max_batch_size=4, batch_size_offset=2)
        logits = [model(x[2:, :5], inference_params=params).logits]
        params.seqlen_offset = 5
        logits.append(model(x[2:, 5:], inference_params=params).logits)
        torch.testing.assert_close(torch.cat(logits, 1), model(x[2:]).logits, rtol=1e-4, atol=1e-4)


def test_a_batch_that_grew_is_refused():
    """`reset` keeps the states, and their number of sequences; emptied, `inference_params` takes any."""
    model, x = build("bdlru-conv-gate"), tokens(3, 4)
    with torch.no_grad():
        params = InferenceParams(max_seqlen=4, max_batch_size=3)
        model(x[:2], inference_params=params)
        params.reset(max_seqlen=4, max_batch_size=3)
        with pytest.raises(ValueError, match=r"holds states of 2 sequences; got a batch of 3 from batch_size_offset=0 on"):
            model(x, inference_params=params)
        params.key_value_memory_dict.clear()
        assert torch.equal(model(x, inference_params=params).logits, model(x).logits)


def test_a_layer_is_built_where_and_as_it_is_asked_for():
    layer = integration.build_layer("HLRU", D, layer_idx=3, device="meta", dtype=torch.float16, order=2)
    assert (layer.layer_idx, layer.order) == (3, 2)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}


def test_norms_with_dropout_are_refused():
    x, weight = torch.randn(2, D), torch.ones(D)
    with pytest.raises(NotImplementedError, match=r"dropout_p=0.1: mamba_ssm's norms run without dropout on a CPU"):
        integration.layer_norm_fn(x, weight, None, dropout_p=0.1)


def test_errors():
    for layer in ("bdlru", "BD-LRU"):
        with pytest.raises(ValueError, match=f"ssm_cfg: layer={layer!r} is not known; did you mean 'BDLRU'"):
            build(ssm_cfg={"layer": layer})
    with pytest.raises(ValueError, match="Invalid ssm_layer: mamba2, only support Mamba1 and Mamba2"):
        build(ssm_cfg={"layer": "mamba2"})
    with pytest.raises(ValueError, match="ssm_cfg: d_state=16 is not an argument of 'BDLRU'; it takes block_size, num_blocks"):
        build(ssm_cfg={"layer": "BDLRU", "d_state": 16})
    with pytest.raises(ValueError, match="ssm_cfg: block_size=4 is not an argument of 'HLRU'; it takes order, num_channels"):
        build(ssm_cfg={"layer": "HLRU", "block_size": 4})
    with pytest.raises(ValueError, match=r"expand=1.0 times hidden_size=32 .* positive multiple of 5"):
        build(ssm_cfg={"layer": "BDLRU", "block_size": 5})
    for argument in ("layer_idx", "hidden_size", "d_model", "dtype"):
        with pytest.raises(ValueError, match=f"ssm_cfg: {argument}=3 is not an argument of 'BDLRU'"):
            build(ssm_cfg={"layer": "BDLRU", argument: 3})
    with pytest.raises(ValueError, match="name='LRU' is not known; expected one of 'BDLRU', 'HLRU'"):
        integration.build_layer("LRU", D)
    conv = integration.build_layer("BDLRU", D, use_short_conv=True)
    with pytest.raises(ValueError, match=r"conv_state must have shape \[2, 32, 4\], as .*; got None"):
        conv.step(torch.randn(2, 1, D), None, conv.allocate_inference_cache(2, 1)[1])
    with pytest.raises(ValueError, match=r"hidden_states must have shape \[B, T, 32\]; got \[2, 32\]"):
        conv(torch.randn(2, D))
    layer, x = integration.build_layer("BDLRU", D, layer_idx=0), torch.randn(1, 4, D)
    with pytest.raises(ValueError, match=r"seq_idx must have shape \[1, 4\], as the inputs; got \[4\]"):
        layer(x, seq_idx=torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ValueError, match="pass cu_seqlens as well"):
        layer(x, seq_idx=torch.zeros(1, 4), inference_params=InferenceParams(max_seqlen=4, max_batch_size=1))


def test_other_layers_stay_as_they_are():
    """Mamba1 and Mamba2 are built by mamba_ssm itself, with its own initialisation."""
    torch.manual_seed(0)
    block = mixer_seq_simple.create_block(D, d_intermediate=0, ssm_cfg={"layer": "Mamba1", "d_state": 4}, layer_idx=3)
    torch.manual_seed(0)
    original = mixer_seq_simple.create_block.__wrapped__
    expected = original(D, d_intermediate=0, ssm_cfg={"layer": "Mamba1", "d_state": 4}, layer_idx=3)
    assert type(block.mixer) is type(expected.mixer)
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), expected.parameters()))


def run(code, **env):
    code = "import sys, types\nsys.modules['selective_scan_cuda'] = types.ModuleType('selective_scan_cuda')\n" + code
    return run_fresh("-c", code, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **env})


MODEL = """
import fla_bdlru, mamba_ssm
from mamba_ssm.models.config_mamba import MambaConfig
config = MambaConfig(d_model=8, n_layer=1, vocab_size=8, ssm_cfg={"layer": "BDLRU", "block_size": 2})
model = mamba_ssm.MambaLMHeadModel(config)
print(type(model.backbone.layers[0].mixer).__name__)
"""


@pytest.mark.parametrize("before", [
    "import mamba_ssm",
    "import fla_bdlru",
    # FLA imports mamba_ssm itself where it can; here it cannot, until mamba_ssm is given its extension
    "extension = sys.modules.pop('selective_scan_cuda')\nsys.modules['selective_scan_cuda'] = None\n"
    "import fla_bdlru\nassert 'mamba_ssm' not in sys.modules\nsys.modules['selective_scan_cuda'] = extension",
], ids=["mamba-first", "fla_bdlru-first", "mamba-later"])  # fmt: skip
def test_import_order_does_not_matter(before):
    assert run(before + MODEL).split() == ["BDLRU"]


def test_fused_norms_equal_the_kernels_of_mamba_ssm():
    """The model with fused norms through PyTorch, and through mamba_ssm's Triton kernels in the interpreter."""
    out = run(
        """
import contextlib, torch, fla_bdlru
from fla_bdlru.fla_cpu import cpu_backend
from mamba_ssm.ops.triton import layer_norm
# what a launch asks of a GPU; the autotuner would time its choices on one
torch.cuda.device = lambda index: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=2)
for name in ("_layer_norm_fwd_1pass_kernel", "_layer_norm_bwd_kernel"):
    setattr(layer_norm, name, getattr(layer_norm, name).fn)
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel, MambaConfig
for rms_norm in (True, False):
    cfg = {"layer": "BDLRU", "block_size": 2}
    config = MambaConfig(d_model=16, n_layer=2, vocab_size=16, rms_norm=rms_norm, d_intermediate=8, ssm_cfg=cfg)
    model, x = MambaLMHeadModel(config), torch.randint(0, 16, (1, 3))
    results = []
    for enabled in (True, False):
        with cpu_backend(enabled):
            model.zero_grad()
            logits = model(x).logits
            logits.square().sum().backward()
            results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    print(all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results)))
""",
        TRITON_INTERPRET="1",
    )
    assert out.split() == ["True", "True"]
