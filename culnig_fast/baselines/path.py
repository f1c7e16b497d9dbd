"""Integrated gradients along the activation path: what the first order of a neuron's score leaves out.

Let a be the activation of one site (one module in one layer, all positions i and columns n) on a sample, and
P(α) the probability of its gold token when that site's activation is α·a and everything before it is unchanged. Then

    IG[n, i] = a[n, i] · (1/m) Σ_{j=1…m} ∂P/∂a[n, i] at α_j = (j − ½)/m

is the midpoint rule for Sundararajan, Taly and Yan's integral (ICML 2017, equation 1) with the zeroed site as baseline,
applied within the network at a site (internal influence; Dhamdhere, Sundararajan and Yan, ICLR 2019, conductance's
simple form). As m grows Σ_{n,i} IG → P(1) − P(0): what the site as a whole contributes is shared out completely. The
first-order score is the same product with the gradient at α = 1 alone.

Completeness needs P to be continuous at α = 0. Queries and keys of models with a q/k norm are not: the norm undoes any
scale, so P(α) is constant for α > 0 and jumps at 0, and IG there is 0 up to the norm's epsilon. Routers are not either:
where one sends tokens to other experts as α falls, P(α) jumps; `routed_path` says what the path of experts is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from culnig_fast.architecture import SiteLocation
from culnig_fast.baselines.asked import Asked, ask, gold_log_p
from culnig_fast.baselines.hooks import replaced
from culnig_fast.baselines.routed_path import RoutedPath, routed_gradient
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import cut, put
from culnig_fast.last_position import LastPosition
from culnig_fast.neurons import named_modules
from culnig_fast.provenance import provenance
from culnig_fast.questions import Question
from culnig_fast.running.diagnosis import check_finite
from culnig_fast.scores import ScoreTable


def integrated_gradients(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    steps: int = 16,
    sites: Iterable[str] | None = None,
    reduction: str = "sum",
    weighted: bool = True,
    batch_tokens: int | None = None,
    on_unusable: str = "error",
    progress: bool = True,
) -> ScoreTable:
    """Σ_q P_q · IG of every neuron per group, in a table like `attribute`'s (see the module's text for IG).

    Costs `steps` forward passes and as many backward passes, from the site up, for every module of every layer.

    Args:
        model: a Hugging Face decoder; left as it was.
        tokenizer: its tokenizer.
        questions: what to score; groups become rows in the order of their first question.
        steps: m; 1 takes the gradient half-way.
        sites: module names; None means q, k, v, gate and up, where the model has them.
        reduction: over positions, `sum` (complete) or `max` (as the method reduces its scores).
        weighted: multiply a sample's values by its P, as scores are; False leaves completeness to be read off.
        batch_tokens: padded tokens a pass, steps included; None means a default for the device.
        on_unusable: `error` or `skip` for an answer that is not one token.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: an option out of range, or as `attribute`.
    """
    if steps < 1:
        raise CulnigError(f"integrated gradients were asked for with {steps} steps; take at least 1")
    if reduction not in ("sum", "max"):
        raise CulnigError(f"unknown reduction {reduction!r}; choose from sum, max")
    asked = ask(model, tokenizer, questions, batch_tokens, on_unusable)
    sites = named_modules(sites)
    locations, layout = asked.architecture.select(sites), asked.architecture.layout(sites)
    totals = np.zeros((len(asked.groups), layout.size))
    probability = np.zeros(len(asked.groups))
    bar = tqdm(total=len(locations) * len(asked.ids), unit="sample", desc="integrating", disable=not progress)
    with asked.head() as head, bar:
        for index in asked.batches:
            group = asked.group_of[index].numpy()
            p = _probability(asked, head, index)
            np.add.at(probability, group, p)
            for location in locations:
                values = _integrate(asked, head, index, location, steps, reduction)
                where = layout.slice(location.site.module_name, location.site.layer_idx)
                weight = p[:, None] if weighted else 1.0
                np.add.at(totals[:, where], group, values.double().cpu().numpy() * weight)
                bar.update(len(index))
    check_finite(totals, layout)
    metadata = {
        "score": "integrated gradients",
        "steps": steps,
        "reduction": reduction,
        "weighted": weighted,
        **provenance(asked.architecture),
        "unusable": list(asked.unusable),
    }
    return ScoreTable(totals, asked.groups, asked.counts, probability, asked.ids, layout, metadata)


def _probability(asked: Asked, head: LastPosition, index: np.ndarray) -> np.ndarray:
    batch = asked.batch(index)
    with torch.no_grad():
        log_p = gold_log_p(head.logits(batch.input_ids, batch.lengths), asked.answers[index])
    p: np.ndarray = log_p.double().exp().cpu().numpy()
    return p


def _integrate(
    asked: Asked, head: LastPosition, index: np.ndarray, location: SiteLocation, steps: int, reduction: str
) -> torch.Tensor:
    """IG of one site on one batch over each sample's real positions, float32 [batch, K] (float64 in such a model)."""
    size, positions = len(index), asked.batch(index).input_ids.shape[1]
    copies = max(1, min(steps, asked.batch_tokens // (size * positions)))
    alphas = ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).split(copies)
    lengths = [len(asked.token_ids[i]) for i in index]
    if location.experts is None:
        return _reduce(_integrate_plain(asked, head, index, location, alphas), lengths, reduction)
    path = RoutedPath(lengths, positions, location.site.experts)
    for part in alphas:
        p: list[torch.Tensor] = []

        def run(part: torch.Tensor = part, p: list[torch.Tensor] = p) -> torch.Tensor:
            log_p = _log_p(asked, head, index, len(part))
            p.append(log_p.detach().double().exp())
            return log_p

        path.add(routed_gradient(location, part.repeat_interleave(size), positions, run), p[0])
    return path.reduced(reduction, steps)


def _integrate_plain(
    asked: Asked, head: LastPosition, index: np.ndarray, location: SiteLocation, alphas: Sequence[torch.Tensor]
) -> torch.Tensor:
    """IG of a site of one projection, [batch, T, K]."""
    size, steps = len(index), sum(len(part) for part in alphas)
    total: torch.Tensor | None = None
    for part in alphas:
        rows = len(part) * size
        act, grad, p = _gradient(asked, head, index, location, part.repeat_interleave(size))
        # log P is differentiated and P multiplied afterwards, as attribution does: well scaled where P is near 0.
        share = grad * p.to(grad)[:, None, None]
        share = share.view(rows // size, size, *share.shape[1:]).sum(0) * act[:size] / steps
        total = share if total is None else total + share
    assert total is not None
    return total


def _gradient(
    asked: Asked, head: LastPosition, index: np.ndarray, location: SiteLocation, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The site's unscaled activation and ∂log P/∂a where row r has α·a, each [rows, T, K], and P, float64 [rows]."""
    kept: list[torch.Tensor] = []

    def scale(value: torch.Tensor) -> torch.Tensor:
        # Everything before the site is constant, so the graph starts here and backward ends here.
        leaf = value.detach().clone()
        own = cut(leaf, location.columns).clone()
        kept.append(own)
        put(leaf, location.columns, own * alpha.to(leaf.device, leaf.dtype)[:, None, None])
        kept.append(leaf.requires_grad_(True))
        return leaf

    with replaced(location.module, location.tensor, scale, len(alpha)), torch.enable_grad():
        log_p = _log_p(asked, head, index, len(alpha) // len(index))
        act, leaf = kept
        (grad,) = torch.autograd.grad(log_p.sum(), leaf)
    work = torch.float64 if act.dtype == torch.float64 else torch.float32
    return act.to(work), cut(grad, location.columns).to(work), log_p.detach().double().exp()


def _log_p(asked: Asked, head: LastPosition, index: np.ndarray, copies: int) -> torch.Tensor:
    """log P of the gold tokens of the batch, repeated `copies` times."""
    batch = asked.batch(index)
    logits = head.logits(batch.input_ids.repeat(copies, 1), batch.lengths.repeat(copies))
    return gold_log_p(logits, asked.answers[index].repeat(copies))


def _reduce(values: torch.Tensor, lengths: list[int], reduction: str) -> torch.Tensor:
    """Over the real positions of [S, T, K]; returns [S, K]."""
    rows = [value[:length] for value, length in zip(values, lengths, strict=True)]
    return torch.stack([row.amax(0) if reduction == "max" else row.sum(0) for row in rows])
