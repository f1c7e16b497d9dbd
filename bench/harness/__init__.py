"""What the benchmarks share: shapes, batches, checks, measurements. Import it with `bench/` on the path."""
