"""`python -m benchmarks.analysis` is the command; `benchmarks.report` holds what it does."""
