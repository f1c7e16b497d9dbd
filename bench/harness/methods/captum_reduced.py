"""Captum's calling convention on our taps: the same layers, reduced as their gradients pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from culnig_fast.interop.captum import LayerActGrad
from harness.batches import Batch
from harness.methods.base import Plain, Session
from harness.passes import add_scores, frozen_model, gold_log_p
from harness.sites import find_sites


class CaptumReduced(Plain):
    """LayerActGrad.attribute_reduced with frozen weights; no [S, T, K] product is made."""

    name: ClassVar[str] = "layers"
    summary: ClassVar[str] = "our LayerActGrad.attribute_reduced over the same layers, called as Captum is"

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        sites = find_sites(model)
        modules = list(dict.fromkeys(site.module for site in sites))
        with frozen_model(model) as last_logits:
            seen: list[torch.Tensor] = []
            batches: list[Batch] = []

            def forward(lengths: torch.Tensor) -> torch.Tensor:
                log_p = gold_log_p(last_logits(batches[0]), batches[0])
                seen.append(log_p.detach())
                return log_p

            explainer = LayerActGrad(forward, modules)
            totals = [
                torch.zeros(n_groups, s.columns.stop - s.columns.start, dtype=torch.float64, device=model.device)
                for s in sites
            ]

            def step(batch: Batch) -> None:
                batches[:] = [batch]
                seen.clear()
                reduced = explainer.attribute_reduced(batch.lengths, lengths=batch.lengths)
                scores = dict(zip(modules, reduced, strict=True))
                weight = (2 * seen[0].double()).exp()
                for site, total in zip(sites, totals, strict=True):
                    add_scores(total, scores[site.module][..., site.columns], weight, batch)

            yield Session(step, lambda: torch.cat(totals, dim=1))
