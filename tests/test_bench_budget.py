"""How many tokens a benchmark's batch holds where nobody says: as many as the bare pass has room for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from harness.budget import default_tokens

CUDA, GIB = torch.device("cuda", 0), 2**30


@pytest.mark.parametrize(
    ("gib", "shapes", "tokens"),
    [
        (139, ["llama-3.1-8b"], 16384),  # 16 GB and 16,384 × 4.8 MB
        (139, ["gemma-3-27b"], 4096),  # 54 GB and 4,096 × 17 MB
        (139, ["llama-3.1-8b", "gemma-3-27b"], 4096),
        (80, ["llama-3.1-8b"], 8192),
        (24, ["qwen3-0.6b"], 8192),
        (16, ["llama-3.1-8b"], 128),  # does not fit; the model's own message says so
    ],
)
def test_on_a_gpu(gib: int, shapes: list[str], tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=gib * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert default_tokens(shapes, CUDA, torch.bfloat16, 128) == tokens


def test_on_a_cpu() -> None:
    assert default_tokens(["tiny"], torch.device("cpu"), torch.float32, 128) == 2048
