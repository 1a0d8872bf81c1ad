"""Timings of the ops, synthetic tasks and the comparison of mixers."""

import warnings

# FLA says on import that there is no GPU: not for commands' output, nor for that of worker processes
warnings.filterwarnings("ignore", message="Triton is not supported on current platform")
