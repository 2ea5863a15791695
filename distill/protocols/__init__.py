"""The field's benchmarks by their published protocols, on any frozen model."""
