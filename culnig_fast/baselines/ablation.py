"""Brute force: neurons zeroed one by one, many at a time, and how well a score foretells the outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from culnig_fast.architecture import SiteLocation
from culnig_fast.baselines.asked import Asked, ask, gold_log_p
from culnig_fast.baselines.hooks import Change, replaced, replaced_routed
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import places
from culnig_fast.last_position import LastPosition
from culnig_fast.mixtures.experts import Change as RoutedChange
from culnig_fast.mixtures.experts import Routing
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.questions import Question
from culnig_fast.scores import ScoreTable


@dataclass(frozen=True, eq=False)
class Ablation:
    """What zeroing each neuron by itself does.

    Attributes:
        neurons: those zeroed; a neuron's score is its effect summed over all groups.
        effects: float64 [groups, n] Σ_q P_q · (P_q − P_q without the neuron), the quantity that a score table
            approximates to first order.
        groups: names of the rows.
        counts: int64 [groups] questions.
        probability: float64 [groups] Σ_q P_q of the untouched model.
        ids: of the questions.
        unusable: ids of the questions left out.
    """

    neurons: NeuronSet
    effects: np.ndarray
    groups: tuple[str, ...]
    counts: np.ndarray
    probability: np.ndarray
    ids: tuple[str, ...]
    unusable: tuple[str, ...] = field(default=())

    @property
    def total(self) -> np.ndarray:
        """Effect of each neuron over all groups, float64 [n]."""
        total: np.ndarray = self.effects.sum(0)
        return total


def ablate(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    neurons: NeuronSet,
    *,
    batch_tokens: int | None = None,
    on_unusable: str = "error",
    progress: bool = True,
) -> Ablation:
    """Zero each neuron by itself at every position and measure what P(y|x) loses.

    A batch of questions is repeated as often as the token budget allows, and in each copy another neuron is zeroed:
    samples do not interact, so this equals suppressing one neuron at a time to rounding.

    Args:
        model: a Hugging Face decoder; left as it was.
        tokenizer: its tokenizer.
        questions: on which P is measured.
        neurons: which neurons, in any modules and layers.
        batch_tokens: padded tokens a forward pass, copies included; None means a default for the device.
        on_unusable: `error` or `skip` for an answer that is not one token.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: as `evaluate`; no neurons, or one that the model lacks; P that is not finite.
    """
    if not len(neurons):
        raise CulnigError("there are no neurons to zero; choose a set that holds some")
    asked = ask(model, tokenizer, questions, batch_tokens, on_unusable)
    places = _places(asked, neurons)
    effects = np.zeros((len(asked.groups), len(neurons)))
    probability = np.zeros(len(asked.groups))
    bar = tqdm(total=len(neurons) * len(asked.ids), unit="ablation", desc="zeroing", disable=not progress)
    with torch.no_grad(), asked.head() as head, bar:
        for index in asked.batches:
            group = asked.group_of[index].numpy()
            plain = _without(asked, head, index, [])[0]
            _check_finite(plain, asked, index)
            np.add.at(probability, group, plain)
            longest = max(len(asked.token_ids[i]) for i in index)
            copies = max(1, asked.batch_tokens // (len(index) * longest))
            for start in range(0, len(places), copies):
                chosen = places[start : start + copies]
                drop = plain * (plain - _without(asked, head, index, chosen))  # [copies, batch]
                np.add.at(effects[:, start : start + len(chosen)], group, drop.T)
                bar.update(drop.size)
    if not np.isfinite(effects).all():
        bad = list(neurons)[int(np.argwhere(~np.isfinite(effects))[0][1])]
        raise CulnigError(
            f"zeroing neuron {bad.neuron_idx} of {bad.module_name} in layer {bad.layer_idx} makes P NaN; "
            "try float32 or bfloat16"
        )
    scored = NeuronSet(neurons.module_names, neurons.layer_idx, neurons.neuron_idx, effects.sum(0), neurons.info)
    return Ablation(scored, effects, asked.groups, asked.counts, probability, asked.ids, asked.unusable)


@dataclass(frozen=True)
class Agreement:
    """How well a score foretells brute force on the same neurons.

    Attributes:
        spearman: rank correlation; None where one side is constant.
        pearson: linear correlation; None likewise.
        overlap: share of brute force's top `top` neurons that are among the score's top `top`.
        top: how many.
    """

    spearman: float | None
    pearson: float | None
    overlap: float
    top: int


def agreement(scores: np.ndarray, effects: np.ndarray, top: int) -> Agreement:
    """Compare two values of the same neurons, each float [n]; equal values are ranked in the order given.

    Raises:
        CulnigError: lengths differ, or `top` is not in 1…n.
    """
    if scores.shape != effects.shape or scores.ndim != 1:
        raise CulnigError(f"scores {list(scores.shape)} and effects {list(effects.shape)} are not of the same neurons")
    if not 1 <= top <= len(scores):
        raise CulnigError(f"cannot compare the top {top} of {len(scores)} neurons; choose 1…{len(scores)}")
    best = [set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (scores, effects)]
    ranks = [pd.Series(values).rank().to_numpy() for values in (scores, effects)]
    return Agreement(_correlation(*ranks), _correlation(scores, effects), len(best[0] & best[1]) / top, top)


def scores_of(table: ScoreTable, neurons: NeuronSet) -> np.ndarray:
    """The table's totals over all groups at the neurons, float64 [n]; CulnigError when it lacks one."""
    totals: np.ndarray = np.take(table.totals, neurons.flat(table.layout), axis=1).sum(0)
    return totals


@dataclass(frozen=True)
class _Place:
    """A neuron: its column of the projection's tensor, of which expert where there are several."""

    location: SiteLocation
    column: int
    expert: int = 0


def _places(asked: Asked, neurons: NeuronSet) -> list[_Place]:
    """Where every neuron is, each checked against the model."""
    architecture = asked.architecture
    neurons.flat(architecture.layout(sorted({location.site.module_name for location in architecture.locations})))
    sites = {(x.site.module_name, x.site.layer_idx): x for x in architecture.locations}
    return [_place(sites[n.module_name, n.layer_idx], n.neuron_idx) for n in neurons]


def _place(location: SiteLocation, neuron: int) -> _Place:
    columns = places(location.columns)
    if location.experts is None:
        return _Place(location, columns[neuron])
    return _Place(location, columns[neuron % len(columns)], neuron // len(columns))


def _without(asked: Asked, head: LastPosition, index: np.ndarray, places: Sequence[_Place]) -> np.ndarray:
    """P of the gold tokens with one of `places` zeroed in each copy, float64 [copies, batch]; untouched when empty."""
    copies, size = max(1, len(places)), len(index)
    batch = asked.batch(index)
    with contextlib.ExitStack() as stack:
        for marked in _by_tensor(places):
            location = marked[0][1].location
            if location.experts is None:
                zeroed = replaced(location.module, location.tensor, _zero(marked, size), copies * size)
            else:
                zeroed = replaced_routed(location, _zero_routed(marked, copies, size * batch.input_ids.shape[1]))
            stack.enter_context(zeroed)
        logits = head.logits(batch.input_ids.repeat(copies, 1), batch.lengths.repeat(copies))
    p = gold_log_p(logits, asked.answers[index].repeat(copies)).double().exp()
    result: np.ndarray = p.view(copies, size).cpu().numpy()
    return result


_Marked = list[tuple[int, _Place]]
"""What is zeroed in which copy, all in one projection's tensor."""


def _by_tensor(places: Sequence[_Place]) -> list[_Marked]:
    found: dict[tuple[Any, str, str], _Marked] = {}
    for copy, place in enumerate(places):
        where = place.location
        found.setdefault((where.module, where.part, where.tensor), []).append((copy, place))
    return list(found.values())


def _zero(marked: _Marked, size: int) -> Change:
    """Zero the place's column in the `size` rows of its copy."""
    copies, columns = torch.tensor([(copy, place.column) for copy, place in marked]).T

    def change(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()  # something else may hold what a module takes in
        value.view(-1, size, *value.shape[1:])[copies.to(value.device), :, :, columns.to(value.device)] = 0
        return value

    return change


def _zero_routed(marked: _Marked, copies: int, tokens: int) -> RoutedChange:
    """Zero the place's column in the rows of its expert that come from the `tokens` of its copy."""
    experts, columns = torch.full((copies,), -1), torch.zeros(copies, dtype=torch.int64)
    for copy, place in marked:
        experts[copy], columns[copy] = place.expert, place.column

    def change(values: torch.Tensor, routing: Routing) -> torch.Tensor:
        copy = routing.tokens // tokens
        rows = (routing.experts == experts.to(copy.device)[copy]).nonzero().flatten()
        values = values.clone()
        values[rows, columns.to(copy.device)[copy[rows]]] = 0
        return values

    return change


def _check_finite(plain: np.ndarray, asked: Asked, index: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(plain))
    if bad.size:
        name = asked.ids[index[bad[0]]]
        raise CulnigError(f"the model gives question {name!r} the probability {plain[bad[0]]}; check its weights")


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
