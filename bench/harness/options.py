"""What the benchmarks' command lines share: devices and numbers, each refused in one sentence."""

from __future__ import annotations

import argparse

import torch

from culnig_fast.errors import CulnigError


def chosen_device(name: str | None) -> torch.device:
    """The device that is named, else CUDA where there is one.

    Raises:
        CulnigError: it is no device, or not here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise CulnigError(f"--device {name!r} is no device; give cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise CulnigError(f"--device {name} is not supported here; give cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CulnigError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def check_numbers(options: argparse.Namespace, tokens: int) -> None:
    """Refuse repeats, threads and sizes of batches that make no sense.

    Raises:
        CulnigError: naming the option.
    """
    for name, value in (("--repeats", options.repeats), ("--tokens", tokens), ("--length", options.length)):
        if value < 1:
            raise CulnigError(f"{name} is {value}; give at least 1")
    if options.threads is not None and options.threads < 1:
        raise CulnigError(f"--threads is {options.threads}; give at least 1")
    if tokens < options.length:
        raise CulnigError(
            f"--tokens {tokens} holds no sample of --length {options.length}; raise one or lower the other"
        )
