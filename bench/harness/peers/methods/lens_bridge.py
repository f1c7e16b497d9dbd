"""TransformerLens: a TransformerBridge around the same model, forward and backward hooks by name."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch
from harness.peers.sharing import with_shared_weights

NAME = "transformer-lens"
SUMMARY = "TransformerLens: a TransformerBridge around the same weights, hooks that reduce in the backward pass"
LIBRARY = "transformer_lens"
NOTE = "the bridge computes attention itself and writes out every head's pattern"


def ready(model: Any) -> Any:
    """The bridge; it wants some tokenizer, and would look for one by name."""
    from transformer_lens.model_bridge import TransformerBridge

    from harness.streaming.checkpoint import word_tokenizer

    twin = with_shared_weights(model)
    twin.config.architectures = [type(model).__name__]  # as a checkpoint's configuration says
    return TransformerBridge.boot_transformers(
        "local", hf_model=twin, tokenizer=word_tokenizer(16), device=model.device, dtype=model.dtype
    )


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    acts: dict[str, torch.Tensor] = {}
    best: dict[str, torch.Tensor] = {}
    padded = (torch.arange(batch.longest, device=batch.lengths.device) >= batch.lengths[:, None])[:, :, None]

    def keep(act: torch.Tensor, hook: Any) -> None:
        acts[hook.name] = act.detach()

    def reduce(grad: torch.Tensor, hook: Any) -> None:
        product = (acts.pop(hook.name).float() * grad.float()).flatten(2)
        best[hook.name] = product.masked_fill_(padded, -torch.inf).amax(1)

    model.requires_grad_(False)
    parts = ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.in")
    names = [f"blocks.{layer}.{part}.hook_out" for layer in range(model.cfg.n_layers) for part in parts]
    rows = torch.arange(len(batch), device=padded.device)
    last, place = (batch.lengths - 1).unique(return_inverse=True)
    embedded = model.embed(batch.input_ids).requires_grad_()
    with model.hooks(fwd_hooks=[(name, keep) for name in names], bwd_hooks=[(name, reduce) for name in names]):
        logits = model(embedded, logits_to_keep=last, use_cache=False)[rows, place].float()
        log_p = logits.log_softmax(-1)[rows, batch.answers]
        log_p.sum().backward()
    weight = (2 * log_p.detach().double()).exp()
    return torch.cat([weight @ best[name].double() for name in names])
