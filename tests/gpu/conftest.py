"""What needs a CUDA device: `make test-gpu`, or `pytest -m gpu`. Elsewhere these tests are skipped.

`FLA_BDLRU_DEVICE=emulated` runs the compiled kernels on this machine instead (tests/emulator), all but what is about devices,
streams, graphs and clocks; `FLA_BDLRU_REHEARSE=1` runs the CPU path, to see that the tests themselves are right.
"""

import os

import pytest
import torch

REHEARSE = os.environ.get("FLA_BDLRU_REHEARSE") == "1"
EMULATED = os.environ.get("FLA_BDLRU_DEVICE") == "emulated"


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(1200))
            if not (REHEARSE or EMULATED or torch.cuda.is_available()):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module", autouse=EMULATED)
def driver():
    """Launches run here, on tensors of the CPU; a kernel that shuffles has moved rows across lanes."""
    from emulator import emulated

    with emulated() as driver:
        yield driver
    assert driver.totals
    assert not any(counts["shuffle"] for counts in driver.totals.values()), driver.totals


@pytest.fixture
def device():
    return "cpu" if REHEARSE or EMULATED else "cuda"


@pytest.fixture
def cuda():
    """For what has no counterpart on a CPU."""
    if EMULATED:
        pytest.skip("is about devices, streams, graphs or a clock, of which the emulator has none")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"
