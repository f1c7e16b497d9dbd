"""`culnig-fast run`: what it prints, and that it refuses before it works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import invoke
from small_run import write


def test_outlook_then_run_then_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, countries=[], seeds=1, published="Qwen3-14B")
    assert invoke("run", path, "--dry-run", "--json", "--device", "cpu") == 0
    outlook = json.loads(capsys.readouterr().out)
    names = [item["stage"] for item in outlook["would_do"]]
    assert names[0] == "scores/neur"
    assert names[-4:] == ["tables", "instances", "analysis", "facts"]
    assert outlook["seconds"]["total"] == pytest.approx(
        sum(value for name, value in outlook["seconds"].items() if name != "total"), abs=0.05
    )
    assert outlook["seconds"]["scoring"] > 0
    assert not (tmp_path / "out").exists()

    assert invoke("run", path, "--quiet", "--json", "--compare", "paper") == 0
    first = json.loads(capsys.readouterr().out)
    assert set(first["done"]) == {*names, "published"}
    assert [table["name"] for table in first["tables"]] == ["main", "enhanced", "ablation"]
    text = (tmp_path / "out/tables/published.md").read_text()
    assert "| culture-general suppressed, published | 7,340 | 35.84 |" in text

    assert invoke("run", path, "--dry-run") == 0
    assert f"0 of {len(names)} stages to do" in capsys.readouterr().out
    assert invoke("run", path, "--quiet") == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/tables/main.md").read_text() in printed
    assert f"0 stages done, {len(names)} already were" in printed


def test_refusals_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd").mkdir()
    for arguments, message in (
        ((write(tmp_path / "odd", sedes=1),), "error: run.yaml: sedes is no key of a run; did you mean seeds?"),
        ((tmp_path / "none.yaml",), "error: no config"),
        ((write(tmp_path), "--compare", "rumours"), "error: --compare 'rumours' is unknown; there is paper"),
    ):
        assert invoke("run", *arguments) == 1
        errors = capsys.readouterr().err
        assert errors.startswith(message)
        assert errors.count("\n") == 1
