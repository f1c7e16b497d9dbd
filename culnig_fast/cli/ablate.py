"""`ablate`: neurons zeroed one by one, beside what scores foretell."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import (
    BatchTokens,
    Data,
    Device,
    Dtype,
    Json,
    Model,
    Overwrite,
    Quiet,
    SkipUnusable,
    Split,
    Task,
    Topics,
    Trust,
    load_model_and_tokenizer,
    load_questions,
    report,
)
from culnig_fast.errors import CulnigError
from culnig_fast.files import check_output


@app.command(
    epilog="Example: culnig-fast ablate demo --data demo --questions 48 --site mlp.gate_proj --random 200 "
    "--ig-steps 8 --out ablation.csv"
)
def ablate(
    model: Model,
    task: Task = "blend",
    data: Data = None,
    topics: Topics = None,
    split: Split = "neur",
    questions: Annotated[Optional[int], typer.Option(min=1, help="How many, evenly spread; default: all.")] = None,
    neurons: Annotated[Optional[Path], typer.Option(help="Neuron set to zero one by one.")] = None,
    random: Annotated[Optional[int], typer.Option(min=1, help="So many neurons drawn at random instead.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    site: Annotated[
        Optional[list[str]], typer.Option("--site", help="With --random: module to draw from; default: gate.")
    ] = None,
    scores: Annotated[
        Optional[list[Path]],
        typer.Option(help="Score table to compare with, repeatable; default: max and sum, made here."),
    ] = None,
    ig_steps: Annotated[int, typer.Option(min=0, help="Also integrated gradients of so many steps.")] = 0,
    top: Annotated[float, typer.Option(help="Share of the neurons whose overlap is counted.")] = 0.05,
    out: Annotated[Optional[Path], typer.Option(help="A row a neuron (.csv).")] = None,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = "auto",
    skip_unusable: SkipUnusable = False,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Zero neurons one by one and compare with first-order scores.

    A neuron's effect is Σ P·(P − P without it), in the mean over questions; scores are the same to first order.
    """
    if (neurons is None) == (random is None):
        raise CulnigError("say which neurons to zero: give either --neurons or --random")
    if not 0 < top <= 1:
        raise CulnigError(f"--top is a share of the neurons between 0 and 1, not {top}")
    if out is not None:
        check_output(out, overwrite)
        if out.suffix != ".csv":
            raise CulnigError(f"{out} must end in .csv")
    loaded, tokenizer = load_model_and_tokenizer(model, dtype, device, trust_remote_code)
    import numpy as np

    from culnig_fast.architecture import discover
    from culnig_fast.baselines.ablation import ablate as run_ablation
    from culnig_fast.baselines.ablation import agreement
    from culnig_fast.neuron_sets import NeuronSet
    from culnig_fast.selection.pools import mlp_modules_of
    from culnig_fast.selection.rules import select_random

    asked = load_questions(task, data, topics, split, tokenizer)
    if questions is not None:
        asked = [asked[i] for i in np.linspace(0, len(asked) - 1, min(questions, len(asked))).astype(int)]
    if neurons is not None:
        chosen = NeuronSet.load(neurons)
    else:
        architecture = discover(loaded)
        pool = site or mlp_modules_of(architecture.layout())
        chosen = select_random(architecture.layout(pool), random or 0, seed=seed, module_names=pool)
    options: dict[str, Any] = {
        "batch_tokens": batch_tokens,
        "on_unusable": "skip" if skip_unusable else "error",
        "progress": not quiet,
    }
    columns = _scores(loaded, tokenizer, asked, chosen, scores or [], ig_steps, options)
    result = run_ablation(loaded, tokenizer, asked, chosen, **options)
    count = max(1, round(top * len(chosen)))
    rows = {name: agreement(values, result.total, count) for name, values in columns.items()}
    samples = len(result.ids)
    if out is not None:
        _save(out, overwrite, chosen, {name: v / samples for name, v in {"effect": result.total, **columns}.items()})
    summary: dict[str, Any] = {
        "neurons": len(chosen),
        "questions": samples,
        "left_out": list(result.unusable),
        "mean_probability": float(result.probability.sum() / samples),
        "mean_effect": float(result.total.mean() / samples),
        "largest_effect": float(result.total.max() / samples),
        "agreement": {name: asdict(row) for name, row in rows.items()},
    }
    report(as_json, {**summary, "out": None if out is None else str(out)}, _text(summary))


def _scores(
    model: Any, tokenizer: Any, asked: Any, chosen: Any, files: list[Path], steps: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Scores of the chosen neurons by the names of their columns, each float64 [n]."""
    from culnig_fast.attribution import attribute
    from culnig_fast.baselines.ablation import scores_of
    from culnig_fast.baselines.path import integrated_gradients
    from culnig_fast.scores import ScoreTable

    sites = sorted(set(chosen.module_names))
    tables = {}
    for path in files:
        if path.stem in tables:
            raise CulnigError(f"two score tables are called {path.stem}; rename one")
        tables[path.stem] = ScoreTable.load(path)
    if not files and sites:
        for reduction in ("max", "sum"):
            tables[reduction] = attribute(model, tokenizer, asked, sites=sites, reduction=reduction, **options)
    if steps and sites:
        tables[f"ig_{steps}"] = integrated_gradients(model, tokenizer, asked, steps=steps, sites=sites, **options)
    return {name: scores_of(table, chosen) for name, table in tables.items()}


def _save(out: Path, overwrite: bool, chosen: Any, columns: dict[str, Any]) -> None:
    import csv

    from culnig_fast.files import atomic_write

    with atomic_write(out, overwrite) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["module_name", "layer_idx", "neuron_idx", *columns])
        for i, neuron in enumerate(chosen):
            writer.writerow([*neuron[:3], *(repr(float(values[i])) for values in columns.values())])


def _text(summary: dict[str, Any]) -> str:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = [
        f"{summary['neurons']:,} neurons zeroed one by one on {summary['questions']:,} questions: mean effect "
        f"{summary['mean_effect']:.3g}, largest {summary['largest_effect']:.3g} "
        f"(mean P {summary['mean_probability']:.3f})",
        f"{'score':24s} {'Spearman':>9s} {'Pearson':>9s} {'overlap of the top':>20s}",
    ]
    for name, row in summary["agreement"].items():
        overlap = f"{row['overlap']:.0%} of {row['top']}"
        lines.append(f"{name:24s} {cell(row['spearman']):>9s} {cell(row['pearson']):>9s} {overlap:>20s}")
    return "\n".join(lines)
