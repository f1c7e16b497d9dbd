"""How often a run would wait for Triton to compile: once a kernel, however many samples and tokens a batch has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_kernel_is_compiled_once_for_batches_of_any_size() -> None:
    """Left to itself Triton compiles anew for numbers that are a multiple of 16: up to four times a kernel here."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("count_variants.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    assert len(counts) == 8
    assert set(counts.values()) == {1}, counts
