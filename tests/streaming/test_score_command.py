"""`culnig-fast score --stream` and `--recompute`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import culnig_fast as cf
from culnig_fast.cli import app
from culnig_fast.cli import score as score_module

BASE = ["score", "demo", "--task", "country_rc", "--data", "demo", "--split", "neur", "--quiet", "--json"]


def score(out: Path, *further: str) -> cf.ScoreTable:
    result = CliRunner().invoke(app, [*BASE, "--out", str(out), *further])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["out"] == str(out)
    return cf.ScoreTable.load(out)


def test_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = score_module.load_questions
    monkeypatch.setattr(score_module, "load_questions", lambda *args: load(*args)[::20])
    plain = score(tmp_path / "plain.safetensors", "--batch-tokens", "512")
    recomputed = score(tmp_path / "recomputed.safetensors", "--batch-tokens", "512", "--recompute")
    streamed = score(tmp_path / "s.safetensors", "--batch-tokens", "512", "--stream", "--stream-tokens", "1500")
    assert np.array_equal(recomputed.totals, plain.totals)
    assert np.array_equal(streamed.totals, plain.totals)
    assert (recomputed.metadata["recomputed"], streamed.metadata["streamed"]) == (True, True)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--stream-tokens", "8"], "add --stream"),
        (["--stream", "--recompute"], "leave out --recompute"),
        (["--stream", "--dtype", "int3"], "unknown dtype"),
    ],
)
def test_options_that_do_not_go_together(further: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*BASE, "--out", str(tmp_path / "x.safetensors"), *further])
    assert isinstance(result.exception, cf.CulnigError)
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())
