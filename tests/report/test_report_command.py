"""`culnig-fast report`: where the page goes, and refusals of one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from report_run import PLOTS, bare_run, whole_run

from culnig_fast.errors import CulnigError
from culnig_fast.report.writing import write_report


def test_the_page_goes_into_the_folder_or_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bare_run(tmp_path / "run")
    assert invoke("report", run, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    page = run / "report.html"
    assert printed == {"path": str(page), "bytes": page.stat().st_size}
    assert invoke("report", run, "--out", tmp_path / "other.html") == 0
    assert (tmp_path / "other.html").read_bytes() == page.read_bytes()
    assert "open it in a browser" in capsys.readouterr().out
    page.write_text("mine")
    assert invoke("report", run) == 1
    assert page.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    assert invoke("report", run, "--overwrite") == 0
    assert page.read_bytes() == (tmp_path / "other.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", None, "is not the folder of a run (it has no manifest.json)"),
        ("manifest.json", "[]", "is not the manifest of a run"),
        ("manifest.json", "{", "not a JSON file"),
        ("run.json", "[]", "holds no JSON object"),
        ("run.json", '{"model', "not a JSON file"),
        ("tables/tables.json", '{"tables": [{"name": "x"}]}', "tables.json is damaged"),
        ("tables/tables.json", '{"tables": 3}', "tables.json is damaged"),
        ("neurons/general.json", "{}", "is not a neuron set"),
        ("analysis/instances.json", "{}", "lacks its neurons or questions"),
        ("analysis/instances.json", '{"neurons": [{}], "questions": {}}', "instances.json is damaged"),
        ("analysis/layers.csv", "layer\n1\n", "layers.csv cannot be described"),
        ("analysis/layers.csv", b"\xff\xfe", "layers.csv is not a csv file"),
    ],
)
def test_what_is_damaged_is_named(name: str, content: Any, words: str, tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    path = run / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CulnigError) as error:
        write_report(run, plots=PLOTS)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_refusals_exit_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert invoke("report", folder) == 1
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {folder} is not the folder of a run")
        assert errors.count("\n") == 1
    assert invoke("report", bare_run(tmp_path / "run"), "--out", tmp_path / "no" / "page.html") == 1
    assert "cannot write" in capsys.readouterr().err
