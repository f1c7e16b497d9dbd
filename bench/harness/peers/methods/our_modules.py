"""culnig_fast's ModuleAttributor, for any module."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch

NAME = "modules"
SUMMARY = "ours: cf.ModuleAttributor on module paths, for any model"
LIBRARY = "culnig_fast"
NOTE = ""


def ready(model: Any) -> Any:
    """The Hugging Face model as it is."""
    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    import culnig_fast as cf

    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    paths = [f"model.layers.{layer}.{name}" for layer in range(len(model.model.layers)) for name in names]
    rows = torch.arange(len(batch), device=batch.lengths.device)
    with cf.ModuleAttributor(model, paths) as attributor:
        hidden = model.model(batch.input_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[rows, batch.lengths - 1]).float()
        log_p = logits.log_softmax(-1)[rows, batch.answers]
        attributor.backward(log_p, weight=(2 * log_p.detach().double()).exp(), lengths=batch.lengths)
    return attributor.totals[0]
