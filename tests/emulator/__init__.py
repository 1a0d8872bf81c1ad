"""Runs the kernels that Triton compiles for a GPU on a machine without one."""

from emulator.driver import Driver, EmulatorError, emulated
from emulator.ptx import Kernel, Refused

__all__ = ["Driver", "EmulatorError", "Kernel", "Refused", "emulated"]
