"""bench/streaming.py: what a measuring process does, and bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import streaming  # noqa: E402
from harness.streaming import child  # noqa: E402
from harness.streaming.checkpoint import write_checkpoint  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def test_both_ways_score_the_same(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "model", 64, 2, 50)
    stored = [tensor for file in (tmp_path / "model").glob("*.safetensors") for tensor in load_file(file).values()]
    assert weights == sum(tensor.nbytes for tensor in stored)
    job: dict[str, Any] = {"folder": str(tmp_path / "model"), "tokens": 64, "length": 8, "vocabulary": 50}
    job |= {"batch_tokens": 16, "path": "auto", "threads": torch.get_num_threads()}
    totals = []
    for stream, recompute in ((None, False), (None, True), (32, False)):
        out = tmp_path / f"{len(totals)}.npy"
        got = child.main(job | {"stream_tokens": stream, "recompute": recompute, "out": str(out)})
        assert got["seconds"] > 0 and got["peak_bytes"] >= got["bytes_before"] > 0
        assert got["fusion"]["fused"] == [0, 1]
        totals.append(np.load(out))
    assert np.array_equal(totals[0], totals[1]) and np.array_equal(totals[0], totals[2])
    assert totals[0].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "65"], "multiple of 64"),
        (["--blocks", "0"], "at least 1"),
        (["--tokens", "8"], "hold one sample"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert streaming.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
