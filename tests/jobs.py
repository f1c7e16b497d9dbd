"""Jobs of several processes on this machine, started as torchrun starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(arguments: list[str], size: int) -> list[subprocess.Popen[str]]:
    """`python ARGUMENTS` in `size` processes of one job."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **variables(rank, size, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def reports(arguments: list[str], size: int, seconds: float = 240) -> list[Any]:
    """What the processes of a job print last, as JSON, in rank order."""
    running = started(arguments, size)
    printed = [process.communicate(timeout=seconds) for process in running]
    lines = [output.splitlines() for output, _ in printed]
    if not all(lines):
        raise AssertionError("\n".join(errors for _, errors in printed))
    return [json.loads(line[-1]) for line in lines]
