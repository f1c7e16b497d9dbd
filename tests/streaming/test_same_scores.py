"""Streamed scores are those of the model in memory, whatever the family, the options and the size of a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from saved import save
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.models import load_model

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(20)
OPTIONS: dict[str, Any] = {"batch_tokens": 24, "progress": False}


def worst(got: cf.ScoreTable, expected: cf.ScoreTable) -> float:
    """Largest difference at any site, as a share of that site's largest total."""
    assert got.groups == expected.groups and got.ids == expected.ids and got.layout == expected.layout
    errors = []
    for site in expected.layout.sites:
        where = expected.layout.slice(site.module_name, site.layer_idx)
        one, other = got.totals[:, where], expected.totals[:, where]
        errors.append(np.abs(one - other).max() / np.abs(other).max())
    return float(max(errors))


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *((family, "auto") for family in (*families.LISTED, "granite")),
        *((family, "taps") for family in ("llama", "phi3", "gemma3", "olmo2", "opt_plain", "gpt2_conv1d_fused")),
        ("openai_gpt_lists", "taps"),
        ("gpt_neox_head_after_head", "taps"),
        ("ctrl_scales_in_place", "taps"),
        ("bert_transforms_before_the_head", "taps"),
        ("modernbert_decoder_is_the_head", "taps"),
    ],
)
def test_every_family(family: str, path: str, tmp_path: Path) -> None:
    """The operations are the same in the same order, so the bound, 1e-6 a site, is met with room: bits are equal."""
    model = save(tmp_path, family)
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, path=path, **OPTIONS)
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, path=path, stream_tokens=60, **OPTIONS)
    assert worst(streamed, memory) <= 1e-6
    assert np.array_equal(streamed.totals, memory.totals)
    assert np.array_equal(streamed.probability, memory.probability)
    assert streamed.metadata["fusion"] == memory.metadata["fusion"]
    for size in (1, 10**6):
        other = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, path=path, stream_tokens=size, **OPTIONS)
        assert np.array_equal(other.totals, streamed.totals), size


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_in_float64(family: str, tmp_path: Path) -> None:
    """float64 has 2⁻⁵³ a rounding; a few thousand of them in a chain of four layers stay below 1e-12."""
    save(tmp_path, family, torch.float64)
    model, _ = load_model(str(tmp_path), device="cpu")
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, stream_tokens=60, **OPTIONS)
    assert streamed.metadata["dtype"] == "float64"
    assert worst(streamed, memory) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum"},
        {"padding": "zero"},
        {"control": True},
        {"batch_size": 3},
        {"sites": ("mlp.act", "self_attn.k_proj")},
    ],
    ids=str,
)
def test_every_option(options: dict[str, Any], tmp_path: Path) -> None:
    model = save(tmp_path, "qwen3")
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **{**OPTIONS, **options})
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, stream_tokens=60, **{**OPTIONS, **options})
    assert np.array_equal(streamed.totals, memory.totals)
    differing = {key for key, value in streamed.metadata.items() if memory.metadata.get(key) != value}
    assert differing <= {"recomputed", "streamed", "model"}


def test_in_another_dtype_than_the_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    model, _ = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, dtype="bfloat16", stream_tokens=60, **OPTIONS)
    assert streamed.metadata["dtype"] == "bfloat16"
    assert np.array_equal(streamed.totals, memory.totals)


def test_a_model_of_one_layer(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**families._COMMON, "num_hidden_layers": 1})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    memory = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    streamed = cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, **OPTIONS)
    assert np.array_equal(streamed.totals, memory.totals)
