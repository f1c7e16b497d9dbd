"""The command line on damaged files: one sentence or a result, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.faults.made import activation_table, neuron_set, score_table
from harness.faults.readers import Reader


def command_readers() -> tuple[Reader, ...]:
    """Commands that read files and load no model."""
    return (
        _command("select general", _tables, ["select", "general", *_TABLES, "--out", "OUT.json"]),
        _command(
            "select specific-all", _tables,
            ["select", "specific-all", *_TABLES, "--country", "China", "--out-dir", "OUT"],
        ),
        _command(
            "select random", _sets, ["select", "random", "neur.safetensors", "--like", "set.json", "--out", "OUT.json"]
        ),
        _command("convert to json", _tables, ["convert", "neur.safetensors", "OUT.json"]),
        _command("convert from json", _score_file, ["convert", "x.json", "OUT.safetensors"]),
        _command("baseline cape", _counters, ["baseline", "cape", "x.safetensors", "--out", "OUT.json"]),
        _command("tasks", _plain, ["tasks", "--task", "plain", "--data", "x.csv", "--preview", "1"]),
        _command("tasks, json", _templates, ["tasks", "--task", "country_rc", "--data", "x.json", "--json"]),
    )  # fmt: skip


_TABLES = ("neur.safetensors", "--control", "control.safetensors", "--surface", "surface.safetensors")


def _command(name: str, write: Callable[[Path], None], arguments: Sequence[str]) -> Reader:
    def read(folder: Path) -> Any:
        return _invoke(folder, arguments)

    return Reader(f"culnig-fast {name}", write, read, 0.03)


def _invoke(folder: Path, arguments: Sequence[str]) -> str:
    """Run in process; what was asked to be written is removed again, so that it does not count as a changed file."""
    import shutil

    from typer.testing import CliRunner

    from culnig_fast.cli import app
    from culnig_fast.errors import CulnigError

    given = [str(folder / word) if _is_path(word) else word for word in arguments]
    done = CliRunner().invoke(app, given)
    for path in folder.glob("OUT*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if done.exception is not None and not isinstance(done.exception, (SystemExit, CulnigError)):
        raise done.exception
    if isinstance(done.exception, CulnigError):
        if not str(done.exception).isprintable():
            raise AssertionError(f"a message that cannot be printed: {done.exception!r}")
        raise done.exception
    if done.exit_code or "Traceback" in done.output:
        raise AssertionError(f"exit code {done.exit_code}: {done.output[-500:]}")
    if "--json" in given:
        json.loads(done.output)
    return done.output


def _is_path(word: str) -> bool:
    return word.startswith("OUT") or (word.endswith((".json", ".safetensors", ".csv")) and not word.startswith("-"))


def _tables(folder: Path) -> None:
    for seed, name in enumerate(("neur", "control", "surface")):
        score_table(seed).save(folder / f"{name}.safetensors", overwrite=True)


def _sets(folder: Path) -> None:
    score_table().save(folder / "neur.safetensors", overwrite=True)
    neuron_set().save(folder / "set.json", overwrite=True)


def _score_file(folder: Path) -> None:
    names = ("mlp.gate_proj_0_0", "mlp.gate_proj_0_1")
    scores = {name: {"China": 0.5, "UK": 1.5} for name in names}
    totals = {"total_probabilities_per_country": {"China": 1.0, "UK": 2.0}, "dataset_ids": {"blend": ["a"]}}
    (folder / "x.json").write_text(json.dumps({"neuron_scores": scores, **totals}))


def _counters(folder: Path) -> None:
    activation_table().save(folder / "x.safetensors", overwrite=True)


def _plain(folder: Path) -> None:
    (folder / "x.csv").write_text("id,group,prompt,answer\n1,a,Say it,A\n2,b,Say that,B\n")


def _templates(folder: Path) -> None:
    rows = [{"id": str(i), "context": "She went to {country}.", "question": "Where?"} for i in range(2)]
    (folder / "x.json").write_text(json.dumps(rows))
