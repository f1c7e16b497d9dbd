"""The published program's way, written anew from its description (CULNIG, section 2)."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch

from harness.batches import Batch
from harness.methods.base import Plain, Session
from harness.sites import find_sites


class Authors(Plain):
    """Every weight gets a gradient, every position logits; Python adds the scores neuron by neuron."""

    name: ClassVar[str] = "authors"
    summary: ClassVar[str] = "the published program's way: weight gradients, all logits, a Python loop over neurons"
    padding: ClassVar[Literal["exclude", "zero"]] = "zero"
    most_samples: ClassVar[int | None] = 16
    most_values: ClassVar[int | None] = 4_000_000  # about four seconds of Python
    most_rounds: ClassVar[int | None] = 2

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        sites = find_sites(model)
        before = [parameter.requires_grad for parameter in model.parameters()]
        model.requires_grad_(True)
        outputs: dict[Any, torch.Tensor] = {}

        def keep(module: Any, args: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            outputs[module] = output

        handles = [module.register_forward_hook(keep) for module in dict.fromkeys(site.module for site in sites)]
        sums: dict[int, dict[tuple[str, int, int], float]] = {g: defaultdict(float) for g in range(n_groups)}

        def step(batch: Batch) -> None:
            real = torch.arange(batch.longest, device=batch.input_ids.device) < batch.lengths[:, None]
            logits = model(input_ids=batch.input_ids, attention_mask=real.long(), use_cache=False).logits
            last = logits[torch.arange(len(batch), device=logits.device), batch.lengths - 1]
            p = torch.softmax(last.float(), dim=-1).gather(1, batch.answers[:, None])[:, 0]
            p.sum().backward()
            weights, groups = p.tolist(), batch.groups.tolist()
            for site in sites:
                output = outputs[site.module]
                assert output.grad is not None
                product = output.detach()[..., site.columns].float() * output.grad[..., site.columns].float()
                product = product * real[:, :, None]
                values = product.amax(1).tolist()
                for weight, group, row in zip(weights, groups, values, strict=True):
                    sums_of_group = sums[group]
                    for neuron, value in enumerate(row):
                        sums_of_group[site.name, site.layer, neuron] += weight * value
            outputs.clear()
            model.zero_grad(set_to_none=True)

        def totals() -> torch.Tensor:
            keys = [
                (site.name, site.layer, neuron)
                for site in sites
                for neuron in range(site.columns.stop - site.columns.start)
            ]
            return torch.tensor([[sums[group][key] for key in keys] for group in range(n_groups)], dtype=torch.float64)

        try:
            yield Session(step, totals)
        finally:
            for handle in handles:
                handle.remove()
            model.zero_grad(set_to_none=True)
            for parameter, flag in zip(model.parameters(), before, strict=True):
                parameter.requires_grad_(flag)
