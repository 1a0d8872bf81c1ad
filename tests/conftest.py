import importlib.util
import os
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
LONGEST = ("test_triton.py", "test_distributed.py", "test_compare.py", "test_compile.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


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
