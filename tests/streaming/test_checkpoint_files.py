"""Checkpoints as they come: sharded, tied, wrapped under other names; and broken ones, each refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import save
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.streaming.shards import INDEX, SINGLE, Shards

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(8)


def stream(folder: Path, **options: Any) -> cf.ScoreTable:
    return cf.attribute_streamed(folder, TOKENIZER, QUESTIONS, progress=False, **options)


def renamed(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Rewrite the checkpoint with other names; None leaves a tensor out."""
    tensors = load_file(folder / SINGLE)
    save_file({new: t for name, t in tensors.items() if (new := rename(name)) is not None}, folder / SINGLE)


def test_tensors_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).to(torch.bfloat16),
        "c": torch.randn(2, 2, 2).half(),
        "d": torch.randn(4, 1).double(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / SINGLE)
    shards = Shards(tmp_path)
    shards.warm(list(tensors))
    for name, expected in tensors.items():
        for dtype in (expected.dtype, torch.float32):
            got = torch.empty(expected.shape, dtype=dtype)
            shards.read_into(name, got)
            assert torch.equal(got, expected.to(dtype)), name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_multimodal"])
def test_shards(family: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = save(whole, family)
    model.save_pretrained(parts, max_shard_size="20KB")
    assert (parts / INDEX).exists() and len(list(parts.glob("*.safetensors"))) > 3
    assert np.array_equal(stream(parts).totals, stream(whole).totals)


@pytest.mark.parametrize(
    ("family", "rename"),
    [
        ("llama", lambda name: name.removeprefix("model.")),
        ("llama", lambda name: f"language_model.{name}"),
        ("gemma3_multimodal", lambda name: name.replace("language_model.model.", "model.language_model.")),
        ("gemma3_multimodal", lambda name: None if "vision" in name or "projector" in name else name),
    ],
    ids=["no wrapper", "one more wrapper", "wrappers the other way round", "without the vision tower"],
)
def test_names_that_differ_in_wrappers_only(family: str, rename: Callable[[str], str | None], tmp_path: Path) -> None:
    model = save(tmp_path, family)
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    renamed(tmp_path, rename)
    assert np.array_equal(stream(tmp_path).totals, memory.totals)


def _change(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / SINGLE)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / SINGLE)


def _lacks_a_tensor(folder: Path) -> None:
    renamed(folder, lambda name: None if name == "model.layers.2.mlp.up_proj.weight" else name)


def _two_fit(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    weight = tensors.pop("model.norm.weight")
    save_file(tensors | {"norm.weight": weight, "language_model.norm.weight": weight.clone()}, folder / SINGLE)


def _other_shape(folder: Path) -> None:
    _change(folder, "model.layers.1.self_attn.q_proj.weight", lambda t: t[:-1])


def _integers(folder: Path) -> None:
    _change(folder, "model.layers.1.mlp.up_proj.weight", lambda t: t.to(torch.int8))


def _cut_off(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])


def _huge_header(folder: Path) -> None:
    (folder / SINGLE).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def _pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def _index(folder: Path, index: Any) -> None:
    (folder / SINGLE).rename(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


def _shard_missing(folder: Path) -> None:
    _index(folder, {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})


def _shard_elsewhere(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder.parent / "elsewhere.safetensors")
    _index(folder, {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}})


def _index_lies(folder: Path) -> None:
    _index(folder, {"weight_map": {"no such tensor": "one.safetensors"}})


def _no_map(folder: Path) -> None:
    _index(folder, ["one.safetensors"])


def _quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lacks_a_tensor, "no tensor for model.layers.2.mlp.up_proj.weight"),
        (_two_fit, "language_model.norm.weight and norm.weight|norm.weight and language_model.norm.weight"),
        (_other_shape, r"model.layers.1.self_attn.q_proj.weight .* is \[31, 32\], but .* is \[32, 32\]"),
        (_integers, "up_proj.weight .* is stored as I8"),
        (_cut_off, "whole safetensors"),
        (_huge_header, "whole safetensors"),
        (_pickle_only, "safetensors checkpoints only"),
        (_shard_missing, "two.safetensors"),
        (_shard_elsewhere, "no file of the folder"),
        (_index_lies, "no such tensor, which no shard holds"),
        (_no_map, "no weight_map"),
        (_quantised, "quantised"),
        (_no_config, "cannot build the model"),
    ],
)
def test_what_cannot_be_streamed_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, "llama")
    damage(folder)
    with pytest.raises(cf.CulnigError, match=message) as raised:
        stream(folder)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_vanishes_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    shards = Shards(tmp_path)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:-100])
    with pytest.raises(cf.CulnigError, match="ends early"):
        for name, entry in shards.entries.items():
            shards.read_into(name, torch.empty(entry.shape))
    (tmp_path / SINGLE).unlink()
    with pytest.raises(cf.CulnigError, match="still there"):
        shards.read_into("model.norm.weight", torch.empty(32))


@pytest.mark.parametrize("family", ["llama4_every_token_at_every_expert", "lfm2_own_width"])
def test_what_is_refused_in_memory_is_refused_here(family: str, tmp_path: Path) -> None:
    import families

    families.build(family).save_pretrained(tmp_path)
    with pytest.raises(cf.CulnigError):
        stream(tmp_path)


def test_unknown_options(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    for options, word in (
        ({"dtype": "int8"}, "dtype"),
        ({"device": "abacus"}, "device"),
        ({"reduction": "median"}, "reduction"),
        ({"path": "magic"}, "path"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            stream(tmp_path, **options)
