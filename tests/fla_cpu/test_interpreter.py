"""The replacements against FLA's own Triton kernels, which Triton's interpreter runs in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

SCRIPT = Path(__file__).with_name("interpreter_cases.py")
TOLERANCE = 1e-5
# fp16 inputs: the kernels round intermediate results to fp16, the replacements do not
HALF_TOLERANCE = 2e-3

# What the kernels do not do, by case: each of these has to stay true, or its line goes.
KNOWN_DIFFERENCES = {
    "fused_attnres": "Triton attnres requires CUDA tensors",
    "chunk_hgrn, through the initial state": "the kernel gives the initial state no gradient",
    "chunk_hgrn, through the final state": "the kernel ignores the final state's gradient",
    "fused_recurrent_rwkv6, through the final state": "the kernel ignores the final state's gradient",
    "fused_recurrent_rwkv6, packed, through the final state": "the kernel ignores the final state's gradient",
    "causal_conv1d, through the first column of the final state": "the kernel ignores that column's gradient",
    "causal_conv1d, packed, through the first column of the final state": "the kernel ignores that column's gradient",
}


def _cases():
    spec = importlib.util.spec_from_file_location("interpreter_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [name for name, *_ in module.cases()]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip(f"the interpreter of Triton {triton.__version__} does not run FLA's kernels")
    path = tmp_path_factory.mktemp("interpreter") / "results.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # without torch.compile, which needs a C++ compiler
    environment |= {"TORCHDYNAMO_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(SCRIPT.parents[2]), environment.get("PYTHONPATH")) if p)
    subprocess.run([sys.executable, str(SCRIPT), str(path)], env=environment, check=True, timeout=240)
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", _cases())
def test_replacement_agrees_with_the_kernel(results, name):
    result = results[name]
    if name in KNOWN_DIFFERENCES:
        assert not agrees(result), f"the kernel now does what it did not: {KNOWN_DIFFERENCES[name]}"
        if "failure" in result:
            assert KNOWN_DIFFERENCES[name] in result["failure"]
        return
    assert "failure" not in result, result
    assert agrees(result), result


def agrees(result):
    if "failure" in result or any(a != b for a, b in result["types"] + result["shapes"]):
        return False
    half = any("16" in a for a, _ in result["types"])
    errors = [e for e in result["outputs"] + result["gradients"] if e is not None]
    return all(not isinstance(e, str) and e <= (HALF_TOLERANCE if half else TOLERANCE) for e in errors)
