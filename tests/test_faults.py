"""bench/faults.py: its parts are found, run, recorded and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import faults  # noqa: E402
from harness.faults import parts  # noqa: E402


def test_every_part_has_what_the_front_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"fuzz", "kills", "memory", "ranks"} <= set(parts())
    assert faults.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name, part in parts().items():
        assert part.TITLE in listed
        assert callable(part.run), name


@pytest.mark.parametrize("passed", [True, False])
def test_figures_are_written_and_a_failure_is_the_exit_status(
    passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path, quick: bool, say: Any) -> dict[str, Any]:
        assert not list(folder.iterdir())
        say("at it")
        return {"quick": quick, "passed": passed}

    monkeypatch.setattr(parts()["ranks"], "run", run)
    file = tmp_path / "faults.json"
    assert faults.main(["ranks", "--quick", "--json", str(file)]) == (0 if passed else 1)
    record = json.loads(file.read_text())
    assert record["parts"]["ranks"]["quick"] is True
    assert record["environment"]["torch"]
    assert faults.main(["ranks", "--json", str(file)]) == 2


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert faults.main(["flood"]) == 2
    assert "no part flood; there are" in capsys.readouterr().err
