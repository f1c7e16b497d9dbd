"""A whole comparison on a tiny model: what is written, skipped, continued and refused, and the table by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from command_line import invoke
from wordlevel import make_questions, make_tokenizer

from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import evaluate
from culnig_fast.finetuning import comparison as rooms
from culnig_fast.finetuning.comparison import Plan, compare_modules
from culnig_fast.finetuning.options import TrainingOptions
from culnig_fast.finetuning.table import comparison_record, comparison_table
from culnig_fast.models import load_model
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.questions import Question
from culnig_fast.tables.figures import Drawing

TOKENIZER = make_tokenizer()
NEURONS = NeuronSet(("mlp.gate_proj", "self_attn.k_proj"), np.array([1, 1]), np.array([3, 0]), np.zeros(2))
TARGET = make_questions(10, seed=1)
CULTURE = [Question(f"c{q.id}", q.group, q.prompt, q.answer) for q in make_questions(12, seed=2)]
TRAINING = [
    Question(f"t{q.id}", "g", q.prompt, q.answer) for q in make_questions(20, seed=3, longest=12) if q.id[1:] > "3"
]
DRAWING = Drawing(resamples=200)


def plan(**other: Any) -> Plan:
    given: dict[str, Any] = {
        "model": families.build("llama"),
        "tokenizer": TOKENIZER,
        "model_digest": "m",
        "neurons": NEURONS,
        "training": TRAINING,
        "evaluated": {"target": TARGET, "culture": CULTURE},
        "choices": ("top", "bottom"),
        "share": 0.4,
        "seeds": (0, 1),
        "options": TrainingOptions(rate=2e-2, steps=3, batch=4, accumulate=1, save_steps=2),
    }
    return Plan(**{**given, **other})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Plan]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    made = plan(save=True)
    return out, compare_modules(made, out, progress=False), made


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_model_is_as_before_and_the_results_are_those_of_trained_ones(finished: Any) -> None:
    out, found, made = finished
    original = families.build("llama").state_dict()
    assert all(torch.equal(value, original[name]) for name, value in made.model.state_dict().items())
    fresh = evaluate(made.model, TOKENIZER, TARGET, progress=False)
    np.testing.assert_array_equal(found.before["target"].probability, fresh.probability)
    # The saved model is the one that was evaluated, and differs from the first in the chosen modules alone.
    model, tokenizer = load_model(str(out / "models" / "top-1"), device="cpu")
    again = evaluate(model, tokenizer, CULTURE, progress=False)
    np.testing.assert_allclose(again.probability, found.after["top", 1]["culture"].probability, rtol=1e-6)
    saved = model.state_dict()
    different = {name for name, value in original.items() if not torch.equal(value, saved[name])}
    assert different == {f"{name}.weight" for name in found.choices["top"].names}
    assert not torch.equal(saved[f"{found.choices['top'].names[0]}.weight"],
                           load_model(str(out / "models" / "top-0"), device="cpu")[0].state_dict()[
                               f"{found.choices['top'].names[0]}.weight"])  # fmt: skip


def test_the_folder_holds_what_it_should_and_nothing_else(finished: Any) -> None:
    out, found, _ = finished
    assert found.done == ("before", "top-0", "bottom-0", "top-1", "bottom-1")
    assert {path.name for path in out.iterdir()} == {
        ".lock", "manifest.json", "models", "modules", "results", "training",
    }  # fmt: skip
    record = json.loads((out / "training" / "bottom-1.json").read_text())
    assert record["modules"] == found.choices["bottom"].names and record["steps"] == 3 and record["seed"] == 1


def test_what_is_done_is_skipped_and_seeds_can_be_added(finished: Any) -> None:
    out, _, made = finished
    before = files(out)
    same = compare_modules(replace(made, model=families.build("llama")), out, progress=False)
    assert same.done == () and files(out) == before
    more = compare_modules(replace(made, seeds=(0, 1, 2), choices=("top",)), out, progress=False)
    assert more.done == ("top-2",)
    after = files(out)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: content for name, content in before.items() if name != "manifest.json"
    }
    (out / "results" / "top-2" / "target.jsonl").unlink()
    assert compare_modules(replace(made, seeds=(2,), choices=("top",)), out, progress=False).done == ("top-2",)
    assert files(out) == after


def test_other_settings_do_not_overwrite(finished: Any, tmp_path: Path) -> None:
    out, _, made = finished
    before = files(out)
    with pytest.raises(CulnigError, match=r"holds top-0 with other inputs \(options changed\)"):
        compare_modules(replace(made, options=replace(made.options, rate=1e-3)), out, progress=False)
    with pytest.raises(CulnigError, match=r"holds before with other inputs \(model changed\)"):
        compare_modules(replace(made, model_digest="another"), out, progress=False)
    assert files(out) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CulnigError, match="holds files but no manifest.json"):
        compare_modules(made, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_killed_comparison_goes_on_to_the_same_bytes(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, made = finished
    killed = replace(made, model=families.build("llama"), save=False, seeds=(0,))
    whole = tmp_path / "whole"
    compare_modules(killed, whole, progress=False)
    calls = []

    def dying(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # before, top-0, then bottom-0: trained and not yet evaluated
            raise KeyboardInterrupt
        return evaluating(*arguments)

    evaluating = rooms._evaluate
    monkeypatch.setattr(rooms, "_evaluate", dying)
    with pytest.raises(KeyboardInterrupt):
        compare_modules(killed, tmp_path / "out", progress=False)
    monkeypatch.undo()
    assert list((tmp_path / "out" / "checkpoints").glob("bottom-0-*/checkpoint-2"))
    found = compare_modules(killed, tmp_path / "out", progress=False)
    assert found.done == ("bottom-0",)
    assert files(tmp_path / "out") == files(whole)
    for label, content in files(out / "results" / "bottom-0").items():
        assert (tmp_path / "out" / "results" / "bottom-0" / label).read_bytes() == content


def test_the_table_is_means_over_seeds_and_tests_against_before(finished: Any) -> None:
    _, found, _ = finished
    scores = {label: (lambda e: 100.0 * e.correct) for label in ("target", "culture")}
    table = comparison_table(found, scores, "target", DRAWING)
    assert [name.split(",")[0] for name, _, _ in table.rows] == ["before", "top", "bottom"]
    assert [neurons for _, neurons, _ in table.rows] == [None, 2, 0]
    for row, which in ((1, "top"), (2, "bottom")):
        for column, label in enumerate(scores):
            accuracies = [100 * found.after[which, seed][label].accuracy for seed in (0, 1)]
            cell = table.rows[row][2][column]
            assert cell is not None and cell.n == len(found.before[label].ids)
            assert cell.value == pytest.approx(sum(accuracies) / 2)
            assert cell.sd == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    record = comparison_record(found, scores, "target", DRAWING)
    top, bottom = (np.mean([run["accuracy"]["culture"] for run in record["runs"] if run["modules"] == which])
                   for which in ("top", "bottom"))  # fmt: skip
    assert record["top_minus_bottom"]["culture"]["difference"] == pytest.approx(top - bottom)
    json.dumps(record)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"choices": ()}, "no modules were asked for"),
        ({"choices": ("top", "top")}, "name each choice once"),
        ({"seeds": (0, 0)}, "give different whole numbers"),
        ({"share": 0.01}, "a share of 0.01 holds no module"),
        ({"training": TARGET}, "10 of 10 training questions are evaluated too"),
    ],
)
def test_refused_plans_write_nothing(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match=message):
        compare_modules(plan(**other), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def command(*arguments: object) -> int:
    return invoke("finetune", *arguments)


def test_the_command_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    NEURONS.save(tmp_path / "set.json")
    arguments: list[object] = ["demo", "--target", "membership_long", "--neurons", tmp_path / "set.json",
                 "--share", 0.47, "--modules", "top", "--seeds", "0,1", "--steps", 4, "--batch", 8,
                 "--accumulate", 1, "--rate", 1e-3, "--culture", "membership", "--limit", 20, "--device", "cpu",
                 "--out", tmp_path / "out", "--quiet"]  # fmt: skip
    assert command(*arguments, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["done"] == ["before", "top-0", "top-1"]
    assert list(printed["table"]["rows"][1]["cells"]) == ["membership_long", "membership"]
    assert {path.name for path in (tmp_path / "out" / "tables").iterdir()} == {
        "finetune.csv", "finetune.md", "finetune.tex",
    }  # fmt: skip
    assert command(*arguments) == 0
    shown = capsys.readouterr().out
    assert "0 stages done, 3 already were" in shown and "| before |" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "sports"), "unknown task 'sports'|no task 'sports'"),
        (("--target", "membership", "--modules", "middle"), "--modules middle is unknown; choose from top"),
        (("--target", "membership", "--seeds", "one"), "--seeds one is no list"),
        (("--target", "country_rc", "--split", "train"), "has no split 'train'"),
        (("--target", "membership", "--culture", "membership"), "membership is named twice"),
        (("--target", "membership", "--lora", 0), "lora is 0"),
    ],
)
def test_refused_commands(
    arguments: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    NEURONS.save(tmp_path / "set.json")
    assert command("demo", *arguments, "--neurons", tmp_path / "set.json", "--out", tmp_path / "out", "--quiet") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_questions_without_a_one_token_answer_are_named(tmp_path: Path) -> None:
    words = tuple(TOKENIZER.convert_ids_to_tokens([5, 6]))
    long = Question("long", "g", TARGET[0].prompt, " ".join(words))
    made = plan(
        training=[*TRAINING, replace(long, id="t-long", prompt=TRAINING[0].prompt)],
        evaluated={"target": [*TARGET, long], "culture": CULTURE},
        choices=("top",),
        seeds=(0,),
        on_unusable="skip",
    )
    found = compare_modules(made, tmp_path / "out", progress=False)
    scores: dict[str, Any] = {label: lambda result: result.correct for label in ("target", "culture")}
    record = comparison_record(found, scores, "target", DRAWING)
    assert record["unusable"] == {"training": ["t-long"], "target": ["long"]}
    notes = comparison_table(found, scores, "target", DRAWING).notes
    assert any(note.startswith("target: 1 of 11 questions left out") and "long (" in note for note in notes)
