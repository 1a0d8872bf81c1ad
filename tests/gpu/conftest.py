"""What needs a CUDA device: `make test-gpu`, or `pytest -m gpu`. Elsewhere these tests are skipped.

`FLA_BDLRU_REHEARSE=1` runs them on the CPU path, to see that they themselves are right.
"""

import os

import pytest
import torch

REHEARSE = os.environ.get("FLA_BDLRU_REHEARSE") == "1"


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(1200))
            if not (REHEARSE or torch.cuda.is_available()):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device():
    return "cpu" if REHEARSE else "cuda"


@pytest.fixture
def cuda():
    """For what has no counterpart on a CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"
