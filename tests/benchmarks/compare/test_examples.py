"""The examples in the harness's docstrings run (those of tasks, readout and analysis are run beside their tests)."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["plan", "models", "settings"])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"benchmarks.compare.{name}"))
    assert result.failed == 0
    assert result.attempted > 0
