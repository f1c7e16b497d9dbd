"""The main job on the embedded model: score, select, suppress, evaluate, and the paper's table in miniature."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from culnig_fast.attribution import attribute
from culnig_fast.demo.embedded import task_files
from culnig_fast.evaluation import Evaluation, evaluate
from culnig_fast.files import write_json
from culnig_fast.masking import suppress
from culnig_fast.models import EMBEDDED, load_model
from culnig_fast.neurons import NeuronSet
from culnig_fast.questions import Question
from culnig_fast.selection import select_general, select_random
from culnig_fast.statistics import paired_bootstrap
from culnig_fast.tasks.base import load_task

RANDOM_SEEDS = range(10)


def run_demo(out: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Run every stage at the method's thresholds and write everything under `out`.

    Files: `scores/{neur,control,crc}.safetensors`, `neurons/{general,random-0…9}.json`,
    `results/{original,suppressed}.jsonl` and `demo.json`. Files of an earlier run are replaced.

    Returns:
        what `demo.json` holds: `neurons`, `layers` (neurons a layer), `seconds`, and for each task `original`,
        `suppressed`, `random_mean`, `random_sd` (accuracies in percent) and `p_value` (one-sided paired bootstrap of
        suppressed below the mean of the random sets).
    """
    start = time.perf_counter()
    out = Path(out)
    for folder in ("scores", "neurons", "results"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(EMBEDDED, device="cpu")
    blend, crc, abilities = (_load(task) for task in ("blend", "country_rc", "plain"))

    tables = {}
    for name, task, split in (("neur", blend, "neur"), ("control", blend, "control"), ("crc", crc, "neur")):
        questions = task.questions(split, tokenizer)
        tables[name] = attribute(model, tokenizer, questions, control=split == "control", progress=progress)
        tables[name].save(out / "scores" / f"{name}.safetensors", overwrite=True)
    general = select_general(tables["neur"], control=tables["control"], surface=tables["crc"])
    sets = {"general": general}
    for seed in RANDOM_SEEDS:
        sets[f"random-{seed}"] = select_random(tables["neur"].layout, len(general), seed=seed)
    for name, chosen in sets.items():
        chosen.save(out / "neurons" / f"{name}.json", overwrite=True)

    asked = (
        blend.questions("all", tokenizer),
        crc.questions("test", tokenizer),
        abilities.questions("all", tokenizer),
    )
    questions = [question for part in asked for question in part]
    members = {
        "culture": [q.id for q in asked[0]],
        "culture_test": [q.id for q in blend.questions("test", tokenizer)],
        "crc": [q.id for q in asked[1]],
        **{name: [q.id for q in asked[2] if q.group == name] for name in dict.fromkeys(q.group for q in asked[2])},
    }
    results = _evaluate_all(model, tokenizer, questions, sets, progress)
    for name in ("original", "general"):
        label = "suppressed" if name == "general" else name
        results[name].save(out / "results" / f"{label}.jsonl", overwrite=True)
    result = {
        "neurons": len(general),
        "layers": general.per_layer(model.config.num_hidden_layers),
        "modules": {name: len(general.where([name])) for name in sorted(set(general.module_names))},
        "seconds": round(time.perf_counter() - start, 1),
        "mean_probability": float(results["original"].where(members["culture"]).probability.mean()),
        "tasks": {name: _row(results, ids) for name, ids in members.items()},
    }
    write_json(out / "demo.json", result, overwrite=True)
    return {**result, "folder": str(out)}


def _load(task: str) -> Any:
    source, files = task_files(task)
    return load_task(task, source, files)


def _evaluate_all(
    model: Any, tokenizer: Any, questions: Sequence[Question], sets: dict[str, NeuronSet], progress: bool
) -> dict[str, Evaluation]:
    """The untouched model and each suppressed set, on all questions."""
    results = {}
    conditions = {"original": NeuronSet.empty(), **sets}
    bar = tqdm(conditions.items(), unit="run", desc="evaluating", disable=not progress)
    for name, chosen in bar:
        with suppress(model, chosen):
            results[name] = evaluate(model, tokenizer, questions, progress=False)
    return results


def _row(results: dict[str, Evaluation], ids: Sequence[str]) -> dict[str, float]:
    part = {name: result.where(ids) for name, result in results.items()}
    random = np.stack([part[f"random-{seed}"].correct for seed in RANDOM_SEEDS]).astype(np.float64)
    test = paired_bootstrap(part["general"].correct, random.mean(0))
    means = 100 * random.mean(1)
    return {
        "original": 100 * part["original"].accuracy,
        "suppressed": 100 * part["general"].accuracy,
        "random_mean": float(means.mean()),
        "random_sd": float(means.std(ddof=1)),
        "p_value": test.p_less,
    }


def format_report(result: dict[str, Any]) -> str:
    """The table and the layer distribution as text."""
    lines = [
        f"{result['neurons']} culture-general neurons suppressed, against {len(RANDOM_SEEDS)} random sets as large",
        "",
        f"{'task':14s} {'original':>9s} {'suppressed':>11s} {'random (sd)':>16s} {'p':>8s}",
    ]
    for name, row in result["tasks"].items():
        random = f"{row['random_mean']:.2f} ({row['random_sd']:.2f})"
        lines.append(f"{name:14s} {row['original']:9.2f} {row['suppressed']:11.2f} {random:>16s} {row['p_value']:8.4f}")
    lines += ["", "where they lie:"]
    most = max(1, *result["layers"])
    for layer, count in enumerate(result["layers"]):
        lines.append(f"  layer {layer}  {'█' * round(30 * count / most):30s} {count}")
    lines += [
        "",
        "Accuracies in percent. p: one-sided paired bootstrap of suppressed below random, 10,000 resamples.",
        f"{result['seconds']} s. Everything is under {result['folder']}: scores, neuron sets, results, demo.json.",
    ]
    return "\n".join(lines)
