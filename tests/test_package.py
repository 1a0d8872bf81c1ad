"""Importing the package: what it offers, what it needs, how long it takes; and every example in it runs."""

import doctest
import importlib
import pkgutil
import re

import pytest
from fresh import ROOT, run_fresh

import fla_bdlru

MODULES = sorted(m.name for m in pkgutil.walk_packages(fla_bdlru.__path__, "fla_bdlru."))

QUICK = """
import time, torch, fla, warnings
warnings.simplefilter("error")  # what FLA says is said by now
start = time.perf_counter()
import fla_bdlru
warnings.simplefilter("ignore")
print(time.perf_counter() - start < 2, *(sys.modules.get(name) is not None for name in ('numba', 'matplotlib')))
"""

# how Python marks a package that cannot be imported: as on a machine without it
HIDE = "import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"


def run(code: str, hidden: tuple[str, ...] = ()) -> str:
    return run_fresh("-c", HIDE.format(hidden=hidden) + code)


def test_public_names():
    assert fla_bdlru.__all__ == [
        "BDLRU", "HLRU",
        *(f"{family}{part}" for family in ("BDLRU", "HLRU") for part in (
            "Config", "ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model"
        )),
        "available_mixers", "build_mixer", "register_mixer", "swap_mixers", "rewind_cache", "SpeculativeDecoding",
        "fla_cpu", "integrations", "layers", "mixers", "models", "ops", "patches",
    ]  # fmt: skip
    assert all(hasattr(fla_bdlru, name) for name in fla_bdlru.__all__)
    assert set(fla_bdlru.__all__) <= set(dir(fla_bdlru))
    assert fla_bdlru.ops.__all__ == [
        "GATE_NORMS", "chunk_bdlru", "chunk_hlru", "fused_recurrent_bdlru", "fused_recurrent_hlru", "hlru_window",
        "naive_chunk_bdlru", "naive_chunk_hlru", "naive_recurrent_bdlru", "naive_recurrent_hlru", "normalize_gates",
    ]  # fmt: skip
    assert fla_bdlru.layers.__all__ == ["BDLRU", "HLRU", "LSTM", "Bidirectional"]
    with pytest.raises(AttributeError, match="has no attribute 'chunk_bdlru'"):
        _ = fla_bdlru.chunk_bdlru


def test_the_citation_and_the_changelog_name_this_version():
    assert f"\nversion: {fla_bdlru.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == fla_bdlru.__version__


def test_ops_import_no_layer_and_the_package_no_benchmark():
    def imports(path):
        return set(re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE))

    package = ROOT / "fla_bdlru"
    for path in package.rglob("*.py"):
        names = imports(path)
        assert not any(name.startswith("benchmarks") for name in names), path
        if package / "ops" in path.parents:
            assert not any(re.match(r"fla_bdlru\.(layers|models|mixers|fla_cpu)", name) for name in names), path
        if package / "layers" in path.parents:
            assert not any(re.match(r"fla_bdlru\.(models|mixers|fla_cpu)", name) for name in names), path


@pytest.mark.parametrize("hidden", [("triton",), ("triton", "numba")], ids="+".join)
def test_imports_and_runs_without_triton(hidden):
    out = run(
        QUICK
        + """
from fla_bdlru.layers import BDLRU, HLRU, LSTM
x = torch.randn(2, 5, 16)
for layer in (BDLRU(16), HLRU(16), LSTM(16)):
    layer(x)[0].sum().backward()
def from_import():
    from fla_bdlru import BDLRUConfig
for call in (lambda: fla_bdlru.mixers, from_import, lambda: BDLRU(16, use_short_conv=True)):
    try:
        call()
    except (AttributeError, ModuleNotFoundError) as error:
        print(type(error).__name__, error)
from fla_bdlru import *
print(hasattr(fla_bdlru, 'BDLRUConfig'), hasattr(fla_bdlru, 'HLRU'), 'BDLRU' in globals(), 'BDLRUConfig' in dir(fla_bdlru))
""",
        hidden=hidden,
    )
    assert out.splitlines() == [
        "True False False",
        "AttributeError fla_bdlru.mixers needs the layers of flash-linear-attention, which need 'triton': "
        "`pip install triton`.",
        "ModuleNotFoundError fla_bdlru.BDLRUConfig needs the layers of flash-linear-attention, which need 'triton': "
        "`pip install triton`.",
        "ModuleNotFoundError ShortConvolution comes from flash-linear-attention, which needs 'triton': `pip install triton`.",
        "False True True False",
    ]


def test_import_is_quick():
    """Under 2 s over importing torch and flash-linear-attention, without a warning; numba is left for the first op."""
    assert run(QUICK).split() == ["True", "False", "False"]


def test_a_second_import_does_not_hook_twice():
    from fla.models.modeling_utils import FLAPreTrainedModel

    before = FLAPreTrainedModel.post_init
    fla_bdlru.mixers.hook.install_hook()
    assert FLAPreTrainedModel.post_init is before


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    if name.endswith(".mamba_ssm"):
        pytest.importorskip("mamba_ssm", reason="its examples need mamba_ssm", exc_type=ImportError)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_functions_and_classes_have_examples():
    public = [getattr(package, name) for package in (fla_bdlru.ops, fla_bdlru.layers) for name in package.__all__]
    public += [fla_bdlru.register_mixer, fla_bdlru.build_mixer, fla_bdlru.available_mixers, fla_bdlru.rewind_cache]
    public += [fla_bdlru.SpeculativeDecoding]
    for thing in public:
        if callable(thing):
            assert ">>>" in thing.__doc__, thing
            assert "assert" in thing.__doc__, thing
