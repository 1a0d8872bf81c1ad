"""`python -m benchmarks.analysis`: the analyses of `benchmarks.report`, which hold what it does."""
