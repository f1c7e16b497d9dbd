"""culnig_fast under Captum's calling convention."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch

NAME = "layers"
SUMMARY = "ours: LayerActGrad.attribute_reduced, called as Captum is"
LIBRARY = "culnig_fast"
NOTE = ""


def ready(model: Any) -> Any:
    """The Hugging Face model as it is."""
    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    import culnig_fast as cf

    seen: list[torch.Tensor] = []
    rows = torch.arange(len(batch), device=batch.lengths.device)

    def log_p(input_ids: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[rows, batch.lengths - 1]).float()
        seen.append(logits.log_softmax(-1)[rows, batch.answers])
        return seen[-1]

    model.requires_grad_(False)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    modules = [layer.get_submodule(name) for layer in model.model.layers for name in names]
    reduced = cf.LayerActGrad(log_p, modules).attribute_reduced(batch.input_ids, lengths=batch.lengths)
    weight = (2 * seen[-1].detach().double()).exp()
    return torch.cat([weight @ one.double() for one in reduced])
