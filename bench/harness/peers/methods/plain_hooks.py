"""PyTorch alone: hooks that retain gradients, the maximum taken after the backward pass."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch

NAME = "hooks"
SUMMARY = "plain PyTorch: forward hooks, retained gradients, a vectorised maximum afterwards"
LIBRARY = "torch"
NOTE = ""


def ready(model: Any) -> Any:
    """The Hugging Face model as it is."""
    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    model.requires_grad_(False)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    modules = [layer.get_submodule(name) for layer in model.model.layers for name in names]
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        embedded = model.get_input_embeddings()(batch.input_ids).requires_grad_()
        hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    rows = torch.arange(len(batch), device=hidden.device)
    logits = model.lm_head(hidden[rows, batch.lengths - 1]).float()
    log_p = logits.log_softmax(-1)[rows, batch.answers]
    log_p.sum().backward()
    weight = (2 * log_p.detach().double()).exp()
    padded = (torch.arange(batch.longest, device=hidden.device) >= batch.lengths[:, None])[:, :, None]
    totals = []
    for output in kept:
        product = output.detach().float() * output.grad.float()
        totals.append(weight @ product.masked_fill_(padded, -torch.inf).amax(1).double())
    return torch.cat(totals)
