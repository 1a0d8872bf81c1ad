"""The examples in the docstrings of benchmarks run."""

import doctest
import importlib

import pytest
from fresh import ROOT

WITH_EXAMPLES = [path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py") if ">>> " in path.read_text()]


@pytest.mark.parametrize("name", sorted(".".join(path.with_suffix("").parts) for path in WITH_EXAMPLES))
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert result.attempted
    assert not result.failed
