"""Timings of the ops."""

import importlib.util
import sys
import types

# mamba_ssm's Triton kernels, which Mamba2 runs, do without its CUDA extension; importing them does not
NAME = "selective_scan_cuda"
if importlib.util.find_spec("mamba_ssm") and NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
    sys.modules[NAME] = types.ModuleType(NAME)
