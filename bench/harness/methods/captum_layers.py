"""Captum's gradient × activation over the same layers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch

from harness.batches import Batch
from harness.methods.base import NotAvailable, Plain, Session
from harness.passes import add_scores, frozen_model, gold_log_p, reduce_positions
from harness.sites import Site, find_sites

Scores = Callable[[Batch], Callable[[Site], torch.Tensor]]


class Captum(Plain):
    """LayerGradientXActivation with frozen weights; its [S, T, K] products are then reduced."""

    name: ClassVar[str] = "captum"
    summary: ClassVar[str] = "Captum's LayerGradientXActivation over the same layers, frozen weights"

    def scores_of(self, forward: Callable[[torch.Tensor], torch.Tensor], modules: list[Any]) -> Scores:
        """How a batch is explained: the scores [S, K] of a site, of the modules' own."""
        try:
            captum = importlib.import_module("captum.attr")
        except ImportError as error:
            raise NotAvailable("captum is not installed (pip install captum)") from error
        explainer = captum.LayerGradientXActivation(forward, modules)

        def explain(batch: Batch) -> Callable[[Site], torch.Tensor]:
            # Captum wants an input of floats; token numbers are none, and the leaf is the embedding.
            products = dict(zip(modules, explainer.attribute(batch.lengths.float()), strict=True))
            return lambda site: reduce_positions(products[site.module][..., site.columns], batch)

        return explain

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

            explain = self.scores_of(forward, modules)
            totals = [
                torch.zeros(n_groups, s.columns.stop - s.columns.start, dtype=torch.float64, device=model.device)
                for s in sites
            ]

            def step(batch: Batch) -> None:
                batches[:] = [batch]
                seen.clear()
                scores = explain(batch)
                weight = (2 * seen[0].double()).exp()
                for site, total in zip(sites, totals, strict=True):
                    add_scores(total, scores(site), weight, batch)

            yield Session(step, lambda: torch.cat(totals, dim=1))
