"""The commands on a tiny mixture's checkpoint, each against the function that it stands for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from command_line import invoke
from moe_checks import QUESTIONS, TOKENIZER

import culnig_fast as cf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    families.build("qwen3_moe").save_pretrained(path / "model")
    TOKENIZER.save_pretrained(path / "model")
    with (path / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", "prompt", "answer"])
        writer.writerows([q.id, q.group, q.prompt, q.answer] for q in QUESTIONS)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code = invoke(*arguments, "--json")
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)


def test_from_a_checkpoint_to_sets_ablations_and_modules(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder / "model"
    data = ("--task", "plain", "--data", folder / "questions.csv", "--split", "all", "--quiet", "--device", "cpu")
    for name, more in (("whole", ("--recompute",)), ("streamed", ("--stream",))):
        run(capsys, "score", model, *data, *more, "--out", tmp_path / f"{name}.safetensors")
    whole, streamed = (cf.ScoreTable.load(tmp_path / f"{name}.safetensors") for name in ("whole", "streamed"))
    assert whole.layout == streamed.layout and np.array_equal(whole.totals, streamed.totals)

    run(capsys, "baseline", "activations", model, *data, "--out", tmp_path / "a.safetensors")
    lape = run(capsys, "baseline", "lape", tmp_path / "a.safetensors", "--share", 0.1, "--percentile", 70,
               "--out", tmp_path / "lape.json")  # fmt: skip
    chosen = cf.NeuronSet.load(tmp_path / "lape.json")
    assert lape["neurons"] == len(chosen) > 0 and set(chosen.module_names) == {"mlp.experts.gate_proj"}
    run(capsys, "baseline", "weight-norm", model, "--like", tmp_path / "lape.json", "--out", tmp_path / "norm.json")
    assert len(cf.NeuronSet.load(tmp_path / "norm.json")) == len(chosen)

    found = run(capsys, "ablate", model, *data, "--random", 8, "--ig-steps", 2, "--questions", 3,
                "--out", tmp_path / "ablated.csv")  # fmt: skip
    assert set(found["agreement"]) == {"max", "sum", "ig_2"} and found["neurons"] == 8
    with (tmp_path / "ablated.csv").open(newline="") as file:
        assert {row["module_name"] for row in csv.DictReader(file)} == {"mlp.experts.gate_proj"}

    ranked = run(capsys, "modules", model, "--neurons", tmp_path / "lape.json", "--share", 0.5)
    assert any(name.endswith("mlp.experts") for name in ranked["target_modules"])
    planned = run(capsys, "plan", model)
    assert planned["scored"] == whole.layout.size
    assert planned["mixture"]["experts"] == 6
