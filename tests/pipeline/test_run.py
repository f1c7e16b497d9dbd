"""A run: the same as its stages by hand, skipped when done, repeated when changed, continued when killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from small_run import config, contents

import culnig_fast as cf
from culnig_fast.errors import CulnigError
from culnig_fast.models import load_model
from culnig_fast.pipeline.digests import code_files
from culnig_fast.pipeline.run import Step, outlook, run
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.tables.figures import Drawing, TaskPoints, main_table

ALL = ("lape", "cape", "mean-activation", "weight-norm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    steps = run(config(folder, baselines=list(ALL)), progress=False)
    assert all(step.why == "not done yet" for step in steps)
    return folder / "out"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """Its copy, to be run again with other configs."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path


def done(steps: list[Step]) -> dict[str, str]:
    return {step.stage.name: step.why for step in steps if step.why is not None}


def test_it_is_what_the_stages_are_by_hand(whole: Path, tmp_path: Path) -> None:
    bench = Workbench(config(tmp_path), progress=False)
    model, tokenizer = load_model("demo", device="cpu")
    neur, control, crc = (
        cf.attribute(
            model, tokenizer, bench.questions(label, split), control=split == "control", batch_tokens=1024,
            progress=False,
        )
        for label, split in (("blend", "neur"), ("blend", "control"), ("country_rc", "neur"))
    )  # fmt: skip
    assert (cf.ScoreTable.load(whole / "scores/neur.safetensors").totals == neur.totals).all()
    general = cf.select_general(neur, control, crc)
    sets = {
        "original": (cf.NeuronSet.empty(), 0),
        "suppressed": (general, 0),
        "enhanced": (general, 2),
        "mlp": (general.where(["mlp.gate_proj"]), 0),
        "attention": (general.where(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), 0),
        "random-1": (cf.select_random(neur.layout, len(general), seed=1), 0),
        "specific-USA": (cf.select_specific(neur, control, crc, "USA"), 0),
    }
    assert len(general) > 0
    for name, (chosen, factor) in sets.items():
        with cf.scaled(model, chosen, factor):
            expected = cf.evaluate(
                model, tokenizer, bench.questions("blend", "test"), batch_tokens=1024, progress=False
            )
        found = cf.Evaluation.load(whole / "results" / name / "blend.jsonl")
        assert found.ids == expected.ids
        assert found.predictions == expected.predictions
        assert (found.probability == expected.probability).all(), name  # to the last bit


def test_the_tables_are_read_off_the_results(whole: Path) -> None:
    table = json.loads((whole / "tables/tables.json").read_text())["tables"][0]
    assert table["rows"][0]["row"] == "original"
    points = {}
    for path in (whole / "results").glob("*/pick.jsonl"):
        points[path.parent.name] = 100.0 * cf.Evaluation.load(path).correct
    neurons = len(cf.NeuronSet.load(whole / "neurons/general.json"))
    groups = ("pick",) * len(points["original"])
    drawn = main_table({"pick": TaskPoints(groups, points)}, (0, 1), {"suppressed": neurons}, Drawing(200))
    expected = [row["cells"]["pick"]["value"] for row in drawn.to_dict()["rows"]]
    assert [row["cells"]["pick"]["value"] for row in table["rows"]] == expected
    names = {path.stem for path in (whole / "tables").glob("*.tex")}
    assert names == {"main", "enhanced", "ablation", "baselines", "countries-blend", "countries-country_rc"}
    # Specific sets are evaluated where groups are countries, and only there.
    assert not (whole / "results/specific-Iran/pick.jsonl").exists()
    assert (whole / "results/specific-Iran/country_rc.jsonl").exists()


def test_done_stages_are_skipped_without_loading_the_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy / "out")
    monkeypatch.setattr("culnig_fast.pipeline.workbench.load_model", lambda *a, **k: pytest.fail("weights were loaded"))
    assert done(run(config(copy, baselines=list(ALL)), progress=False)) == {}
    assert contents(copy / "out") == before


def test_what_changed_is_done_again_and_nothing_else(copy: Path) -> None:
    def again(**changes: Any) -> dict[str, str]:
        return done(run(config(copy, **{"baselines": list(ALL), **changes}), progress=False))

    more = again(seeds=3)
    assert {"neurons/random-2", "results/random-2/pick", "tables"} <= set(more)
    assert not any(name.startswith(("scores", "results/suppressed")) for name in more)
    assert set(again(bootstrap={"resamples": 100})) == {
        "tables",
        "analysis",
        "facts",
    }  # two seeds again: their results are still there
    other = again(thresholds={"specific_share": 0.01}, bootstrap={"resamples": 100})
    assert set(other) >= {"neurons/specific-Iran", "results/specific-Iran/blend", "tables"}
    assert not any(name.startswith(("scores", "neurons/general", "results/suppressed")) for name in other)


def test_other_rows_of_a_file_are_noticed(copy: Path) -> None:
    tasks = {
        "blend": {"data": "demo", "limit": 3},
        "country_rc": {"data": "demo", "limit": 2},
        "pick": {"data": "demo", "limit": 13},
    }
    changed = done(run(config(copy, baselines=list(ALL), tasks=tasks), progress=False))
    results = {name for name in changed if name not in ("tables", "analysis", "facts")}
    assert results
    assert {name.split("/")[2] for name in results} == {"pick"}
    assert {changed[name] for name in results} == {"questions changed"}


def test_questions_that_are_not_asked_are_counted_and_named(copy: Path) -> None:
    rows = [
        {"id": f"a{answer}", "group": "g", "prompt": "the answer is", "answer": answer} for answer in ("A", "B", "10")
    ]
    (copy / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {
        "blend": {"data": "demo", "limit": 3},
        "country_rc": {"data": "demo", "limit": 2},
        "own": {"task": "plain", "data": "rows.jsonl"},
    }
    run(config(copy, tasks=tasks), progress=False)
    told = json.loads((copy / "out/run.json").read_text())["tasks"]
    assert [(task["questions"], task["left_out"]) for task in told if task["label"] == "own"] == [(2, ["a10"])]
    assert all(task["left_out"] == [] for task in told if task["label"] != "own")
    sentence = "1 of 3 questions left out, their answer is not one token: a10 ('10')."
    assert f"own: {sentence}" in (copy / "out/tables/main.md").read_text()
    assert json.loads((copy / "out/tables/tables.json").read_text())["tasks"]["own"] == [sentence]


def test_another_way_of_scoring_scores_again(copy: Path) -> None:
    scoring = {"reduction": "sum", "positions": "content"}
    again = done(run(config(copy, baselines=list(ALL), scoring=scoring), progress=False))
    assert {"scores/neur", "scores/control", "scores/crc", "instances"} <= set(again)
    assert "activations" not in again
    for name in ("neur", "control", "crc"):
        table = cf.ScoreTable.load(copy / f"out/scores/{name}.safetensors")
        assert (table.metadata["reduction"], table.metadata["positions"]) == ("sum", "content")
    from culnig_fast.instances import InstanceTable

    assert InstanceTable.load(copy / "out/instances/sum.safetensors").metadata["reduction"] == "sum"
    assert json.loads((copy / "out/run.json").read_text())["scoring"] == scoring


def test_thresholds_that_nothing_passes_end_the_run_before_it_evaluates(copy: Path) -> None:
    narrow = config(copy, baselines=list(ALL), thresholds={"mlp_share": 0.0, "attention_share": 0.0})
    before = contents(copy / "out")
    with pytest.raises(CulnigError, match=r"nothing to evaluate; raise thresholds\.mlp_share"):
        run(narrow, progress=False)
    assert contents(copy / "out") == before


def test_altered_and_missing_outputs_are_made_again(copy: Path) -> None:
    before = contents(copy / "out")
    (copy / "out/results/mlp/pick.jsonl").write_text("{}\n")
    (copy / "out/neurons/general.json").unlink()
    redone = done(run(config(copy, baselines=list(ALL)), progress=False))
    assert redone == {
        "results/mlp/pick": "results/mlp/pick.jsonl was altered",
        "neurons/general": "neurons/general.json is gone",
    }  # the set came out the same, so nothing that reads it is done again
    assert contents(copy / "out") == before


def test_a_stage_answers_for_all_code_it_runs() -> None:
    scoring = set(code_files("culnig_fast.attribution"))
    assert {"culnig_fast.attribution", "culnig_fast.probing.layer", "culnig_fast.batching"} <= scoring
    assert any(name.startswith("culnig_kernels/") for name in scoring)
    assert "culnig_fast.masking" not in scoring
    assert "culnig_fast.selection.ranking" in code_files("culnig_fast.selection.rules")


def test_the_outlook_writes_nothing(copy: Path, tmp_path: Path) -> None:
    fresh = config(tmp_path, out="new", baselines=list(ALL))
    steps = list(outlook(Workbench(fresh, progress=False)))
    assert done(steps)["scores/neur"] == "not done yet"
    assert done(steps)["neurons/general"] == "after scores/neur"
    assert not (tmp_path / "new").exists()
    assert done(list(outlook(Workbench(config(copy, baselines=list(ALL)), progress=False)))) == {}


def test_refusals(whole: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(CulnigError, match="other holds files but no manifest.json"):
        run(config(tmp_path, out="other"), progress=False)
    with pytest.raises(CulnigError, match="nothing says whose published figures belong to this run"):
        run(config(tmp_path, out="new"), compare=True, progress=False)
    (copy / "out/manifest.json").write_text("[]")
    with pytest.raises(CulnigError, match="is not the manifest of a run"):
        run(config(copy), progress=False)
    with (whole / ".lock").open("w") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CulnigError, match="another run is at work"):
            run(config(tmp_path, out=str(whole)), progress=False)


def _killed_at(folder: Path, moment: int) -> None:
    """Runs until the `moment`-th file is renamed or batch is run, and is gone without a word."""
    import torch

    count = 0

    def wrapped(work: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args, **kwargs)

        return step

    Path.replace = wrapped(Path.replace)  # type: ignore[method-assign]
    torch.log_softmax = wrapped(torch.log_softmax)  # type: ignore[assignment]
    run(config(folder, baselines=list(ALL)), progress=False)
    (folder / "moments").write_text(str(count))


def _in_a_process_of_its_own(folder: Path, moment: int) -> int | None:
    # Forked: a new interpreter would spend most of its life importing.
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(folder, moment))
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_random_moments_and_continued_it_leaves_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    # Batches and renames of the whole run: three tables' batches and checkpoints, then two renames a stage and more.
    stages = len(json.loads((whole / "manifest.json").read_text())["stages"])
    generator = random.Random(5)
    # Each start continues, so the moments add up; the first lies within scoring, before any stage is done.
    for moment in (generator.randrange(2, 8), generator.randrange(10, stages), generator.randrange(stages, 2 * stages)):
        assert _in_a_process_of_its_own(tmp_path, moment) == -signal.SIGKILL
    assert contents(tmp_path / "out") != contents(whole)
    assert _in_a_process_of_its_own(tmp_path, -1) == 0
    assert contents(tmp_path / "out") == contents(whole)
