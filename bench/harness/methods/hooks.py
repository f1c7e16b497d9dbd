"""The best that plain PyTorch gives without autograd functions of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from harness.batches import Batch
from harness.methods.base import Plain, Session
from harness.passes import add_scores, frozen_model, gold_log_p, reduce_positions
from harness.sites import find_sites


class Hooks(Plain):
    """Frozen weights, forward hooks that retain gradients, a vectorised maximum after the backward."""

    name: ClassVar[str] = "hooks"
    summary: ClassVar[str] = "plain PyTorch at its best: frozen weights, retained gradients, vectorised maximum"

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        sites = find_sites(model)
        outputs: dict[Any, torch.Tensor] = {}

        def keep(module: Any, args: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            outputs[module] = output

        with frozen_model(model) as last_logits, contextlib.ExitStack() as stack:
            for module in dict.fromkeys(site.module for site in sites):
                stack.callback(module.register_forward_hook(keep).remove)
            totals = [
                torch.zeros(n_groups, s.columns.stop - s.columns.start, dtype=torch.float64, device=model.device)
                for s in sites
            ]

            def step(batch: Batch) -> None:
                log_p = gold_log_p(last_logits(batch), batch)
                log_p.sum().backward()
                weight = (2 * log_p.detach().double()).exp()
                work = torch.float64 if model.dtype == torch.float64 else torch.float32
                for site, total in zip(sites, totals, strict=True):
                    output = outputs[site.module]
                    assert output.grad is not None
                    product = output.detach()[..., site.columns].to(work) * output.grad[..., site.columns].to(work)
                    add_scores(total, reduce_positions(product, batch), weight, batch)
                outputs.clear()

            yield Session(step, lambda: torch.cat(totals, dim=1))
