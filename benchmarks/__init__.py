"""maskloss beside its peers: `python -m benchmarks.run`, `benchmarks.linear` and `benchmarks.gpu`."""
