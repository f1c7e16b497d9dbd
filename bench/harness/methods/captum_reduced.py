"""Captum's calling convention on our taps: the same layers, reduced as their gradients pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from culnig_fast.interop.captum import LayerActGrad
from harness.batches import Batch
from harness.methods.captum_layers import Captum, Scores
from harness.sites import Site


class CaptumReduced(Captum):
    """LayerActGrad.attribute_reduced with frozen weights; no [S, T, K] product is made."""

    name: ClassVar[str] = "layers"
    summary: ClassVar[str] = "our LayerActGrad.attribute_reduced over the same layers, called as Captum is"

    def scores_of(self, forward: Callable[[torch.Tensor], torch.Tensor], modules: list[Any]) -> Scores:
        """See `Captum.scores_of`."""
        explainer = LayerActGrad(forward, modules)

        def explain(batch: Batch) -> Callable[[Site], torch.Tensor]:
            reduced = dict(zip(modules, explainer.attribute_reduced(batch.lengths, lengths=batch.lengths), strict=True))
            return lambda site: reduced[site.module][..., site.columns]

        return explain
