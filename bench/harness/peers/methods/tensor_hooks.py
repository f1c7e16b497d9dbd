"""PyTorch alone, as sparing as it gets: a hook on each activation takes the maximum as its gradient passes."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch

NAME = "tensor-hooks"
SUMMARY = "plain PyTorch at its best: tensor hooks that take the maximum inside the backward pass"
LIBRARY = "torch"
NOTE = ""


def ready(model: Any) -> Any:
    """The Hugging Face model as it is."""
    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    best: dict[Any, torch.Tensor] = {}
    padded = (torch.arange(batch.longest, device=batch.lengths.device) >= batch.lengths[:, None])[:, :, None]

    def watch(module: Any, args: Any, output: torch.Tensor) -> None:
        act = output.detach()

        def reduce(grad: torch.Tensor) -> None:
            best[module] = (act.float() * grad.float()).masked_fill_(padded, -torch.inf).amax(1)

        output.register_hook(reduce)

    model.requires_grad_(False)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    modules = [layer.get_submodule(name) for layer in model.model.layers for name in names]
    handles = [module.register_forward_hook(watch) for module in modules]
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
    return torch.cat([weight @ best[module].double() for module in modules])
