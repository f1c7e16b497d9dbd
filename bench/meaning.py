"""What a score means: every MLP neuron of the embedded model zeroed one by one, beside its first-order score.

    python bench/meaning.py --json meaning.json

A neuron's score claims to approximate P(y|x) − P(y|x, n = 0). The truth is found by brute force on the same questions
and with the same weights P. Then the accuracy that equal-sized sets chosen by each cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import culnig_fast as cf
from culnig_fast.batching import make_batch, plan_batches
from culnig_fast.demo.embedded import task_files
from culnig_fast.last_position import LastPosition
from culnig_fast.models import load_model
from culnig_fast.questions import encode_questions
from culnig_fast.tasks.base import load_task

GATE = ("mlp.gate_proj",)


def brute_force(model: Any, tokenizer: Any, questions: Sequence[cf.Question], rows: int) -> np.ndarray:
    """Σ_q P_q · (P_q − P_q without the neuron) of every gate neuron, float64 [neurons], flat order.

    Zeroing the gate zeroes the MLP neuron: act(0) · up = 0. Many neurons share a batch, each row with its own mask.
    """
    encoded = encode_questions(tokenizer, questions)
    layers, width = model.config.num_hidden_layers, model.config.intermediate_size
    effect = np.zeros(layers * width)
    head = LastPosition(model, model.get_output_embeddings())
    answers = torch.tensor(encoded.answers)
    bar = tqdm(total=layers * width * len(encoded.questions), unit="ablation", desc="zeroing one by one")
    with torch.no_grad(), bar:
        for index in plan_batches([len(t) for t in encoded.token_ids], 512):
            batch = make_batch(encoded.token_ids, index, torch.device("cpu"))
            gold = answers[index]

            def probability(ids: torch.Tensor, lengths: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
                return torch.softmax(head.logits(ids, lengths), -1).gather(1, gold[:, None])[:, 0].double()

            plain = probability(batch.input_ids, batch.lengths, gold)
            together = max(1, rows // len(index))
            for layer in range(layers):
                for first in range(0, width, together):
                    columns = torch.arange(first, min(first + together, width))
                    mask = torch.ones(len(columns), 1, 1, width)
                    mask[torch.arange(len(columns)), 0, 0, columns] = 0
                    mask = mask.expand(-1, len(index), 1, width).reshape(-1, 1, width)
                    gate = model.model.layers[layer].mlp.gate_proj
                    hook = gate.register_forward_hook(lambda m, a, output, mask=mask: output * mask)
                    repeat = len(columns)
                    p = probability(
                        batch.input_ids.repeat(repeat, 1), batch.lengths.repeat(repeat), gold.repeat(repeat)
                    )
                    hook.remove()
                    drop = (plain * (plain - p.view(repeat, -1))).sum(1)
                    effect[layer * width + columns.numpy()] += drop.numpy()
                    bar.update(len(columns) * len(index))
    head.remove()
    return effect


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=96, help="how many of the identification half, evenly spread")
    parser.add_argument("--rows", type=int, default=512, help="rows of a brute-force batch")
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
    scores["brute force"] = brute_force(model, tokenizer, asked, options.rows)
    truth, top = scores["brute force"], max(1, layout.size // 100)
    best = {name: np.argsort(-value, kind="stable") for name, value in scores.items()}
    original = cf.evaluate(model, tokenizer, test, progress=False).accuracy
    rows = []
    for name, value in scores.items():
        row = {
            "chosen_by": name,
            "spearman": float(spearmanr(value, truth).statistic),
            "top_1_percent_overlap": len({*best[name][:top]} & {*best["brute force"][:top]}) / top,
        }
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
