"""The published tables, read off results (CULNIG, sections 7 to 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.statistics import holm, mean_interval, paired_bootstrap
from culnig_fast.tables.table import Cell, Row, Table

LEVEL = 0.05
"""Adjusted p-values below it are set bold."""


@dataclass(frozen=True, eq=False)
class TaskPoints:
    """What every condition scored on one task, question by question.

    Attributes:
        groups: [n] of the questions.
        points: condition → float64 [n], 0…100, all in one order of the questions.
    """

    groups: tuple[str, ...]
    points: Mapping[str, np.ndarray]

    def of(self, condition: str) -> np.ndarray:
        """The points of one condition; CulnigError when it was not evaluated."""
        if condition not in self.points:
            raise CulnigError(f"condition {condition!r} was not evaluated; there are {', '.join(self.points)}")
        return self.points[condition]

    def within(self, group: str) -> TaskPoints:
        """The questions of one group."""
        keep = np.array([name == group for name in self.groups])
        return TaskPoints((group,) * int(keep.sum()), {name: values[keep] for name, values in self.points.items()})


@dataclass(frozen=True)
class Drawing:
    """How intervals and p-values are drawn; as `paired_bootstrap`."""

    resamples: int = 10_000
    seed: int = 0
    confidence: float = 0.95

    def cell(self, values: np.ndarray) -> Cell:
        """Mean and interval."""
        found = mean_interval(values, resamples=self.resamples, seed=self.seed, confidence=self.confidence)
        return Cell(found.mean, found.low, found.high, n=len(values))

    def p_less(self, values: np.ndarray, than: np.ndarray) -> float:
        """One-sided p of a lower mean."""
        return paired_bootstrap(values, than, resamples=self.resamples, seed=self.seed).p_less

    def p_two_sided(self, values: np.ndarray, than: np.ndarray) -> float:
        """Two-sided p of another mean."""
        return paired_bootstrap(values, than, resamples=self.resamples, seed=self.seed).p_two_sided

    @property
    def note(self) -> str:
        """What the brackets are."""
        return (
            f"In brackets: {100 * self.confidence:g} % percentile bootstrap intervals over questions, "
            f"{self.resamples:,} resamples."
        )


Results = Mapping[str, TaskPoints]
"""Task label → its points."""


def main_table(results: Results, seeds: Sequence[int], sizes: Mapping[str, int], drawing: Drawing) -> Table:
    """Original, suppressed, and the mean of the random sets ± its standard deviation over sets.

    Suppressed is tested against the mean of the random sets, question by question, one-sided; Holm's adjustment is over
    the tasks.

    Args:
        results: with conditions `original`, `suppressed` and `random-SEED`.
        seeds: of the random sets.
        sizes: neurons by condition.
        drawing: of intervals and tests.
    """
    random = {label: _random(task, seeds) for label, task in results.items()}
    suppressed = _tested(
        [drawing.cell(task.of("suppressed")) for task in results.values()],
        [drawing.p_less(task.of("suppressed"), random[label].mean(0)) for label, task in results.items()],
    )
    spread = [_random_cell(random[label], drawing) for label in results]
    rows = (
        ("original", None, tuple(drawing.cell(task.of("original")) for task in results.values())),
        ("culture-general suppressed", sizes["suppressed"], suppressed),
        (f"random suppressed, {len(seeds)} sets", sizes["suppressed"], tuple(spread)),
    )
    notes = (
        drawing.note,
        "±: standard deviation over the random sets.",
        "Bold: below the random sets by paired bootstrap, one-sided p < 0.05 after Holm's adjustment over the tasks.",
    )
    return Table("main", "Accuracy with culture-general neurons suppressed", tuple(results), rows, notes)


def against_random(
    name: str, title: str, rows: Mapping[str, str], results: Results, seeds: Sequence[int],
    sizes: Mapping[str, int], drawing: Drawing,
) -> Table:  # fmt: skip
    """Conditions side by side, each tested against the random sets as the main table tests.

    Args:
        name, title: of the table.
        rows: name of a row → its condition.
    """
    random = {label: _random(task, seeds).mean(0) for label, task in results.items()}
    made: list[Row] = []
    for row, condition in rows.items():
        cells = [drawing.cell(task.of(condition)) for task in results.values()]
        if condition == "original":
            made.append((row, None, tuple(cells)))
            continue
        p = [drawing.p_less(task.of(condition), random[label]) for label, task in results.items()]
        made.append((row, sizes[condition], _tested(cells, p)))
    notes = (
        drawing.note,
        "Bold: below the random sets of the culture-general set's size by paired bootstrap, one-sided p < 0.05 after "
        "Holm's adjustment over the tasks of the row.",
    )
    return Table(name, title, tuple(results), tuple(made), notes)


def enhanced_table(results: Results, sizes: Mapping[str, int], drawing: Drawing) -> Table:
    """The neurons doubled, tested two-sided against the original."""
    p = [drawing.p_two_sided(task.of("enhanced"), task.of("original")) for task in results.values()]
    enhanced = _tested([drawing.cell(task.of("enhanced")) for task in results.values()], p)
    rows = (
        ("original", None, tuple(drawing.cell(task.of("original")) for task in results.values())),
        ("culture-general doubled", sizes["enhanced"], enhanced),
    )
    notes = (
        drawing.note,
        "Bold: another mean than the original by paired bootstrap, two-sided p < 0.05 after Holm's adjustment over "
        "the tasks.",
    )
    return Table("enhanced", "Accuracy with culture-general neurons doubled", tuple(results), rows, notes)


def country_table(
    label: str, task: TaskPoints, conditions: Mapping[str, str], sizes: Mapping[str, int], drawing: Drawing
) -> Table:
    """One task, country by country: the original, and each country's specific neurons suppressed.

    Args:
        label: of the task.
        task: its points.
        conditions: row name (the country) → condition.
        sizes: neurons by condition.
        drawing: of intervals and tests; Holm's adjustment is over all cells that are tested.
    """
    countries = tuple(dict.fromkeys(task.groups))
    parts = [task.within(country) for country in countries]
    cells = [drawing.cell(part.of(condition)) for condition in conditions.values() for part in parts]
    p = [drawing.p_less(part.of(condition), part.of("original")) for condition in conditions.values() for part in parts]
    tested = _tested(cells, p)
    width = len(parts)
    rows: list[Row] = [("original", None, tuple(drawing.cell(part.of("original")) for part in parts))]
    rows += [
        (f"{name} suppressed", sizes[condition], tested[i * width : (i + 1) * width])
        for i, (name, condition) in enumerate(conditions.items())
    ]
    notes = (
        drawing.note,
        "Bold: below the original by paired bootstrap on the country's questions, one-sided p < 0.05 after Holm's "
        "adjustment over all sets and countries of the table.",
    )
    return Table(
        f"countries-{label}", f"{label} by country, specific neurons suppressed", countries, tuple(rows), notes
    )


def _random(task: TaskPoints, seeds: Sequence[int]) -> np.ndarray:
    """float64 [seeds, n]."""
    return np.stack([task.of(f"random-{seed}") for seed in seeds])


def _random_cell(points: np.ndarray, drawing: Drawing) -> Cell:
    means = points.mean(1)
    sd = float(means.std(ddof=1)) if len(means) > 1 else None
    return replace(drawing.cell(points.mean(0)), sd=sd)


def _tested(cells: Sequence[Cell], p_values: Sequence[float]) -> tuple[Cell, ...]:
    """The cells with their p-values, adjusted as one family."""
    adjusted = holm(p_values)
    return tuple(
        replace(cell, p=p, p_holm=float(q), bold=bool(q < LEVEL))
        for cell, p, q in zip(cells, p_values, adjusted, strict=True)
    )
