"""Readers of what a run leaves: analyses as csv, and the folder that the page is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.faults.made import neuron_set
from harness.faults.readers import Reader

_SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><title>t</title><path d="M0 0L5 5"/></svg>'


def _frame() -> Any:
    import pandas as pd

    columns: dict[str, list[Any]] = {
        "set": ["general", "NA"],
        "layer": [0, 1],
        "module": ["mlp.gate_proj", "mlp.up_proj"],
        "neurons": [3, 2],
        "sd": [float("nan"), 0.5],
        "share": [0.6, 0.4],
        "sets": [1, 1],
    }
    return pd.DataFrame(columns)


def _write_frame(folder: Path) -> None:
    from culnig_fast.analysis.frames import save_frame

    save_frame(_frame(), folder / "layers.csv", overwrite=True)


def _read_frame(folder: Path) -> Any:
    from culnig_fast.analysis.frames import load_frame, need

    frame = load_frame(folder / "layers.csv")
    need(frame, ("set", "layer"), "layers")
    return frame


def _write_run(folder: Path) -> None:
    from culnig_fast.analysis.frames import save_frame
    from culnig_fast.tables.table import Cell, Table

    for part in ("tables", "neurons", "analysis", "figures"):
        (folder / part).mkdir(exist_ok=True)
    cells = tuple((row, 3, (Cell(value, 0.5, 90.0),)) for row, value in (("original", 80.0), ("suppressed", 70.0)))
    table = Table("main", "Main", ("blend",), cells, ("note",))
    neuron = {"module_name": "mlp.gate_proj", "layer_idx": 0, "neuron_idx": 1, "attribute_score": 1.5}
    sample = {"id": "q0", "score": 0.5, "probability": 0.25}
    texts: dict[str, Any] = {
        "manifest.json": {"format": "culnig_fast.run/1", "stages": {}},
        "run.json": {"model": {"name": "demo", "layers": 2}, "thresholds": {"min_z": 0.5}, "seeds": [0], "tasks": []},
        "tables/tables.json": {"tables": [table.to_dict()], "tasks": {"blend": ["note"]}},
        "analysis/instances.json": {
            "neurons": [{**neuron, "sets": ["general"], "positive_share": 0.5, "top": [sample], "bottom": [sample]}],
            "questions": {"q0": {"prompt": "?", "answer": "A", "group": "UK"}},
        },
    }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "log.jsonl").write_text(json.dumps({"stage": "scores/neur", "seconds": 1.5}) + "\n")
    (folder / "figures" / "layers.svg").write_text(_SVG)
    neuron_set().save(folder / "neurons" / "general.json", overwrite=True)
    save_frame(_frame(), folder / "analysis" / "layers.csv", overwrite=True)


def _read_run(folder: Path) -> Any:
    from culnig_fast.analysis.catalogue import PLOTS
    from culnig_fast.report.page import render
    from culnig_fast.report.reading import read_run

    return render(read_run(folder), PLOTS)


def run_readers() -> tuple[Reader, ...]:
    """Those of a finished run's folder."""
    return (
        Reader("analysis", _write_frame, _read_frame),
        Reader("run folder", _write_run, _read_run, 0.2),
    )
