"""Readers of checkpoints: configurations for `plan`, and the tensors that are streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.faults.readers import Reader


def _write_config(folder: Path) -> None:
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    (folder / "config.json").write_text(config.to_json_string())


def _read_config(folder: Path) -> Any:
    from culnig_fast.planning.plan import plan

    return plan(str(folder / "config.json"), memory=10**9, flops=1e12).to_dict()


def _write_shards(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    shards = {
        "model-00001-of-00002.safetensors": {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)},
        "model-00002-of-00002.safetensors": {"b.weight": torch.ones(2, 3, dtype=torch.bfloat16)},
    }
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    places = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": 72}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _read_shards(folder: Path) -> Any:
    import torch

    from culnig_fast.streaming.shards import Shards

    shards = Shards(folder)
    names = sorted(shards.entries)
    for name in names:
        shards.read_into(name, torch.empty(shards.entries[name].shape))
    shards.warm(names)
    return shards.fingerprint(names)


def model_readers() -> tuple[Reader, ...]:
    """Those of a model's own files."""
    return (
        Reader("model configuration", _write_config, _read_config, 0.02),
        Reader("streamed shards", _write_shards, _read_shards),
    )
