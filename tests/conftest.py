import importlib.util
import os
import re
import sys
import types

import pytest
import torch

# mamba_ssm imports its CUDA extension, whatever will run; without one its Python part is what the tests use
if importlib.util.find_spec("selective_scan_cuda") is None:
    sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")

# a test decides itself which backend runs; what the shell has set must not
os.environ.pop("FLA_BDLRU_BACKEND", None)
os.environ.pop("FLA_BDLRU_CPU_BACKEND", None)
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# minutes each: they start first, so that workers side by side end together
LONGEST = ("test_triton.py", "test_distributed.py", "test_compare.py", "test_compile.py", "test_parallel.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


# what importorskip and our own reasons say of a package or program that is not there
MISSING = re.compile(r"could not import|is not installed|no Chromium|needs (mamba_ssm|opt_einsum)")


def pytest_sessionfinish(session):
    """In continuous integration everything is installed: a test that is skipped for want of something is an error."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", ()) if MISSING.search(str(report.longrepr))]
    for report in skipped:
        reporter.write_line(f"\nERROR in CI, where nothing may be missing: {report.nodeid} was skipped: {report.longrepr[-1]}")
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_empty(monkeypatch):
    """Fills what `torch.empty` and its kin return with NaN: reading what nothing wrote shows."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poisoned(*args, _original=original, **kwargs):
            x = _original(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() and not x.is_meta else x

        monkeypatch.setattr(torch, name, poisoned)
    new_empty = torch.Tensor.new_empty

    def poisoned_new(self, *args, **kwargs):
        x = new_empty(self, *args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() and not x.is_meta else x

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned_new)
