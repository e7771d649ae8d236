"""All measurements on one GPU within a few minutes, in order of worth: ``python -m benchmarks.gpu``."""
