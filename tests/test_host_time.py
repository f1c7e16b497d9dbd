"""bench/host_time.py: what a layer asks of the host, counted; its times mean nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "host_time.py"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Apart from this process, whose Triton may be an interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCH), "--device", "cpu", "--repeats", "1", "--depths", "2", "4", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_launches_of_a_layer(tmp_path: Path) -> None:
    """Five scores and two additions on taps. Fused: two norms, q|k turned and the gate, each way, and two additions."""
    file = tmp_path / "out.json"
    done = bench("--shapes", "llama-3.1-8b", "gemma-3-27b", "--methods", "kernels", "fused", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    rows = {(row["shape"], row["method"]): row for row in document["rows"]}
    launches = {key: row["launches_per_layer"] for key, row in rows.items()}
    assert launches == {
        ("llama-3.1-8b", "bare"): 0, ("llama-3.1-8b", "kernels"): 7, ("llama-3.1-8b", "fused"): 10,
        ("gemma-3-27b", "bare"): 0, ("gemma-3-27b", "kernels"): 7, ("gemma-3-27b", "fused"): 14,
    }  # fmt: skip
    assert rows["gemma-3-27b", "bare"]["over_bare"] == 1
    assert not document["launched"] and document["environment"]["torch"]
    assert "Triton launches" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "4", "2"], "the smaller one first"),
        (["--shapes", "gpt-9"], "unknown 'gpt-9'; choose from micro"),
        (["--methods", "magic"], "unknown 'magic'; choose from bare"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and "Traceback" not in done.stderr
