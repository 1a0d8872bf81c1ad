"""Runs the kernels that Triton compiles for a GPU on a machine without one."""

from emulator.driver import PTX, Driver, EmulatorError, Program, emulated
from emulator.ptx import Kernel, Refused

__all__ = ["PTX", "Driver", "EmulatorError", "Kernel", "Program", "Refused", "emulated"]
