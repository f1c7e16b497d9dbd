"""The comparison as a table, and as a record for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.analysis.modules import Which
from culnig_fast.files import write_json, write_text
from culnig_fast.finetuning.comparison import Comparison
from culnig_fast.statistics import holm, paired_bootstrap
from culnig_fast.tables.figures import LEVEL, Drawing
from culnig_fast.tables.table import Cell, Row, Table
from culnig_fast.tables.writing import to_csv, to_latex, to_markdown

Score = Callable[[Any], np.ndarray]
"""From an Evaluation to float64 [n] points, as `Task.scores`."""

_WRITERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def comparison_table(found: Comparison, scores: Mapping[str, Score], target: str, drawing: Drawing) -> Table:
    """Rows before, top, bottom, all; columns the target and the culture tasks; neurons is the row's count in it.

    A trained row is the mean over its seeds, tested against the model before, question by question, two-sided.

    Args:
        found: the comparison.
        scores: label → the points of an evaluation.
        target: what was trained on.
        drawing: of intervals and tests.
    """
    rows: list[Row] = [("before", None, tuple(drawing.cell(scores[label](found.before[label])) for label in scores))]
    for which, choice in found.choices.items():
        points = {label: _points(found, scores, label, which) for label in scores}
        p = [drawing.p_two_sided(points[label].mean(0), scores[label](found.before[label])) for label in scores]
        adjusted = holm(p)
        cells = [
            replace(_cell(points[label], drawing), p=p[i], p_holm=float(adjusted[i]), bold=bool(adjusted[i] < LEVEL))
            for i, label in enumerate(scores)
        ]
        held = int(choice.table.loc[choice.table["chosen"], "neurons"].sum())
        share = f"{100 * choice.parameters / choice.total:.1f} % of the parameters"
        rows.append((f"{which}, {len(choice.modules)} modules, {share}", held, tuple(cells)))
    seeds = len({seed for _, seed in found.after})
    notes = (
        f"Trained on {target}; mean over {seeds} seed{'s' if seeds > 1 else ''}. "
        "Neurons: those of the set that lie in the modules trained.",
        *(
            (f"{len(found.left_out)} training questions are evaluated too and were left out.",)
            if found.left_out
            else ()
        ),
        *(f"{label}: {split.describe()}." for label, split in found.unusable.items()),
        *(("±: standard deviation over seeds.",) if seeds > 1 else ()),
        drawing.note,
        "Bold: another mean than before by paired bootstrap, two-sided p < 0.05 after Holm's adjustment over the tasks "
        "of the row.",
    )
    return Table("finetune", f"Accuracy after training chosen modules on {target}", tuple(scores), tuple(rows), notes)


def comparison_record(found: Comparison, scores: Mapping[str, Score], target: str, drawing: Drawing) -> dict[str, Any]:
    """JSON-ready: the table, the modules, each training's figures, and top against bottom, task by task."""
    record: dict[str, Any] = {
        "target": target,
        "left_out": list(found.left_out),
        "unusable": {label: [one.id for one in split.unusable] for label, split in found.unusable.items()},
        "table": comparison_table(found, scores, target, drawing).to_dict(),
        "modules": {
            which: {"modules": [f"{m.kind} {m.layer_idx}" for m in choice.modules], "parameters": choice.parameters,
                    "total_parameters": choice.total}
            for which, choice in found.choices.items()
        },
        "runs": [
            {"modules": which, "seed": seed, "steps": training["steps"], "trained_parameters": training["trained"],
             "losses": training["losses"],
             "accuracy": {label: float(scores[label](results[label]).mean()) for label in scores}}
            for ((which, seed), results), training in zip(found.after.items(), found.trainings.values(), strict=True)
        ],
    }  # fmt: skip
    if {"top", "bottom"} <= set(found.choices):
        record["top_minus_bottom"] = {
            label: paired_bootstrap(
                _points(found, scores, label, "top").mean(0),
                _points(found, scores, label, "bottom").mean(0),
                resamples=drawing.resamples,
                seed=drawing.seed,
            ).to_dict()
            for label in scores
        }
    return record


def write_comparison(table: Table, record: dict[str, Any], out: Path) -> None:
    """Write `tables/finetune` as csv, md and tex, and `finetune.json`."""
    (out / "tables").mkdir(exist_ok=True)
    for ending, writer in _WRITERS.items():
        write_text(out / "tables" / f"{table.name}{ending}", writer(table), overwrite=True)
    write_json(out / "finetune.json", record, overwrite=True)


def _points(found: Comparison, scores: Mapping[str, Score], label: str, which: Which) -> np.ndarray:
    """float64 [seeds, n]."""
    return np.stack([scores[label](results[label]) for (name, _), results in found.after.items() if name == which])


def _cell(points: np.ndarray, drawing: Drawing) -> Cell:
    means = points.mean(1)
    sd = float(means.std(ddof=1)) if len(means) > 1 else None
    return replace(drawing.cell(points.mean(0)), sd=sd)
