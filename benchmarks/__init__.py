"""Timings of the ops, synthetic tasks and the comparison of mixers."""
