"""FLA's baseline models with their default fuse flags on a CPU: training, losses, cache, padding, packing, autocast."""

import warnings

import fla.models
import pytest
import torch
import torch.nn.functional as F
from usage import decode, greedy, train

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 48}
HEADS = {"num_heads": 2}
MODELS = {
    "DeltaNet": {**HEADS},
    "DeltaNet, negative eigenvalues": {**HEADS, "allow_neg_eigval": True, "use_gate": True},
    "DeltaNet, no convolution": {**HEADS, "use_short_conv": False, "qk_activation": "elu", "qk_norm": "sum"},
    "GatedDeltaNet": {**HEADS, "head_dim": 8},
    "GatedDeltaNet, negative eigenvalues": {**HEADS, "head_dim": 8, "allow_neg_eigval": True, "use_gate": False},
    "GatedDeltaNet, grouped values": {**HEADS, "head_dim": 8, "num_v_heads": 4},
    "GatedDeltaNet, no convolution": {**HEADS, "head_dim": 8, "use_short_conv": False},
    "GatedDeltaProduct": {**HEADS, "head_dim": 8},
    "GatedDeltaProduct, three steps": {**HEADS, "head_dim": 8, "num_householder": 3, "use_forget_gate": False},
    "GatedDeltaProduct, grouped values": {**HEADS, "head_dim": 8, "num_v_heads": 4, "allow_neg_eigval": True},
    "GLA": {**HEADS},
    "GLA, with convolution": {**HEADS, "use_short_conv": True, "expand_k": 1.0, "num_kv_heads": 1, "feature_map": "relu"},
    "HGRN": {},
    "HGRN, with convolution": {"use_short_conv": True},
    "HGRN2": {**HEADS, "expand_ratio": 16},
    "KDA": {**HEADS, "head_dim": 8},
    "LinearAttention": {**HEADS, "norm_q": True},
    "Mamba": {"state_size": 4},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4, "chunk_size": 8},
    "Mamba2, groups": {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 2},
    "RetNet": {**HEADS},
    "Transformer": {**HEADS},
    "Transformer, grouped heads": {"num_heads": 4, "num_kv_heads": 2, "window_size": 5, "qk_norm": True},
    "ABC": {**HEADS, "num_slots": 8},
    "BitNet": {**HEADS},
    "Comba": {**HEADS, "head_dim": 8},
    "ForgettingTransformer": {**HEADS},
    "GSA": {**HEADS, "num_slots": 8},
    "LightNet": {**HEADS},
    "MLA": {**HEADS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    | {"v_head_dim": 16, "qk_head_dim": 16},
    "RWKV6": {**HEADS},
    "RWKV7": {"head_dim": 16},
    "Samba": {"state_size": 4, "attn": {"layers": [1], "num_heads": 2}},
    "YOCO": {**HEADS, "num_self_decoder_layers": 1, "cross_decoder_attn": {"num_heads": 2}},
    "GatedDeltaNet with attention": {**HEADS, "head_dim": 8, "attn": {"layers": [1], "num_heads": 2}},
}
# FLA's own limits, whatever the device
NO_PACKING = {
    "ABC": "training is not supported with cu_seqlens",
    "LinearAttention": "its layer does not read cu_seqlens",
    "Mamba": "its layers have no packed sequences",
    "Mamba2": "its layers have no packed sequences",
    "Samba": "its Mamba layers have no packed sequences",
}
NO_PADDING = {
    "ABC": "padded steps count in the averages that its slots hold",
    "LinearAttention": "its layer reads attention_mask in no way that hides the padding",
}
NO_DECODING = {
    "ABC": "the cache does not hold the sums that its averages are divided by",
    "ForgettingTransformer": "its layer decodes with an attention_mask only",
}
# weights that start at zero and stop the gradient of those before them
NO_GRADIENT_AT_FIRST = {"RWKV6": "lora.2.weight", "RWKV7": "layers"}
each_model = pytest.mark.parametrize("name", MODELS)
each_plain_model = pytest.mark.parametrize("name", [name for name in MODELS if "," not in name])


def kind(name):
    return name.split(",")[0].split(" with")[0]


def build(name, **kwargs):
    config = getattr(fla.models, f"{kind(name)}Config")(**{**SIZES, **MODELS[name], **kwargs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(fla.models, f"{kind(name)}ForCausalLM")(config)
    # the output layer large enough for logits, and gradients, that a wrong mixer would change
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model


def tokens(*shape):
    return torch.randint(3, 40, shape)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(got, expected, tolerance=1e-3):
    for name, g in expected.items():
        error = (got[name] - g).norm() / g.norm().clamp_min(1e-5)
        assert error < tolerance, (name, error.item())


@each_model
def test_training(name):
    model, x = build(name), tokens(2, 20)
    loss = model(x, labels=x).loss
    assert loss.dtype == torch.float32
    for key, grad in gradients(model, loss).items():
        assert grad.isfinite().all(), key
        assert grad.abs().max() > 0 or NO_GRADIENT_AT_FIRST.get(name, "no such key") in key, key
    train(model, lambda model: model(x, labels=x).loss, 5, 3e-3)
    assert model(x, labels=x).loss < 0.9 * loss


def plain_names(values):
    """FLA names one norm differently where it is fused with its gate."""
    return {name.replace("g_norm_swish_gate", "g_norm"): value for name, value in values.items()}


@each_model
def test_fused_and_plain_parts_agree(name):
    """Norm, SwiGLU and cross entropy fused (the default) or FLA's plain PyTorch ones: the same loss and gradients."""
    model, x = build(name), tokens(2, 11)
    loss = model(x, labels=x).loss
    expected = gradients(model, loss)
    flags = {flag: False for flag in ("fuse_norm", "fuse_swiglu", "fuse_cross_entropy") if hasattr(model.config, flag)}
    plain = build(name, **flags)
    plain.load_state_dict(plain_names(model.state_dict()))
    plain_loss = plain(x, labels=x).loss
    assert torch.allclose(plain_loss, loss, atol=1e-5)
    assert_same_gradients(gradients(plain, plain_loss), plain_names(expected))


@each_plain_model
@pytest.mark.parametrize("use_l2warp", [False, True])
def test_linear_cross_entropy_and_l2warp(name, use_l2warp):
    model, x = build(name, use_l2warp=use_l2warp, fuse_linear_cross_entropy=False), tokens(2, 11)
    x[:, 3] = 7
    labels = x.clone()
    labels[0, :4] = -100
    out = model(x, labels=labels)
    expected = gradients(model, out.loss)
    reference = F.cross_entropy(model(x).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(out.loss, reference, atol=1e-5)
    model.config.fuse_linear_cross_entropy = True
    fused = model(x, labels=labels)
    assert fused.logits is None
    assert torch.allclose(fused.loss, out.loss, atol=1e-5)
    assert_same_gradients(gradients(model, fused.loss), expected)
    if use_l2warp:
        model.config.use_l2warp = False
        without = gradients(model, model(x, labels=labels).loss)["lm_head.weight"]
        assert (without - expected["lm_head.weight"]).abs().max() > 1e-7


@each_model
@pytest.mark.parametrize("prefill", [1, 5])
def test_decoding_equals_the_whole_forward(name, prefill):
    if name in NO_DECODING:
        pytest.skip(NO_DECODING[name])
    model, x = build(name).eval(), tokens(2, 12)
    assert torch.allclose(decode(model, x, prefill), model(x).logits, atol=1e-4)


@each_plain_model
def test_generation(name):
    if name in NO_DECODING:
        pytest.skip(NO_DECODING[name])
    model, x = build(name).eval(), tokens(1, 5)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(x, **options), greedy(model, x, 6))


@each_model
def test_left_padding(name):
    if kind(name) in NO_PADDING:
        pytest.skip(NO_PADDING[kind(name)])
    model, x = build(name).eval(), tokens(2, 9)
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    with torch.no_grad():
        expected = model(x[1:, 3:]).logits
        masked = model(x, attention_mask=mask).logits
        assert torch.allclose(masked[1:, 3:], expected, atol=1e-4)
        assert torch.allclose(masked[:1], model(x[:1]).logits, atol=1e-4)

        out = model(x[:, :5], attention_mask=mask[:, :5], use_cache=True)
        logits = [out.logits]
        for t in range(5, 9):
            cache = out.past_key_values
            out = model(x[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, use_cache=True)
            logits.append(out.logits)
        assert torch.allclose(torch.cat(logits, 1)[1:, 3:], expected, atol=1e-4)


@each_model
def test_packed_documents(name):
    """Logits and every gradient of packed documents are those of the documents one by one."""
    if kind(name) in NO_PACKING:
        pytest.skip(NO_PACKING[kind(name)])
    model, x, lengths = build(name), tokens(1, 16), [3, 1, 7, 5]
    weights = torch.randn(16, 40)
    packed = model(x, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0)).logits[0]
    one_by_one = torch.cat([model(document).logits[0] for document in x.split(lengths, 1)])
    assert torch.allclose(packed, one_by_one, atol=1e-4)
    assert_same_gradients(gradients(model, (packed * weights).sum()), gradients(model, (one_by_one * weights).sum()))


@pytest.mark.parametrize("name", NO_PACKING)
def test_packed_documents_are_refused_or_ignored_by_fla_itself(name):
    """What a user meets; LinearAttention ignores cu_seqlens in FLA's own layer."""
    model, x = build(name), tokens(1, 70)
    cu_seqlens = torch.tensor([0, 3, 70])
    if name == "LinearAttention":
        assert torch.allclose(model(x, cu_seqlens=cu_seqlens).logits, model(x).logits, atol=1e-5)
        return
    with pytest.raises((ValueError, NotImplementedError)):
        model(x, cu_seqlens=cu_seqlens)


def test_decoding_that_fla_itself_gets_wrong():
    abc, x = build("ABC").eval(), tokens(1, 8)
    with torch.no_grad():
        cache = abc(x[:, :7], use_cache=True).past_key_values
        assert not torch.allclose(abc(x[:, 7:], past_key_values=cache).logits, abc(x).logits[:, 7:], atol=1e-3)

        forgetting, mask = build("ForgettingTransformer").eval(), torch.ones_like(x)
        cache = forgetting(x[:, :7], use_cache=True).past_key_values
        with pytest.raises(AssertionError, match="only support q_len == kv_len when attention_mask is None"):
            forgetting(x[:, 7:], past_key_values=cache)
        cache = forgetting(x[:, :7], attention_mask=mask[:, :7], use_cache=True).past_key_values
        last = forgetting(x[:, 7:], attention_mask=mask, past_key_values=cache).logits
        assert torch.allclose(last, forgetting(x).logits[:, 7:], atol=1e-4)


@each_model
def test_long_and_short_forward_modes_agree(name):
    """FLA's layers take another op beyond 64 tokens, and another one in training."""
    model, x = build(name), tokens(1, 70)
    with torch.no_grad():
        expected = model.train()(x).logits
        assert torch.allclose(model.eval()(x).logits, expected, atol=1e-4)
        assert torch.allclose(model(x[:, :20]).logits, expected[:, :20], atol=1e-4)


@each_plain_model
def test_autocast(name):
    model, x = build(name), tokens(2, 14)
    loss = model(x, labels=x).loss
    expected = gradients(model, loss)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, labels=x)
    assert torch.allclose(out.loss, loss, atol=0.1, rtol=0.05)
    grads = gradients(model, out.loss)
    got, whole = (torch.cat([g.flatten() for g in gs.values()]) for gs in (grads, expected))
    assert F.cosine_similarity(got, whole, 0) > 0.98


@each_plain_model
def test_half_precision_weights(name):
    model, x = build(name), tokens(2, 14)
    loss = model(x, labels=x).loss
    half = model.bfloat16()
    out = half(x, labels=x)
    assert half(x).logits.dtype == torch.bfloat16
    assert torch.allclose(out.loss, loss, atol=0.1, rtol=0.05)
    assert all(g.isfinite().all() and g.dtype == torch.bfloat16 for g in gradients(half, out.loss).values())


@each_plain_model
def test_gradient_checkpointing(name):
    model, x = build(name), tokens(2, 9)
    expected = gradients(model, model(x, labels=x).loss)
    model.gradient_checkpointing_enable()
    assert_same_gradients(gradients(model, model(x, labels=x).loss), expected, 1e-5)


@pytest.mark.parametrize("name", ["GatedDeltaNet", "Mamba2", "Transformer"])
def test_compiled_models_agree(name):
    model, x = build(name), tokens(2, 9)
    loss = model(x, labels=x).loss
    expected = gradients(model, loss)
    compiled_loss = torch.compile(model, backend="aot_eager")(x, labels=x).loss
    assert torch.allclose(compiled_loss, loss, atol=1e-5)
    assert_same_gradients(gradients(model, compiled_loss), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["GatedDeltaNet", "Transformer", "GLA"])
@pytest.mark.parametrize("block_size", [1, 2])
def test_attention_residuals(name, block_size):
    model, x = build(name, attnres_block_size=block_size), tokens(2, 9)
    model(x, labels=x).loss.backward()
    # the first layer has one source only, whose weight is 1
    unused = {f"model.layers.0.attn_res_{part}.weight" for part in ("proj", "norm")}
    assert {key for key, p in model.named_parameters() if p.grad is None} <= unused
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["GatedDeltaNet", "Transformer"])
def test_powlu(name):
    model, x = build(name, hidden_act="powlu"), tokens(2, 9)
    expected = gradients(model, model(x, labels=x).loss)
    plain = build(name, hidden_act="powlu", fuse_swiglu=False)
    plain.load_state_dict(model.state_dict())
    assert_same_gradients(gradients(plain, plain(x, labels=x).loss), expected)
