"""Continuous integration: a test that something is missing for fails it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
MISSING = "import pytest\n\n\ndef test_one():\n    pass\n\n\ndef test_browser():\n    pytest.skip('no Chromium: install it')\n"
MODULE = "import pytest\n\npytest.importorskip('no_such_package')\n"
GPU = "import pytest\n\n\ndef test_gpu():\n    pytest.skip('needs a CUDA device')\n"


@pytest.mark.parametrize("processes", ["0", "1"])
def test_what_is_missing_fails_in_ci_only(tmp_path, processes):
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "torch.py").write_text("def manual_seed(seed): pass")  # all that conftest needs of it here, at once
    (tmp_path / "test_gpu.py").write_text(GPU)
    (tmp_path / "test_missing.py").write_text(MISSING)
    (tmp_path / "test_module.py").write_text(MODULE)

    def run(*names, ci):
        environ = {**os.environ, "CI": ci}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", processes, *names]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100)
        return done.returncode, done.stdout

    code, said = run("test_missing.py", "test_module.py", ci="true")
    assert code == 1
    assert "test_browser was skipped: Skipped: no Chromium: install it" in said
    assert "test_module.py was skipped: Skipped: could not import 'no_such_package'" in said
    assert run("test_missing.py", "test_module.py", ci="")[0] == 0
    assert run("test_missing.py", "test_gpu.py", "-k", "one or gpu", ci="true")[0] == 0
