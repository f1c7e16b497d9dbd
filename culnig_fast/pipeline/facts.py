"""`run.json`: what was run, on what and with what, for people and for the report page."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from culnig_fast.files import write_json
from culnig_fast.pipeline.config import TaskConfig
from culnig_fast.pipeline.identification import TABLES, load_set, load_table, sets
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.version import __version__

NAME = "run.json"


def known(bench: Workbench) -> dict[str, Any]:
    """What is known before anything is computed; no paths, so that a run's bytes do not depend on where it lies."""
    import numpy
    import torch
    import transformers

    config = bench.config
    return {
        "model": {"name": _last(config.model.name), "digest": bench.model_digest},
        "tasks": [
            {
                "label": task.label,
                "task": task.task,
                "data": None if task.data is None else _last(task.data),
                "split": bench.evaluated().get(task.label),
                **_asked(bench, task),
            }
            for task in config.tasks
        ],
        "scoring": asdict(config.scoring),
        "thresholds": asdict(config.thresholds),
        "countries": list(config.countries),
        "seeds": list(config.seeds),
        "analyses": asdict(config.analyses),
        "device": bench.device,
        "versions": {
            "culnig_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
        },
    }


def write(bench: Workbench, out: Path) -> None:
    """Write `run.json`: `known`, and what the tables and sets turned out to be."""
    value = known(bench)
    tables = {name: load_table(out, name) for name in TABLES}
    of_model = tables["neur"].metadata
    value["model"] |= {
        "class": of_model.get("model_class"),
        "dtype": of_model.get("dtype"),
        "attention": of_model.get("attention"),
        "neurons": tables["neur"].layout.size,
        "layers": len(tables["neur"].layout.layers),
    }
    value["fusion"] = of_model.get("fusion")
    value["samples"] = {name: table.n_samples for name, table in tables.items()}
    value["unusable"] = {name: len(table.metadata.get("unusable", [])) for name, table in tables.items()}
    value["neurons"] = {name: len(load_set(out, name)) for name in sets(bench.config)}
    write_json(out / NAME, value, overwrite=True)


def _asked(bench: Workbench, task: TaskConfig) -> dict[str, Any]:
    """How many questions of a task are asked, and the ids of those whose answer is not one token."""
    if not task.evaluate:
        return {"questions": 0, "left_out": []}
    split = bench.left_out(task.label)
    return {"questions": len(split.usable), "left_out": [question.id for question in split.unusable]}


def _last(name: str) -> str:
    """The last part of a path; a hub id whole."""
    return Path(name).name if Path(name).exists() else name
