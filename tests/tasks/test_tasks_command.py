"""`culnig-fast tasks`: lists benchmarks, counts what is in one, shows prompts as the model gets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from choice_files import cultural_rows, write_csv

from culnig_fast import cli
from culnig_fast.tasks.base import tasks


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["culnig-fast", "tasks", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


def found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    code, out, err = run(capsys, monkeypatch, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = found(capsys, monkeypatch)
    assert set(listed) == set(tasks())
    assert {
        "blend",
        "country_rc",
        "culturalbench",
        "normad",
        "worldvaluesbench",
        "commonsenseqa",
        "qnli",
        "mrpc",
    } <= set(listed)
    assert listed["blend_short"]["answers"] == "text" and "topics" in listed["blend"]["files"]
    code, out, _ = run(capsys, monkeypatch)
    assert code == 0 and all(name in out for name in listed)


def test_counts_by_split_and_country_with_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "cultural.csv", cultural_rows())
    counted = found(capsys, monkeypatch, "--task", "culturalbench", "--data", path, "--preview", 1)
    splits = counted["splits"]
    assert splits["all"]["questions"] == splits["neur"]["questions"] + splits["test"]["questions"] == 20
    assert splits["all"]["items"] == 5 and counted["wordings"] == 4
    assert sum(splits["all"]["groups"].values()) == 20
    (shown,) = splits["neur"]["preview"]
    assert "What is usual?" in shown["prompt"] and shown["answer"]
    code, out, _ = run(capsys, monkeypatch, "--task", "culturalbench", "--data", path, "--preview", 1)
    assert code == 0 and "Each item is asked in 4 wordings." in out and shown["prompt"] in out


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, words in (
        (("--preview", 3), "name it with --task"),
        (("--task", "nothing"), "unknown task 'nothing'"),
        (("--task", "culturalbench", "--data", "no/such.csv"), "no/such.csv"),
    ):
        code, _, err = run(capsys, monkeypatch, *arguments)
        assert code == 1 and words in err and err.count("\n") == 1
