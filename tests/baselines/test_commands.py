"""The commands baseline, ablate and convert on a tiny checkpoint, against the functions that they stand for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from command_line import invoke
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.tasks.plain import Plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baselines")
    families.build("llama").save_pretrained(path / "model")
    make_tokenizer().save_pretrained(path / "model")
    with (path / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", "prompt", "answer"])
        for i, question in enumerate(make_questions(9)):
            writer.writerow([f"i{i // 3}/w{i % 3}", ("Spain", "Mexico", "US")[i % 3], question.prompt, question.answer])
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code = invoke(*arguments, "--json")
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)


def on_data(folder: Path) -> tuple[object, ...]:
    return ("--task", "plain", "--data", folder / "questions.csv", "--split", "all", "--quiet", "--device", "cpu")


def load(folder: Path) -> tuple[Any, Any, list[cf.Question]]:
    from culnig_fast.models import load_model

    model, tokenizer = load_model(str(folder / "model"), device="cpu")
    return model, tokenizer, Plain.load(folder / "questions.csv").questions("all", tokenizer)


def test_baselines_end_in_sets_that_can_be_evaluated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = tmp_path / "a.safetensors"
    counted = run(capsys, "baseline", "activations", folder / "model", *on_data(folder), "--out", counters)
    assert counted["samples"] == 9
    table = cf.ActivationTable.load(counters)
    entropy = ("--share", 0.1, "--percentile", 80)
    lape = run(capsys, "baseline", "lape", counters, *entropy, "--merge", "Spanish=Spain,Mexico",
               "--each", tmp_path / "each", "--out", tmp_path / "lape.json")  # fmt: skip
    wanted = cf.select_by_entropy(table.merged({"Spanish": ["Spain", "Mexico"]}), share=0.1, percentile=80)
    assert cf.NeuronSet.load(tmp_path / "lape.json") == wanted.neurons
    assert lape["neurons"] == len(wanted.neurons) > 0
    assert {path.stem: cf.NeuronSet.load(path) for path in (tmp_path / "each").iterdir()} == wanted.by_group
    run(capsys, "baseline", "cape", counters, *entropy, "--exclude", tmp_path / "lape.json",
        "--out", tmp_path / "cape.json")  # fmt: skip
    cape = cf.NeuronSet.load(tmp_path / "cape.json")
    assert len(cape)
    assert not {n[:3] for n in cape} & {n[:3] for n in wanted.neurons}
    like = cf.select_random(table.layout, 30, seed=0)
    like.save(tmp_path / "like.json")
    sizes = [len(like.where([name])) for name in ("mlp.gate_proj",)]
    run(capsys, "baseline", "mean-activation", counters, "--like", tmp_path / "like.json", "--control", counters,
        "--signed", "--out", tmp_path / "mean.json")  # fmt: skip
    assert not cf.NeuronSet.load(tmp_path / "mean.json").scores.any()  # less itself nothing is left
    for command, source in (("mean-activation", counters), ("weight-norm", folder / "model")):
        out = tmp_path / f"{command}.json"
        run(capsys, "baseline", command, source, "--like", tmp_path / "like.json", "--out", out)
        chosen = cf.NeuronSet.load(out)
        assert [len(chosen.where([name])) for name in ("mlp.gate_proj",)] == sizes
        evaluated = run(capsys, "evaluate", folder / "model", *on_data(folder), "--neurons", out)
        assert evaluated["neurons"] == 30


def test_ablate_prints_agreement_and_writes_a_row_a_neuron(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("ablate", folder / "model", *on_data(folder), "--random", 20, "--ig-steps", 4, "--top", 0.2)
    found = run(capsys, *arguments, "--questions", 5, "--out", tmp_path / "x.csv")
    assert found["questions"] == 5
    assert set(found["agreement"]) == {"max", "sum", "ig_4"}
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model, tokenizer, questions = load(folder)
    asked = [questions[i] for i in np.linspace(0, 8, 5).astype(int)]
    names = tuple(row["module_name"] for row in rows)
    layers, columns = ([int(row[key]) for row in rows] for key in ("layer_idx", "neuron_idx"))
    neurons = cf.NeuronSet(names, layers, columns, np.zeros(20))
    effects = cf.ablate(model, tokenizer, asked, neurons, progress=False)
    np.testing.assert_allclose([float(row["effect"]) for row in rows], effects.total / 5, rtol=1e-6, atol=1e-12)
    table = cf.attribute(model, tokenizer, asked, reduction="sum", progress=False)
    want = table.totals.sum(0)[neurons.flat(table.layout)] / 5
    np.testing.assert_allclose([float(row["sum"]) for row in rows], want, rtol=1e-4, atol=1e-10)
    table.save(tmp_path / "own.safetensors")
    neurons.save(tmp_path / "n.json")
    again = run(capsys, "ablate", folder / "model", *on_data(folder), "--neurons", tmp_path / "n.json",
                "--questions", 5, "--scores", tmp_path / "own.safetensors", "--top", 0.2)  # fmt: skip
    assert again["agreement"]["own"]["spearman"] == pytest.approx(found["agreement"]["sum"]["spearman"], abs=1e-9)
    assert invoke(*arguments, "--questions", 2) == 0
    assert "Spearman" in capsys.readouterr().out


def test_scores_as_the_published_program_and_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = ("score", folder / "model", *on_data(folder), "--as-authors")
    found = run(capsys, *score, "--out", tmp_path / "x.safetensors")
    assert found["samples"] == 3  # nine questions on three items
    assert 0 < found["mean_probability"] < 1
    model, tokenizer, questions = load(folder)
    want = cf.attribute_as_authors(model, tokenizer, questions, task="plain", progress=False)
    table = cf.ScoreTable.load(tmp_path / "x.safetensors")
    assert np.array_equal(table.totals, want.totals)
    converted = run(capsys, "convert", tmp_path / "x.safetensors", tmp_path / "x.json")
    assert converted["samples"] == 3
    value = json.loads((tmp_path / "x.json").read_text())
    assert value["dataset_ids"] == {"plain": ["i0", "i1", "i2"]}
    assert value["neuron_scores"]["self_attn.q_proj_0_1"]["Mexico"] == table.row("Mexico")[1]
    run(capsys, "convert", tmp_path / "x.json", tmp_path / "y.safetensors")
    assert np.array_equal(cf.ScoreTable.load(tmp_path / "y.safetensors").totals, table.totals)
    assert invoke(*score, "--padding", "zero", "--out", tmp_path / "z.safetensors") == 1
    assert "leave those out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ablate", "{model}"), "either --neurons or --random"),
        (("ablate", "{model}", "--random", 3, "--out", "x.json"), ".csv"),
        (("ablate", "{model}", "--random", 3, "--top", 0), "--top"),
        (("ablate", "{model}", "--random", 10**6, "--task", "plain", "--data", "{data}", "--split", "all"), "pool of"),
        (("baseline", "lape", "{data}", "--out", "x.json"), "questions.csv"),
        (("baseline", "lape", "{data}", "--merge", "Spanish", "--out", "{data}"), "exists already"),
        (("convert", "{data}", "x.json"), ".safetensors"),
        (("convert", "no.json", "x.safetensors"), "no.json"),
        (("convert", "{data}", "x.safetensors"), "not a whole JSON"),
        (("convert", "no.safetensors", "x.json"), "no.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(
    arguments: tuple[object, ...], words: str, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"model": folder / "model", "data": folder / "questions.csv"}
    assert invoke(*[a.format(**names) if isinstance(a, str) else a for a in arguments]) == 1
    output = capsys.readouterr()
    message = output.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["ablate", "convert", *(f"baseline {x}" for x in
                         ("activations", "lape", "cape", "mean-activation", "weight-norm"))])  # fmt: skip
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*command.split(), "--help") == 0
    assert f"Example: culnig-fast {command}" in " ".join(capsys.readouterr().out.split())
