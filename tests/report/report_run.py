"""A finished run's folder made by hand, with texts that try to become markup."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.tables.table import Cell, Table
from culnig_fast.tables.writing import to_csv

SCRIPT = "</script><script>window.ran = 1</script>"
PICTURE = '"><img src=x onerror="window.ran = 2">'
HOSTILE = f"{SCRIPT} {PICTURE} <!-- & \u2028 ]]>"

DRAWING = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="240pt" height="120pt" viewBox="0 0 240 120"
 xmlns="http://www.w3.org/2000/svg" version="1.1">
 <metadata><about xmlns="http://example.org/about" resource="http://example.org"/></metadata>
 <defs><style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style></defs>
 <defs><clipPath id="c1"><rect x="0" y="0" width="240" height="120"/></clipPath><path id="m1" d="M 0 0 L 9 0"/></defs>
 <g id="axes_1"><path d="M 10 10
 L 200 90" clip-path="url(#c1)" style="fill: none; stroke: #0072b2; stroke-width: 2"/>
 <use xlink:href="#m1" x="20" y="40" style="stroke: #000000"/>
 <text x="5" y="100" style="font: 10px 'DejaVu Sans', sans-serif; text-anchor: start">0 &lt; 1</text></g>
</svg>
"""


@dataclass(frozen=True)
class Plot:
    """What the page asks of a plot."""

    title: str
    caption: str

    def describe(self, frame: pd.DataFrame) -> str:
        """How many rows and what they add up to."""
        return f"{len(frame)} layers with {frame['neurons'].sum()} neurons."


PLOTS = {
    "layers": Plot("Neurons by layer", f"How many. {PICTURE}"),
    "scores": Plot("Scores", "Drawn from the same numbers."),
    "never": Plot("Not in the folder", "Nothing of it is there."),
}


def neuron_set(rows: list[tuple[str, int, int, float]], **info: Any) -> NeuronSet:
    """A set of (module, layer, column, score)."""
    names, layers, columns, scores = zip(*rows, strict=True)
    return NeuronSet(names, np.array(layers), np.array(columns), np.array(scores), info)


GENERAL = [("mlp.gate_proj" if i % 3 else "self_attn.k_proj", i % 4, 7 * i, 0.5 / (i + 1)) for i in range(120)]
MEXICO = [*GENERAL[:2], ("mlp.gate_proj", 3, 5, 0.25)]
SETS = {
    "random-10": [("mlp.gate_proj", 2, 9, 0.0)],
    "random-2": [("mlp.gate_proj", 0, 9, 0.0)],
    "specific-South_Korea": [("self_attn.q_proj", 1, 1, -0.125)],
    "specific-Mexico": MEXICO,
    "general": GENERAL,
    "lape": [("mlp.gate_proj", 1, 900, 0.75)],
}


def tables() -> list[Table]:
    """A main table, one with an empty cell, one by country."""
    main = Table(
        "main",
        f"Accuracy {PICTURE}",
        ("blend", SCRIPT),
        (
            ("original", None, (Cell(80.0, 78.0, 82.0, n=40), Cell(60.0))),
            ("ours", 1234, (Cell(60.25, 58.0, 62.0, p=0.0001, p_holm=0.0002, bold=True), Cell(61.0, p_holm=0.5))),
            ("random", 1234, (Cell(79.5, sd=0.5), Cell(60.5, sd=0.25))),
        ),
        (f"A note {SCRIPT}",),
    )
    further = Table("enhanced", "Doubled", ("blend",), (("original", None, (None,)), ("ours", 3, (Cell(1.0),))))
    country = Table("countries-blend", "By country", ("Mexico", "Iran"), (("all", 5, (Cell(1.0), Cell(-2.5))),))
    return [main, further, country]


def instances() -> dict[str, Any]:
    """Samples of the first three general neurons."""
    questions = {
        f"q{i}": {"prompt": f"Question {i}?\n{HOSTILE if i == 0 else ''}", "answer": "B", "group": "Mexico"}
        for i in range(4)
    }
    neurons = [
        {
            "module_name": module,
            "layer_idx": layer,
            "neuron_idx": column,
            "attribute_score": score,
            "sets": ["general"],
            "positive_share": 0.25 + 0.125 * i,
            "top": [{"id": "q0", "score": 0.5, "probability": 0.75}, {"id": "q1", "score": 0.25, "probability": 0.5}],
            "bottom": [{"id": "q3", "score": -0.5, "probability": 0.125}],
        }
        for i, (module, layer, column, score) in enumerate(GENERAL[:3])
    ]
    return {"neurons": neurons, "questions": questions}


def facts() -> dict[str, Any]:
    """`run.json`."""
    return {
        "model": {"name": f"tiny {PICTURE}", "dtype": "float32", "layers": 4},
        "tasks": [
            {
                "label": "blend",
                "task": "blend",
                "data": "x.jsonl",
                "split": "test",
                "questions": 1536,
                "left_out": ["q7", "q9"],
            }
        ],
        "thresholds": {"mlp_share": 0.01},
        "countries": ["Mexico", "South Korea"],
        "seeds": [2, 10],
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "samples": {"neur": 1536, "crc": 800},
        "neurons": {"general": 120},
    }


def bare_run(folder: Path) -> Path:
    """A run's folder of which nothing is done."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"format": "culnig_fast.run/1", "stages": {}}))
    return folder


def whole_run(folder: Path) -> Path:
    """A run's folder with everything."""
    bare_run(folder)
    for name in ("neurons", "tables", "analysis", "figures"):
        (folder / name).mkdir()
    (folder / "run.json").write_text(json.dumps(facts()))
    stages = [("scores/neur", 61.5), ("results/a/blend", 9.0), ("results/b/blend", 2.0), ("results/a/blend", 1.0)]
    lines = [json.dumps({"stage": name, "why": "", "seconds": s, "ended": "x"}) for name, s in stages]
    (folder / "log.jsonl").write_text("\n".join(lines) + '\n{"stage": "cut o')
    for name, rows in SETS.items():
        neuron_set(rows).save(folder / "neurons" / f"{name}.json")
    made = tables()
    summary = {"tables": [table.to_dict() for table in made], "tasks": {"blend": [f"Counted. {PICTURE}"]}}
    (folder / "tables" / "tables.json").write_text(json.dumps(summary))
    for table in made:
        (folder / "tables" / f"{table.name}.csv").write_text(to_csv(table))
    published = Table("published", "", ("blend",), (("original, published", None, (Cell(64.22),)),))
    (folder / "tables" / "published.csv").write_text(to_csv(published))
    for name in ("layers", "scores"):
        (folder / "analysis" / f"{name}.csv").write_bytes(
            f"layer,neurons,note\r\n0,9,é\r\n1,4,0.123456789\r\n2,0,{SCRIPT}\r\n".encode()
        )
        (folder / "figures" / f"{name}.svg").write_text(DRAWING)
    (folder / "analysis" / "instances.json").write_text(json.dumps(instances()))
    return folder
