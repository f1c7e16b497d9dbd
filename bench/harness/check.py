"""Refuses to time what it has not just checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.batches import Batch, make_batch
from harness.methods.base import Method
from harness.passes import frozen_model, gold_log_p
from harness.shapes import Shape, build
from harness.sites import Site, find_sites

MOST_LAYERS = 6
"""Layers of the model that is checked: a float64 copy of a whole large one would not fit. Six hold both of
Gemma 3's kinds of layer."""
FACTOR = 2.0
"""A method may err by this multiple of plain PyTorch's error at its dtype, sample by sample and unpadded…"""
FLOOR = 1e-5
"""…or by this share of the site's largest score, whichever is more."""
_SAMPLES, _LENGTH = 4, 24


@dataclass(frozen=True)
class Verdict:
    """Outcome of one method's check; errors are shares of the site's largest score in that sample.

    Attributes:
        passed: whether the method may be timed.
        worst_site: the site with the largest excess, as name.
        max_error, rms_error: of that site, against float64.
        max_allowed, rms_allowed: what they may be.
        layers: depth of the model checked.
    """

    passed: bool
    worst_site: str
    max_error: float
    rms_error: float
    max_allowed: float
    rms_allowed: float
    layers: int

    def describe(self) -> str:
        """One sentence."""
        return (
            f"scores of {self.worst_site} are off by up to {self.max_error:.1e}, {self.rms_error:.1e} RMS; "
            f"{self.max_allowed:.1e} and {self.rms_allowed:.1e} are allowed"
        )


class Checker:
    """Holds methods to a float64 run of the same weights, one sample at a time and unpadded.

    Args:
        shape, device, dtype: of the model.
        summed: hold them to the sum over the samples, where a method gives no more.

    Raises:
        CulnigError: the model does not fit.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, *, summed: bool = False) -> None:
        self.model = build(shape, device, dtype, layers=MOST_LAYERS)
        self.sites = find_sites(self.model)
        vocabulary = self.model.config.vocab_size
        self.batch = make_batch(_SAMPLES, _LENGTH, vocabulary, device, shortest=3, n_groups=1 if summed else _SAMPLES)
        # One group a sample, so that no error hides in a sum.
        self.batch.groups.copy_(torch.arange(_SAMPLES) % self.batch.n_groups)
        self.truth = self._plainly(copy.deepcopy(self.model).double())
        self.plain = _errors(self._plainly(self.model), self.truth, self.sites)

    def _plainly(self, model: Any) -> torch.Tensor:
        """float64 [groups, neurons], sample after sample."""
        scores = sample_scores(model, self.batch)
        return scores if self.batch.n_groups > 1 else scores.sum(0, keepdim=True)

    def check(self, method: Method) -> Verdict | None:
        """Run one method on the sample; None for one that scores nothing. Its exceptions pass through."""
        with method.open(self.model, self.batch.n_groups) as session:
            session.step(self.batch)
            if session.totals is None:
                return None
            totals = session.totals().detach()
        truth = self.truth
        if method.padding == "zero":
            padded = (self.batch.lengths < self.batch.longest)[:, None]
            truth = torch.where(padded, truth.clamp(min=0.0), truth)
        errors = _errors(totals.to(truth.device), truth, self.sites)
        allowed = {
            name: (max(FACTOR * largest, FLOOR), max(FACTOR * rms, FLOOR))
            for name, (largest, rms) in self.plain.items()
        }
        excess = {name: max(e / a for e, a in zip(errors[name], allowed[name], strict=True)) for name in errors}
        worst = max(excess, key=lambda name: float("inf") if excess[name] != excess[name] else excess[name])
        return Verdict(
            # Written so that NaN does not pass.
            passed=all(value <= 1.0 for value in excess.values()),
            worst_site=worst,
            max_error=errors[worst][0],
            rms_error=errors[worst][1],
            max_allowed=allowed[worst][0],
            rms_allowed=allowed[worst][1],
            layers=len(self.model.model.layers),
        )


def sample_scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [S, neurons] weighted scores P · max n·∂P/∂n, each sample alone, as plainly as can be."""
    sites = find_sites(model)
    outputs: dict[Any, torch.Tensor] = {}

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs[module] = output

    handles = [module.register_forward_hook(keep) for module in dict.fromkeys(site.module for site in sites)]
    rows = []
    try:
        with frozen_model(model) as last_logits:
            for one in batch.singles():
                log_p = gold_log_p(last_logits(one), one)
                log_p.sum().backward()
                parts = []
                for site in sites:
                    output = outputs[site.module]
                    assert output.grad is not None
                    product = output.detach()[0, :, site.columns].double() * output.grad[0, :, site.columns].double()
                    parts.append(product.amax(0) * (2 * log_p.detach().double()).exp())
                rows.append(torch.cat(parts))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


def _errors(scores: torch.Tensor, truth: torch.Tensor, sites: list[Site]) -> Mapping[str, tuple[float, float]]:
    """Site name → (maximum, RMS) error over layers and samples, in shares of the largest score there."""
    parts: dict[str, list[torch.Tensor]] = {}
    start = 0
    if scores.shape != truth.shape:
        return {site.name: (float("nan"), float("nan")) for site in sites}
    for site in sites:
        stop = start + site.columns.stop - site.columns.start
        largest = truth[:, start:stop].abs().amax(1, keepdim=True)
        error = (scores[:, start:stop] - truth[:, start:stop]).abs() / largest.where(largest > 0, 1.0)
        parts.setdefault(site.name, []).append(error.flatten())
        start = stop
    joined = {name: torch.cat(errors) for name, errors in parts.items()}
    return {name: (float(errors.max()), float(errors.square().mean().sqrt())) for name, errors in joined.items()}
