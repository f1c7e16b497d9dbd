"""Captum's gradient × activation over the same layers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from harness.batches import Batch
from harness.methods.base import NotAvailable, Plain, Session
from harness.passes import add_scores, frozen_model, gold_log_p, reduce_positions
from harness.sites import find_sites


class Captum(Plain):
    """LayerGradientXActivation with frozen weights; its [S, T, K] products are then reduced."""

    name: ClassVar[str] = "captum"
    summary: ClassVar[str] = "Captum's LayerGradientXActivation over the same layers, frozen weights"

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        try:
            captum = importlib.import_module("captum.attr")
        except ImportError as error:
            raise NotAvailable("captum is not installed (pip install captum)") from error
        sites = find_sites(model)
        modules = list(dict.fromkeys(site.module for site in sites))
        with frozen_model(model) as last_logits:
            seen: list[torch.Tensor] = []
            batches: list[Batch] = []

            def forward(embedded_ids: torch.Tensor) -> torch.Tensor:
                log_p = gold_log_p(last_logits(batches[0]), batches[0])
                seen.append(log_p.detach())
                return log_p

            explainer = captum.LayerGradientXActivation(forward, modules)
            totals = [
                torch.zeros(n_groups, s.columns.stop - s.columns.start, dtype=torch.float64, device=model.device)
                for s in sites
            ]

            def step(batch: Batch) -> None:
                batches[:] = [batch]
                seen.clear()
                # Captum wants an input of floats; token numbers are none, and the leaf is the embedding.
                products = dict(zip(modules, explainer.attribute(batch.lengths.float()), strict=True))
                weight = (2 * seen[0].double()).exp()
                for site, total in zip(sites, totals, strict=True):
                    product = products[site.module][..., site.columns]
                    add_scores(total, reduce_positions(product, batch), weight, batch)

            yield Session(step, lambda: torch.cat(totals, dim=1))
