"""Runs the kernels that Triton compiles for a GPU on a machine without one."""

from emulator.driver import COMPILED, Driver, EmulatorError, Program, emulated
from emulator.ptx import Kernel, Refused

__all__ = ["COMPILED", "Driver", "EmulatorError", "Kernel", "Program", "Refused", "emulated"]
