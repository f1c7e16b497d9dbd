"""bench/on_gpu.py: a step is a process within its time; one that fails or hangs stops no other."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import on_gpu  # noqa: E402
from on_gpu import Step  # noqa: E402

WRITES = (
    "-c",
    "import json, sys; json.dump({'of': sys.argv[1:]}, open(sys.argv[sys.argv.index('--json') + 1], 'w'))",
)
HANGS = (
    "-c",
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print(child.pid, flush=True); time.sleep(60)",
)


def test_every_step_has_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        Step("hangs", HANGS, 2),
        Step("fails", ("-c", "print('why'); raise SystemExit(3)"), 20),
        Step("writes", WRITES, 20, measures=True),
        Step("sees", ("-c", "import culnig_kernels, os; assert os.environ['TRITON_INTERPRET'] == '0'"), 60),
        Step("late", WRITES, 100_000),
    )
    monkeypatch.setattr(on_gpu, "STEPS", steps)
    began = time.monotonic()
    assert on_gpu.main(["--into", str(tmp_path / "new"), "--minutes", "2"]) == 1
    assert time.monotonic() - began < 60
    found = on_gpu.run_steps(steps[:3], tmp_path, 100)
    assert found == {"hangs": "out of time", "fails": "failed (3)", "writes": "passed"}
    assert (tmp_path / "fails.log").read_text() == "why\n"
    assert json.loads((tmp_path / "writes.json").read_text())["of"][0] == "--json"
    child = int((tmp_path / "hangs.log").read_text())
    deadline = time.monotonic() + 5
    while (running := _runs(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running
    assert not (tmp_path / "new" / "late.log").exists()


def test_chosen_steps_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(on_gpu, "STEPS", (Step("writes", WRITES, 20, measures=True), Step("hangs", HANGS, 60)))
    assert on_gpu.main(["--into", str(tmp_path), "--steps", "writes"]) == 0
    assert capsys.readouterr().out.split() == ["writes", "passed"]
    again = ["--into", str(tmp_path), "--steps", "writes"]
    figures = (tmp_path / "writes.json").stat().st_mtime_ns
    for arguments, why in ((again, "writes.log exists"), (["--into", __file__], "is no folder")):
        with pytest.raises(SystemExit) as stopped:
            on_gpu.main(arguments)
        assert stopped.value.code == 2
        assert why in capsys.readouterr().err
    assert (tmp_path / "writes.json").stat().st_mtime_ns == figures
    assert on_gpu.main([*again, "--overwrite"]) == 0


def test_one_archive_holds_all_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that never ends takes nothing with it that was measured before."""
    monkeypatch.setattr(on_gpu, "STEPS", (Step("writes", WRITES, 20, measures=True), Step("hangs", HANGS, 2)))
    archive = tmp_path / "all.tar.gz"
    given = ["--into", str(tmp_path / "out"), "--archive", str(archive)]
    assert on_gpu.main(given) == 1
    with tarfile.open(archive) as found:
        assert sorted(found.getnames()) == ["hangs.log", "writes.json", "writes.log"]
    with pytest.raises(SystemExit):
        on_gpu.main(["--into", str(tmp_path / "other"), "--archive", str(archive)])


def test_without_the_packages_nothing_else_is_begun(tmp_path: Path) -> None:
    steps = (Step("imports", ("-c", "import nothing_of_the_kind"), 20), Step("writes", WRITES, 20))
    assert on_gpu.run_steps(steps, tmp_path, 100) == {"imports": "failed (1)", "writes": "not begun"}


def test_what_is_asked_for_is_there() -> None:
    """A step that names a file, shape or option that is gone would cost the minutes of a lent machine."""
    import attribution_speed
    import peers
    from harness.shapes import SHAPES

    for step in on_gpu.STEPS:
        if step.arguments[0].endswith("attribution_speed.py"):
            options = attribution_speed.parser().parse_args(step.arguments[1:])
            assert options.shape in (None, *SHAPES)
        elif step.arguments[0].endswith("peers.py"):
            assert peers.parser().parse_args(step.arguments[1:]).shape
        paths = [argument for argument in step.arguments if argument.endswith(".py") or argument.startswith("tests/")]
        paths = [path.removeprefix("--ignore=") for path in paths]
        assert paths or step.arguments[0] == "-c"
        assert all((BENCH.parent / path).exists() for path in paths), step


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and whose parent has not asked for it still has a number.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
