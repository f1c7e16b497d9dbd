"""The tables of a run, from its result files."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import Evaluation
from culnig_fast.files import read_json, write_json, write_text
from culnig_fast.pipeline.conditions import conditions, conditions_of
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.digests import code_digest, digest
from culnig_fast.pipeline.identification import load_set, specific
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.tables.figures import (
    Drawing,
    TaskPoints,
    against_random,
    country_table,
    enhanced_table,
    main_table,
)
from culnig_fast.tables.published import published_digest, published_models, published_table
from culnig_fast.tables.table import Table
from culnig_fast.tables.writing import to_csv, to_latex, to_markdown

_WRITERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}
SUMMARY = "tables.json"


def table_names(bench: Workbench) -> tuple[str, ...]:
    """Names of the tables that the run makes."""
    config = bench.config
    by_country = [f"countries-{label}" for label in bench.evaluated() if config.countries and bench.by_country(label)]
    return ("main", "enhanced", "ablation", *(("baselines",) if config.baselines else ()), *by_country)


def table_paths(bench: Workbench, out: Path) -> tuple[Path, ...]:
    """Their files."""
    folder = out / "tables"
    names = table_names(bench)
    return (*(folder / f"{name}{ending}" for name in names for ending in _WRITERS), folder / SUMMARY)


def published_paths(out: Path) -> tuple[Path, ...]:
    """Files of the comparison with published figures."""
    return tuple(out / "tables" / f"published{ending}" for ending in _WRITERS)


def inputs(bench: Workbench, out: Path) -> dict[str, str]:
    """What the tables depend on beside the results: the points that each benchmark gives, and the drawing."""
    points = [
        [label, condition.name, points_of(bench, out, label, condition.name).tolist()]
        for label in bench.evaluated()
        for condition in conditions_of(bench, label)
    ]
    return {
        "points": digest(points),
        "options": digest([asdict(bench.config.bootstrap), table_names(bench)]),
        "code": code_digest("culnig_fast.pipeline.reporting"),
    }


def points_of(bench: Workbench, out: Path, label: str, condition: str) -> np.ndarray:
    """Points of one task's results under one condition, float64 [n]."""
    points: np.ndarray = bench.tasks[label].scores(_result(out, label, condition))
    return points


def write_tables(bench: Workbench, out: Path) -> None:
    """Write every table as csv, markdown and LaTeX, and all of them with the notes of the tasks as json."""
    (out / "tables").mkdir(exist_ok=True)
    tables = make_tables(bench, out)
    for table in tables:
        _write(table, out)
    left_out = _left_out(bench)
    told = {label: [*task.notes(), left_out.get(label)] for label, task in bench.tasks.items()}
    notes = {label: found for label, sentences in told.items() if (found := [one for one in sentences if one])}
    write_json(out / "tables" / SUMMARY, {"tables": [t.to_dict() for t in tables], "tasks": notes}, overwrite=True)


def make_tables(bench: Workbench, out: Path) -> list[Table]:
    """Every table of the run, in the order of `table_names`."""
    config = bench.config
    drawing = Drawing(**asdict(config.bootstrap))
    sizes = set_sizes(config, out)
    results = {label: task_points(bench, out, label) for label in bench.evaluated()}
    parts = {
        "original": "original",
        "MLP and attention suppressed": "suppressed",
        "MLP alone": "mlp",
        "attention alone": "attention",
    }
    main = main_table(results, config.seeds, sizes, drawing)
    left_out = tuple(f"{label}: {sentence}" for label, sentence in _left_out(bench).items())
    tables = [
        replace(main, notes=(*main.notes, *left_out)),
        enhanced_table(results, sizes, drawing),
        against_random(
            "ablation", "The two pools of culture-general neurons suppressed", parts, results, config.seeds, sizes,
            drawing,
        ),
    ]  # fmt: skip
    if config.baselines:
        rows = {"original": "original", "culture-general": "suppressed", **{name: name for name in config.baselines}}
        tables.append(
            against_random(
                "baselines", "Neurons chosen in other ways, suppressed", rows, results, config.seeds, sizes, drawing
            )
        )
    own = {country: specific(country) for country in config.countries}
    if own:
        tables += [
            country_table(label, results[label], own, sizes, drawing)
            for label in bench.evaluated()
            if bench.by_country(label)
        ]
    return tables


def published_inputs(bench: Workbench) -> dict[str, str]:
    """What the comparison depends on beside the tables; CulnigError when there is nothing to compare with."""
    model = bench.config.published
    if model is None:
        raise CulnigError(
            f"nothing says whose published figures belong to this run; set published to one of "
            f"{', '.join(published_models())}"
        )
    return {
        "options": digest(model),
        "figures": published_digest(),
        "code": code_digest("culnig_fast.pipeline.reporting"),
    }


def write_published(bench: Workbench, out: Path) -> None:
    """Write the published figures beside the run's."""
    main = next(table for table in make_tables(bench, out) if table.name == "main")
    labels = {task.label: task.task for task in bench.config.tasks}
    _write(published_table(str(bench.config.published), main, labels), out)


def read_summary(out: Path) -> dict[str, Any]:
    """What `tables.json` holds."""
    path = out / "tables" / SUMMARY
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("tables"), list):
        raise CulnigError(f"{path} holds no tables; delete it, and the same command writes it again")
    return value


def set_sizes(config: RunConfig, out: Path) -> dict[str, int]:
    """Neurons of each condition that suppresses or doubles some."""
    return {c.name: len(load_set(out, c.neurons)) for c in conditions(config) if c.neurons is not None}


def random_conditions(config: RunConfig) -> tuple[str, ...]:
    """Names of the conditions that suppress random sets; those of the sets are the same."""
    return tuple(f"random-{seed}" for seed in config.seeds)


def _left_out(bench: Workbench) -> dict[str, str]:
    """By label of each evaluated task, a sentence that names the questions that are not asked, where there are any."""
    told = {label: bench.left_out(label).describe() for label in bench.evaluated()}
    return {label: f"{sentence}." for label, sentence in told.items() if sentence}


def _write(table: Table, out: Path) -> None:
    for ending, writer in _WRITERS.items():
        write_text(out / "tables" / f"{table.name}{ending}", writer(table), overwrite=True)


def _result(out: Path, label: str, condition: str) -> Evaluation:
    return Evaluation.load(out / "results" / condition / f"{label}.jsonl")


def task_points(bench: Workbench, out: Path, label: str) -> TaskPoints:
    """What every condition scored on one task of the run; CulnigError when they are of different questions."""
    first = _result(out, label, "original")
    points = {}
    for condition in conditions_of(bench, label):
        result = _result(out, label, condition.name)
        if result.ids != first.ids:
            raise CulnigError(f"{condition.name} and original of {label} are of different questions; delete both files")
        points[condition.name] = bench.tasks[label].scores(result)
    return TaskPoints(first.groups, points)
