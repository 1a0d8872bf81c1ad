import pytest

from benchmarks.records.naming import SUFFIXES, parse_name
from fla_bdlru.layers import BDLRU, HLRU
from fla_bdlru.ops import GATE_NORMS


def test_names_are_taken_apart():
    ours = parse_name("hlru-m12-silu-conv")
    assert (ours.family, ours.size, ours.norm) == ("hlru", 12, "silu")
    assert ours.label == "H-LRU, m = 12, conv"
    assert not ours.plain


@pytest.mark.parametrize("name, plain", [("bdlru-m4", True), ("bdlru-m4-softmax", True), ("bdlru-m4-memory", False)])
def test_plain_is_softmax_and_nothing_added(name, plain):
    assert parse_name(name).plain is plain
    assert parse_name(name).norm == "softmax"


@pytest.mark.parametrize(
    "name", ["gated_deltanet-neg", "bdlru", "bdlru-m0", "bdlru-m4-", "bdlru-m4-conv-conv", "hlru-m2-relu-none"]
)
def test_other_names_are_none(name):
    assert parse_name(name) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cls", [BDLRU, HLRU])
def test_a_suffix_is_an_argument_that_changes_the_layer(cls, suffix):
    plain, other = cls(hidden_size=16), cls(hidden_size=16, **SUFFIXES[suffix])
    (field, value), default = *SUFFIXES[suffix].items(), getattr(plain, next(iter(SUFFIXES[suffix])))
    assert getattr(other, field) == value
    assert (default == value) == (suffix == "softmax")


@pytest.mark.parametrize(
    "name, only",
    [("bdlru-m4-softmax", "bdlru-m4"), ("hlru-m2-conv-silu", "hlru-m2-silu-conv"), ("bdlru-m5-square-start",) * 2],
)
def test_a_model_has_one_name(name, only):
    assert parse_name(name).name == only
    assert parse_name(only) == parse_name(name)


def test_every_gate_norm_is_a_suffix():
    assert SUFFIXES.keys() >= set(GATE_NORMS)
