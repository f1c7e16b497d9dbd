"""What happens to a batch's activations and gradients as they pass: reduced over positions, weighted, added up."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.backend import Operations
from culnig_fast.errors import CulnigError
from culnig_fast.fused.operations import Scoring
from culnig_fast.mixtures.experts import Routing
from culnig_fast.mixtures.routed import routed_scores
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronSite
from culnig_fast.sample_weights import SampleWeights
from culnig_fast.site_totals import SiteTotals
from culnig_fast.watching import watched_places


@dataclass(frozen=True)
class _Forward:
    """A batch that has gone forward: lengths int64 [S], positions of a row, bool [S, T] of those that count or None."""

    lengths: torch.Tensor
    positions: int
    keep: torch.Tensor | None


@dataclass(frozen=True)
class _Backward:
    """A batch on its way back.

    Attributes:
        weights: of its samples.
        added: the sites that have its scores.
        rows: its rows of `watched`.
        partial: of routed experts, the scores so far, of which some experts' are missing.
        waiting: scores of sites whose neighbours have none yet, by the first of the neighbours.
    """

    weights: SampleWeights
    added: set[NeuronSite]
    rows: torch.Tensor | None
    partial: dict[NeuronSite, tuple[SiteLocation, torch.Tensor]] = field(default_factory=dict)
    waiting: dict[NeuronSite, dict[NeuronSite, tuple[SiteLocation, torch.Tensor]]] = field(default_factory=dict)


class BatchScorer:
    """Scores one batch after another into totals.

    Args:
        totals: what is added to.
        reduction: over token positions.
        padding: `exclude` or `zero`, see `Attributor`.
        ops: the numeric operations.
        watch: neurons of which each sample's own score is kept, in `watched`.

    Raises:
        CulnigError: a watched neuron is not scored.
    """

    def __init__(self, totals: SiteTotals, reduction: str, padding: str, ops: Operations, watch: NeuronSet) -> None:
        self.totals, self.reduction, self.padding, self.ops = totals, reduction, padding, ops
        self.watched: torch.Tensor | None = None
        self._watch = watched_places(totals.locations, watch)
        self._forward: _Forward | None = None
        self._backward: _Backward | None = None

    def begin(self, lengths: torch.Tensor, positions: int, keep: torch.Tensor | None = None) -> None:
        """A batch goes forward: int64 [S] lengths, how many positions a row has, bool [S, T] of those that count."""
        self._forward = _Forward(lengths, positions, keep)

    def end(self) -> None:
        """No batch is under way."""
        self._forward = self._backward = None

    @property
    def lengths(self) -> torch.Tensor:
        """Of the batch under way; CulnigError when there is none."""
        if self._forward is None:
            raise CulnigError("the model ran outside Attributor.forward; call that one instead")
        return self._forward.lengths

    @property
    def under_way(self) -> bool:
        """Whether a batch has gone forward and not yet back."""
        return self._forward is not None

    def only_now(self) -> Callable[[torch.Tensor], None]:
        """A hook for the logits of the batch under way, which refuses their gradient once another one is."""
        mine = self._forward

        def check(grad: torch.Tensor) -> None:
            if self._forward is not mine:
                raise CulnigError("the objective is of an earlier forward than the last; go back from each in turn")

        return check

    @contextlib.contextmanager
    def going_back(
        self, objective: torch.Tensor, weights: SampleWeights, added: set[NeuronSite] | None, rows: torch.Tensor | None
    ) -> Iterator[None]:
        """Inside the block gradients of `objective` [S] pass; see `Attributor.backward` for the rest."""
        if self._watch:
            if rows is None or self.watched is None:
                shape = (len(objective), sum(len(places) for _, places in self._watch.values()))
                self.watched = torch.full(shape, torch.nan, dtype=objective.dtype, device=objective.device)
            rows = torch.arange(len(objective), device=self.watched.device) if rows is None else rows
            rows = rows.to(self.watched.device)
        self._backward = _Backward(weights, set() if added is None else added, rows)
        try:
            yield
            of_neighbours = [one.values() for one in self._backward.waiting.values()]
            for location, scores in itertools.chain(self._backward.partial.values(), *of_neighbours):
                self._add([location], scores, False)
        finally:
            self.end()

    def score(
        self, location: SiteLocation, act: torch.Tensor, grad: torch.Tensor, routing: Routing | None = None
    ) -> None:
        """Score what a tap saw; `routing` comes with rows of routed experts."""
        batch, _ = self._running()
        lengths = batch.lengths.to(act.device)
        keep = None if batch.keep is None else batch.keep.to(act.device)
        if routing is not None:
            reduce = self.ops.actgrad_reduce
            where = (lengths, batch.positions, self.reduction, routing, location.site.experts, keep)
            scores = routed_scores(reduce, act, grad, *where)
            if routing.only is None:
                self._add([location], scores, False)
            else:
                self._put(location, scores, routing.only)
            return
        if act.dim() == 2:  # OPT runs its MLP on [batch·T, hidden]
            act, grad = act.unflatten(0, (len(lengths), -1)), grad.unflatten(0, (len(lengths), -1))
        self._collect(location, self.ops.actgrad_reduce(act, grad, lengths, self.reduction, keep=keep))

    def fused(self, sites: Sequence[SiteLocation]) -> Scoring:
        """How fused layers score these sites; they know the mean as a sum."""
        return Scoring(
            ops=self.ops,
            reduction="sum" if self.reduction == "mean" else self.reduction,
            wanted=frozenset(location.site for location in sites),
            lengths=lambda: self.lengths,
            add=self._add_fused,
        )

    def _add_fused(self, locations: Sequence[SiteLocation], scores: torch.Tensor, last: bool) -> None:
        if self.reduction == "mean":
            scores = scores / self.lengths.to(scores.device)[:, None]
        self._add(locations, scores, last)

    def _put(self, location: SiteLocation, scores: torch.Tensor, expert: int) -> None:
        """Keep one expert's scores [batch, K] until all that a token reached have theirs, at the end of the pass."""
        _, back = self._running()
        site, columns = location.site, scores.shape[1]
        if site not in back.partial:
            whole = torch.zeros(len(scores), site.width, dtype=scores.dtype, device=scores.device)
            back.partial[site] = location, whole
        kept = back.partial[site][1]
        kept[:, expert * columns : (expert + 1) * columns] = scores.to(kept.device)

    def _collect(self, location: SiteLocation, scores: torch.Tensor) -> None:
        """Keep a tap's scores [batch, K] until its neighbours have theirs: one addition for all costs less."""
        _, back = self._running()
        neighbours = self.totals.neighbours(location)
        if len(neighbours) == 1:
            self._add(neighbours, scores, False)
            return
        waiting = back.waiting.setdefault(neighbours[0].site, {})
        waiting.setdefault(location.site, (location, scores))  # of a module that runs twice the first one counts
        if len(waiting) < len(neighbours):
            return
        del back.waiting[neighbours[0].site]
        parts = [waiting[one.site][1] for one in neighbours]
        if len({part.device for part in parts}) == 1:
            self._add(neighbours, torch.cat(parts, dim=-1), False)
            return
        for one, part in zip(neighbours, parts, strict=True):
            self._add([one], part, False)

    def _add(self, locations: Sequence[SiteLocation], scores: torch.Tensor, last: bool) -> None:
        """Add the running batch's scores to sites' totals.

        Args:
            locations: the sites.
            scores: [batch, ΣK] theirs, side by side, over each sample's real positions or, with `last`, its last one:
                the others' are exactly 0.
            last: see there.
        """
        batch, back = self._running()
        if self.reduction == "max" and (last or self.padding == "zero"):
            scores = self._with_zeros(scores, batch, last)
        if self._watch:
            for location, columns in _apart(locations, scores):
                self._keep_watched(location, columns, back)
        together = None
        if len(locations) > 1 and not back.added.intersection(location.site for location in locations):
            together = self.totals.together(locations, scores.device)
        if together is not None:
            back.weights.add(scores, together, self.ops)
            back.added.update(location.site for location in locations)
            return
        for location, columns in _apart(locations, scores):
            if location.site not in back.added:
                back.weights.add(columns, self.totals.of(location, scores.device), self.ops)
                back.added.add(location.site)

    def _keep_watched(self, location: SiteLocation, scores: torch.Tensor, back: _Backward) -> None:
        """Write the scores [batch, K] of a site's watched neurons to their table."""
        if location.site not in self._watch or location.site in back.added:
            return
        assert self.watched is not None and back.rows is not None
        # Indices travel once: where they stay on the host, every batch would wait for them.
        columns, places = self._watch[location.site]
        columns, places = columns.to(scores.device), places.to(self.watched.device)
        self._watch[location.site] = columns, places
        self.watched[back.rows[:, None], places] = scores[:, columns].to(self.watched)

    def _with_zeros(self, scores: torch.Tensor, batch: _Forward, last: bool) -> torch.Tensor:
        """Maxima that count the positions left out, whose scores are 0."""
        lengths = batch.lengths.to(scores.device)
        zeros = lengths > 1 if last else lengths < batch.positions
        if last and self.padding == "zero" and batch.positions > 1:
            zeros = torch.ones_like(zeros)
        return torch.where(zeros[:, None], scores.clamp(min=0.0), scores)  # clamp keeps NaN

    def _running(self) -> tuple[_Forward, _Backward]:
        if self._forward is None or self._backward is None:
            raise CulnigError("a backward pass ran outside Attributor.backward; call that one instead")
        return self._forward, self._backward


def _apart(locations: Sequence[SiteLocation], scores: torch.Tensor) -> Iterator[tuple[SiteLocation, torch.Tensor]]:
    """Each site with its own columns of scores that lie side by side."""
    parts = scores.split([location.width for location in locations], dim=-1)
    return zip(locations, parts, strict=True)
