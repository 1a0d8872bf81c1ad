"""Every model class of FLA with its own mixers: it trains a step on a CPU, or stops at an operation that is named here."""

import warnings

import fla.models
import pytest
import torch

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 48, "num_heads": 2}
MORE = {
    "ABC": {"num_slots": 8},
    "Comba": {"head_dim": 8},
    "GSA": {"num_slots": 8},
    "GatedDeltaNet": {"head_dim": 8},
    "GatedDeltaProduct": {"head_dim": 8},
    "HGRN2": {"expand_ratio": 16},
    "KDA": {"head_dim": 8},
    "LogLinearMamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16},
    "MLA": {"q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 16,
            "qk_head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4},
    "Mamba3": {"num_heads": 8, "head_dim": 8, "state_size": 16},
    "Mamba": {"state_size": 4},
    "MesaNet": {"head_dim": 16},
    "Mom": {"head_dim": 8},
    "NSA": {"num_heads": 16, "num_kv_heads": 1, "head_dim": 8},
    "PrecondGatedDeltaNet": {"head_dim": 8},
    "PrecondKDA": {"head_dim": 8},
    "RWKV7": {"head_dim": 16, "num_heads": None},
    "Raven": {"num_slots": 8, "topk": 4},
    "Rodimus": {"block_type": "rodimus", "residual_in_fp32": False, "expand_ratio": 16},
    "Samba": {"state_size": 4, "attn": None},
    "YOCO": {"num_self_decoder_layers": 1, "cross_decoder_attn": {"num_heads": 2}},
}  # fmt: skip
# Triton without a GPU, or with one but tensors on the CPU
TRITON = "0 active drivers|cpu tensor"
# what stops the others, as their error says it
STOPPED = {
    "CAT": "FlexAttention does not support backward on CPU",
    "CyclicFlowAttention": "CyclicFlowAttention optimized operators require CUDA tensors",
    "DeltaFormer": "Please install Flash Attention",
    "LogLinearMamba2": "",
    "MesaNet": TRITON,
    "MoBA": "`parallel_moba` requires `flash-attn`",
    "NSA": TRITON,
    "PaTHAttention": TRITON,
    "Parallax": "parallel_parallax requires bf16 or fp16 inputs",
    "PrecondGatedDeltaNet": TRITON,
    "PrecondKDA": TRITON,
    "StickBreakingAttention": "Stick-breaking attention requires a CUDA/HIP or Intel GPU",
    "WallTransformer": TRITON,
}
ERRORS = (RuntimeError, NotImplementedError, ImportError, TypeError, ValueError)
NAMES = sorted(name.removesuffix("Config") for name in fla.models.__all__ if name.endswith("Config"))


@pytest.mark.parametrize("name", NAMES)
def test_native_mixers(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(fla.models, f"{name}Config")(**{**SIZES, **MORE.get(name, {})})
        model = getattr(fla.models, f"{name}ForCausalLM")(config)
    x = torch.randint(40, (2, 9))
    if name in STOPPED:
        with pytest.raises(ERRORS, match=STOPPED[name]):
            model(x, labels=x).loss.backward()
        return
    loss = model(x, labels=x).loss
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.step()
    with torch.no_grad():
        assert model(x, labels=x).loss < loss
