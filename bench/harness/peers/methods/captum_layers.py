"""Captum's LayerGradientXActivation over all layers at once; its products are reduced by the user."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch

NAME = "captum"
SUMMARY = "Captum's LayerGradientXActivation over the modules, its products reduced by the user"
LIBRARY = "captum"
NOTE = ""


def ready(model: Any) -> Any:
    """The Hugging Face model as it is, where Captum can be imported."""
    import captum.attr  # noqa: F401

    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    from captum.attr import LayerGradientXActivation

    seen: list[torch.Tensor] = []
    rows = torch.arange(len(batch), device=batch.lengths.device)

    def log_p(embedded: torch.Tensor) -> torch.Tensor:
        hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[rows, batch.lengths - 1]).float()
        seen.append(logits.log_softmax(-1)[rows, batch.answers])
        return seen[-1]

    model.requires_grad_(False)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    modules = [layer.get_submodule(name) for layer in model.model.layers for name in names]
    embedded = model.get_input_embeddings()(batch.input_ids)
    products = LayerGradientXActivation(log_p, modules).attribute(embedded)
    weight = (2 * seen[-1].detach().double()).exp()
    padded = (torch.arange(batch.longest, device=rows.device) >= batch.lengths[:, None])[:, :, None]
    return torch.cat([weight @ x.detach().masked_fill(padded, -torch.inf).amax(1).double() for x in products])
