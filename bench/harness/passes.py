"""The pass that every frozen method shares: leaf at the embedding, logits of the last position, log P."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from harness.batches import Batch


@contextlib.contextmanager
def frozen_model(model: Any) -> Iterator[LastLogits]:
    """Freeze the weights and let gradients end at the embedding's output; both undone on exit."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    logits = LastLogits(model)
    handles = [
        model.get_input_embeddings().register_forward_hook(_make_leaf),
        model.get_output_embeddings().register_forward_pre_hook(logits.gather),
    ]
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


class LastLogits:
    """Runs the model and its head at each sample's last real position only."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._last: torch.Tensor | None = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """[S, vocabulary] logits in float32 (float64 in a float64 model)."""
        self._last = batch.lengths - 1
        try:
            logits: torch.Tensor = self.model(input_ids=batch.input_ids, use_cache=False).logits[:, -1]
        finally:
            self._last = None
        return logits if logits.dtype == torch.float64 else logits.float()

    def gather(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The hook before the output embedding."""
        hidden = args[0]
        if self._last is None:
            return args
        return (hidden.gather(1, self._last[:, None, None].expand(-1, 1, hidden.shape[-1])), *args[1:])


def gold_log_p(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[S] log-probability of each sample's gold token."""
    return torch.log_softmax(logits, dim=-1).gather(1, batch.answers[:, None])[:, 0]


def reduce_positions(product: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[S, K] maximum over the real positions of a product [S, T, K]; pads are left out."""
    padded = torch.arange(product.shape[1], device=product.device) >= batch.lengths[:, None]
    return product.masked_fill(padded[:, :, None], -torch.inf).amax(1)


def add_scores(totals: torch.Tensor, scores: torch.Tensor, weight: torch.Tensor, batch: Batch) -> None:
    """totals [G, K] float64 += weight · scores [S, K] of each sample's group, in place."""
    totals.index_add_(0, batch.groups, scores.double() * weight.double()[:, None])


def _make_leaf(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_(True)
