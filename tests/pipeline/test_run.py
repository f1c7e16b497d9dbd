"""A whole run on the embedded model, small: what it writes, what it skips, and that being killed changes no byte."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import culnig_fast as cf
from culnig_fast import cli
from culnig_fast.evaluation import Evaluation, prepare
from culnig_fast.models import load_model
from culnig_fast.pipeline.config import load_config, presets
from culnig_fast.pipeline.run import run
from culnig_fast.statistics import holm, paired_bootstrap

SMALL: dict[str, Any] = {
    "model": {"name": "demo", "device": "cpu"},
    "tasks": {
        "blend": {"data": "demo", "limit": 3},
        "country_rc": {"data": "demo", "limit": 4},
        "pick": {"data": "demo", "limit": 12},
    },
    "thresholds": {"mlp_share": 0.02, "attention_share": 0.01, "specific_share": 0.02, "surface_share": 0.005},
    "countries": ["Mexico", "USA"],
    "seeds": 3,
    "baselines": ["lape", "weight-norm"],
    "bootstrap": {"resamples": 500},
    "checkpoint_seconds": 0,
}


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / f"config-{len(list(folder.glob('config-*')))}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "out": "run", **changes}))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the log, which tells the time."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("log.jsonl", ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    steps = run(load_config(write_config(folder)), progress=False)
    assert all(step.why == "not done yet" for step in steps)
    return folder / "run"


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def invoke(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["culnig-fast", "run", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_every_set_is_what_the_library_selects(done: Path) -> None:
    tables = [cf.ScoreTable.load(done / "scores" / f"{name}.safetensors") for name in ("neur", "control", "crc")]
    general = cf.select_general(*tables, mlp_share=0.02, attention_share=0.01, surface_share=0.005)
    load = cf.NeuronSet.load
    assert load(done / "neurons" / "general.json") == general and len(general) > 0
    mexico = cf.select_specific(*tables, "Mexico", share=0.02)
    assert load(done / "neurons" / "specific-Mexico.json") == mexico
    assert load(done / "neurons" / "mlp.json") == general.where(["mlp.gate_proj"])
    assert load(done / "neurons" / "attention.json") == general.where([f"self_attn.{n}_proj" for n in "qkv"])
    for seed in range(3):
        drawn = cf.select_random(tables[0].layout, len(general), seed=seed)
        assert load(done / "neurons" / f"random-{seed}.json") == drawn
    assert len(load(done / "neurons" / "weight-norm.json")) == len(general)
    assert len(load(done / "neurons" / "lape.json")) > 0


@pytest.mark.parametrize(("condition", "factor"), [("suppressed", 0.0), ("enhanced", 2.0), ("random-1", 0.0)])
def test_results_equal_one_evaluation_by_itself(done: Path, condition: str, factor: float) -> None:
    from culnig_fast.pipeline.workbench import Workbench

    bench = Workbench(load_config(write_config(done.parent)), progress=False)
    model, tokenizer = load_model("demo", device="cpu")
    name = "general" if condition in ("suppressed", "enhanced") else condition
    with cf.scaled(model, cf.NeuronSet.load(done / "neurons" / f"{name}.json"), factor):
        result = cf.evaluate(model, tokenizer, bench.questions("blend", "test"), progress=False)
    saved = Evaluation.load(done / "results" / condition / "blend.jsonl")
    assert saved.predictions == result.predictions and saved.ids == result.ids
    assert np.array_equal(saved.probability, result.probability)


def test_prepared_questions_are_asked_alike() -> None:
    model, tokenizer = load_model("demo", device="cpu")
    questions = [cf.Question(str(i), "g", f"question {i}", "A") for i in range(5)]
    twice = [cf.evaluate(model, tokenizer, asked, progress=False)
             for asked in (questions, prepare(model, tokenizer, questions))]  # fmt: skip
    assert twice[0].predictions == twice[1].predictions
    assert np.array_equal(twice[0].probability, twice[1].probability)


def test_the_tables_are_read_off_the_results(done: Path) -> None:
    with (done / "tables" / "main.csv").open() as file:
        rows = {(row["row"], row["column"]): row for row in csv.DictReader(file)}
    labels = ("blend", "country_rc", "pick")
    correct = {
        (condition, label): 100.0 * Evaluation.load(done / "results" / condition / f"{label}.jsonl").correct
        for condition in ("original", "suppressed", "random-0", "random-1", "random-2")
        for label in labels
    }
    p = []
    for label in labels:
        assert float(rows["original", label]["value"]) == pytest.approx(correct["original", label].mean())
        suppressed = rows["culture-general suppressed", label]
        assert float(suppressed["value"]) == pytest.approx(correct["suppressed", label].mean())
        drawn = np.stack([correct[f"random-{seed}", label] for seed in range(3)])
        shown = rows["random suppressed, 3 sets", label]
        assert float(shown["value"]) == pytest.approx(drawn.mean())
        assert float(shown["sd"]) == pytest.approx(drawn.mean(1).std(ddof=1))
        test = paired_bootstrap(correct["suppressed", label], drawn.mean(0), resamples=500)
        p.append(test.p_less)
        assert float(suppressed["p"]) == test.p_less
    for label, adjusted in zip(labels, holm(p), strict=True):
        shown = rows["culture-general suppressed", label]
        assert float(shown["p_holm"]) == adjusted and (shown["bold"] == "True") == (adjusted < 0.05)
    text = (done / "tables" / "main.md").read_text()
    assert "| culture-general suppressed |" in text and r"\begin{table}" in (done / "tables" / "main.tex").read_text()
    assert {"main.csv", "enhanced.csv", "countries-blend.csv"} <= {path.name for path in (done / "tables").iterdir()}


def test_nothing_is_done_twice(done: Path) -> None:
    before = files_of(done)
    steps = run(load_config(write_config(done.parent)), progress=False)
    assert [step.stage.name for step in steps if step.why] == []
    assert files_of(done) == before


def test_what_changed_is_done_again_and_nothing_else(done: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(done, tmp_path / "run")
    thresholds = {**SMALL["thresholds"], "min_z": 0.9}
    steps = run(load_config(write_config(tmp_path, thresholds=thresholds)), progress=False)
    redone = {step.stage.name: step.why for step in steps if step.why}
    assert redone["neurons/specific-Mexico"] == "options changed"
    assert not any(name.startswith(("scores/", "results/original", "results/suppressed")) for name in redone)
    assert redone["results/specific-Mexico/blend"] == "needs changed" or len(redone) == 2

    (tmp_path / "run" / "neurons" / "random-1.json").write_text("{}")
    (tmp_path / "run" / "results" / "original" / "pick.jsonl").unlink()
    again = {
        s.stage.name: s.why for s in run(load_config(write_config(tmp_path, thresholds=thresholds)), progress=False)
    }
    assert again["neurons/random-1"] == "neurons/random-1.json was altered"
    assert again["results/original/pick"] == "results/original/pick.jsonl is gone"
    assert again["scores/neur"] is None and again["results/suppressed/blend"] is None


@pytest.mark.slow
def test_killed_at_random_moments_the_files_are_the_same_to_the_byte(done: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    command = [sys.executable, "-m", "culnig_fast.cli", "run", str(path), "--quiet"]
    moments, log = random.Random(0), tmp_path / "run" / "log.jsonl"
    for stages in (0, 2, 9):  # in the first stage's scoring, among scores and sets, among evaluations
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "run" / "scores").exists() and len(lines_of(log)) >= stages:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.25))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)
    assert len(summary["skipped"]) >= 9 and summary["done"]
    assert files_of(tmp_path / "run") == files_of(done)


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path)
    code, out, err = invoke(capsys, monkeypatch, path, "--dry-run", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["would_skip"] == [] and planned["seconds"]["total"] > 0
    assert planned["seconds"]["total"] == pytest.approx(
        sum(v for k, v in planned["seconds"].items() if k != "total"), abs=0.1
    )
    assert not (tmp_path / "run").exists()
    code, out, _ = invoke(capsys, monkeypatch, path, "--out", done, "--dry-run", "--json")
    assert json.loads(out)["would_do"] == [] and code == 0


def test_every_preset_is_a_whole_config() -> None:
    names = presets()
    models = {"gemma-3-12b-it", "gemma-3-27b-it", "Qwen3-14B", "Llama-3.1-8B-Instruct", "phi-4", "Falcon3-10B-Instruct"}
    assert models <= set(names)
    for name in sorted(models | {"demo"}):
        if name != "demo":
            config = load_config(name)
            assert config.model.name.endswith(name) and len(config.seeds) == 10 and len(config.countries) == 8
            assert {task.task for task in config.tasks} >= {"blend", "culturalbench", "normad", "qnli", "mrpc"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {}}, "task"),
        ({"tasks": {"nothing": None}}, "nothing is no benchmark"),
        ({"tasks": {**SMALL["tasks"], "qnli": "no/such/file.tsv"}}, "tasks.qnli.data: there is no file"),
        ({"thresholds": {"mlp_share": 2}}, "mlp_share"),
        ({"thresholds": {"mlp": 0.1}}, "mlp"),
        ({"seeds": "many"}, "seeds"),
        ({"countries": ["Atlantis"]}, "Atlantis"),
        ({"baselines": ["magic"]}, "'magic'; choose from"),
        ({"model": "./no/such/model"}, "there is no folder"),
        ({"culture": "pick"}, "no split 'control'"),
        ({"preset": "gpt"}, "choose from"),
    ],
)
def test_a_broken_config_is_one_sentence(
    changes: dict[str, Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, err = invoke(capsys, monkeypatch, write_config(tmp_path, **changes))
    assert code == 1 and words in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_first_stage_can_be_continued(tmp_path: Path) -> None:
    from culnig_fast.pipeline.manifest import Manifest

    (tmp_path / "run").mkdir()
    Manifest(tmp_path / "run").begin()
    (tmp_path / "run" / "scores").mkdir()
    assert Manifest(tmp_path / "run").stages == {}


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    with pytest.raises(cf.CulnigError, match=r"holds files but no manifest.json"):
        run(load_config(write_config(tmp_path)), progress=False)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "dear"


def test_published_figures_stand_beside(tmp_path: Path, done: Path) -> None:
    import shutil

    shutil.copytree(done, tmp_path / "run")
    with pytest.raises(cf.CulnigError, match="whose published figures"):
        run(load_config(write_config(tmp_path)), compare=True, progress=False)
    config = load_config(write_config(tmp_path, published="gemma-3-12b-it"))
    run(config, compare=True, progress=False)
    text = (tmp_path / "run" / "tables" / "published.csv").read_text()
    assert "64.22" in text and "37.93" in text
