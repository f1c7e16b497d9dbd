"""Whole numbers for launches, in plain Python: Triton's own, which also run inside kernels, take microseconds each."""

from __future__ import annotations


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; neither is negative and b is not 0."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is not below n, which is at least 1."""
    return 1 << (n - 1).bit_length()
