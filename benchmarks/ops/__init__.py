"""Timings of the ops."""
