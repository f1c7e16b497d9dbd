"""Real launches under compute-sanitizer: no access outside a tensor, no race in shared memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SANITIZER = shutil.which("compute-sanitizer")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(SANITIZER is None, reason="needs compute-sanitizer from the CUDA toolkit"),
]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("operation", ["actgrad", "accumulate", "gated", "rms_norm", "rotary"])
def test_clean(operation: str, tool: str) -> None:
    tests = Path(__file__).with_name(f"test_{operation}.py")
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "86", "--target-processes", "all"]
    done = subprocess.run(
        [*map(str, command), sys.executable, "-m", "pytest", "-q", "-m", "not gpu", str(tests)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
