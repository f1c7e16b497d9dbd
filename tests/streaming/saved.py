"""Tiny checkpoints on disk, deeper than the families' own models, so that there are layers between first and last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import torch
import transformers
from wordlevel import make_tokenizer

LAYERS = 4


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Save a model of four layers to `folder`, with the tests' tokenizer; returns it."""
    config = {**families.LISTED, **families.UNLISTED}[family]()
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = LAYERS
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[i % 2] for i in range(LAYERS)]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return model
