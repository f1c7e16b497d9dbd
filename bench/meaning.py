"""What a score means: every MLP neuron of the embedded model zeroed one by one, beside its first-order score.

    python bench/meaning.py --json meaning.json

A neuron's score claims to approximate P(y|x) − P(y|x, n = 0). The truth is found by brute force on the same questions
and with the same weights P. Then the accuracy that equal-sized sets chosen by each cost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import culnig_fast as cf
from culnig_fast.baselines.ablation import ablate, agreement
from culnig_fast.demo.embedded import task_files
from culnig_fast.models import load_model
from culnig_fast.tasks.base import load_task

GATE = ("mlp.gate_proj",)


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=96, help="how many of the identification half, evenly spread")
    parser.add_argument("--tokens", type=int, default=16384, help="padded tokens of a brute-force pass")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    model, tokenizer = load_model("demo", device="cpu", dtype="float32")
    source, files = task_files("blend")
    blend = load_task("blend", source, files)
    neur, test = blend.questions("neur", tokenizer), blend.questions("test", tokenizer)
    asked = [neur[i] for i in np.linspace(0, len(neur) - 1, options.questions).astype(int)]
    scores = {}
    for reduction in ("max", "sum"):
        table = cf.attribute(model, tokenizer, asked, sites=GATE, reduction=reduction, progress=False)
        scores[reduction] = table.totals.sum(0)
    layout = table.layout
    every = cf.NeuronSet.from_flat(layout, np.arange(layout.size))  # zeroing the gate zeroes the neuron: act(0)·up = 0
    scores["brute force"] = ablate(model, tokenizer, asked, every, batch_tokens=options.tokens).total
    truth, top = scores["brute force"], max(1, layout.size // 100)
    best = {name: np.argsort(-value, kind="stable") for name, value in scores.items()}
    original = cf.evaluate(model, tokenizer, test, progress=False).accuracy
    rows = []
    for name, value in scores.items():
        match = agreement(value, truth, top)
        row = {"chosen_by": name, "spearman": match.spearman, "top_1_percent_overlap": match.overlap}
        for share in (0.01, 0.03, 0.05):
            chosen = cf.NeuronSet.from_flat(layout, best[name][: int(layout.size * share)])
            with cf.suppress(model, chosen):
                accuracy = cf.evaluate(model, tokenizer, test, progress=False).accuracy
            row[f"culture_test_change_at_{share:.0%}"] = 100 * (accuracy - original)
        rows.append(row)
        print("  ".join(f"{key} {cell if isinstance(cell, str) else round(cell, 3)}" for key, cell in row.items()))
    if options.json:
        record = {"questions": len(asked), "neurons": layout.size, "original": 100 * original, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
