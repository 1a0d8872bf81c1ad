"""What commands print: no line about other libraries that nobody who runs a comparison can act upon."""

import logging
import sys

import pytest

import benchmarks


def test_how_fla_names_its_cache_is_not_told():
    """By transformers from 5.24 on, at the first call of any of FLA's models, in every process."""
    logger, told = logging.getLogger("transformers.utils.generic"), []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    try:
        logger.warning(f"{benchmarks.OLD_NAME}. Use `cache` instead.")
        logger.warning("another line")
    finally:
        logger.removeHandler(handler)
    assert told == ["another line"]


@pytest.mark.parametrize("module, package", [("jinja2", "jinja2"), ("yaml", "pyyaml")])
def test_a_package_that_is_missing_is_a_line_that_says_what_installs_it(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stop:
        benchmarks.run_command(lambda: __import__(module))
    assert str(stop.value) == f"Error: {module} is not installed: pip install {package}"
    with pytest.raises(ModuleNotFoundError):  # a fault of ours
        benchmarks.run_command(lambda: __import__("benchmarks.no_such"))
