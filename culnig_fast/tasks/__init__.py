"""Benchmarks: one file each, turned into questions."""
