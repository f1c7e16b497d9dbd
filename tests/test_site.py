"""The documentation's pages: built strictly where mkdocs is installed, and what they are made from."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import culnig_fast as cf

ROOT = Path(__file__).resolve().parent.parent
HAS_MKDOCS = all(importlib.util.find_spec(name) for name in ("mkdocs", "mkdocstrings", "material"))
needs_mkdocs = pytest.mark.skipif(not HAS_MKDOCS, reason="the documentation's extra is not installed: make docs does")


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_come_from_every_recorded_run_and_name_the_machine() -> None:
    figures = hook("figures")
    page = figures.page()
    for path in (ROOT / "bench" / "results").rglob("*.json"):
        assert f"`{path.relative_to(ROOT).as_posix()}`" in page
    environment = json.loads((ROOT / "bench/results/cpu/selection.json").read_text(encoding="utf-8"))["environment"]
    section = page.split("## Selection\n")[1].split("\n## ")[0]
    assert environment["device"] in section
    assert environment["torch"] in section


def test_an_unknown_recorded_run_is_shown_row_by_row(tmp_path: Path) -> None:
    figures = hook("figures")
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    run = {
        "environment": {"device": "Some Card", "cpu_count": 8, "threads": 4, "torch": "2.6", "time": "2026-01-02T03"},
        "rows": [
            {"what": "a|b", "seconds": 0.01234, "big": 1234567, "nothing": None, "more": {"left": "out"}},
            {"what": ""},
        ],
    }
    (results / "new_thing.json").write_text(json.dumps(run))
    (results / "bare.json").write_text(json.dumps([{"stage": "x", "exact": True}]))
    page = figures.page(results)
    assert (
        "## New thing\n\nSome Card (8 cores, 4 threads), Python None, torch 2.6, 2026-01-02. File: `bench/results"
        in page
    )
    assert "| what | seconds | big |\n| --- | ---: | ---: |\n| a\\|b | 0.0123 | 1,234,567 |\n| – | – | – |" in page
    assert "The file does not record its machine." in page
    assert "| x | yes |" in page


def test_peers_stand_with_what_their_users_write(tmp_path: Path) -> None:
    figures = hook("figures")
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    figures_of = {"median_seconds": 1.5, "time_over_bare": 1.25, "peak_mb": 512.5, "memory_over_bare": 2.0}
    row = {"shape": "tiny", "method": "captum", "library": "captum", "lines": 17, "note": "", "status": "timed"}
    gone = {**row, "method": "nnsight", "library": "nnsight", "note": "cannot be imported", **dict.fromkeys(figures_of)}
    (results / "peers.json").write_text(json.dumps({"rows": [row | figures_of, gone]}))
    page = figures.page(results)
    assert "## Scoring, beside other libraries\n" in page
    assert "| tiny | captum | captum | 17 | 1.50 | 1.25 | 512.50 | 2.00 | – |" in page
    assert "| tiny | nnsight | nnsight | 17 | – | – | – | – | cannot be imported |" in page


@pytest.mark.parametrize("name", ["streaming", "streaming_memory", "streaming_time"])
def test_streamed_runs_show_time_memory_and_difference(name: str) -> None:
    figures = hook("figures")
    run = json.loads((ROOT / "bench" / "results" / "cpu" / f"{name}.json").read_text(encoding="utf-8"))
    section = figures.page().split(f"File: `bench/results/cpu/{name}.json`.")[1].split("\n## ")[0]
    header, *rows = [line for line in section.splitlines() if line.startswith("|") and "---" not in line]
    assert "peak ÷ weights" in header
    assert [line.split(" | ")[0] for line in rows] == [f"| {row['method']}" for row in run["rows"]]
    for line, row in zip(rows, run["rows"], strict=True):
        cells = line.strip("| ").split(" | ")
        assert float(cells[3]) == pytest.approx(row["time_over_recomputed"], abs=6e-3)
        assert float(cells[5]) == pytest.approx(row["peak_over_weights"], abs=6e-3)


def test_kills_are_shown_fact_by_fact() -> None:
    section = hook("figures").page().split("## A run that is killed again and again\n")[1].split("\n## ")[0]
    assert "| kills | kills | 50 |" in section
    assert "| kills | byte identical | yes |" in section
    assert "| kills | files left over | 0 |" in section


def test_the_navigation_lists_every_page() -> None:
    """mkdocs checks this too, where it is installed."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", json.dumps(yaml.safe_load(text)["nav"])))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed - {"figures.md"} == written


@needs_mkdocs
def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = hook("reference").pages()
    entries = re.findall(r"^::: culnig_fast\.(\S+)$", "\n".join(pages.values()), re.MULTILINE)
    assert sorted(entry.rpartition(".")[2] for entry in entries) == sorted(set(cf.__all__) - {"__version__"})


@needs_mkdocs
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    for name in ("docs", "culnig_fast", "kernels", "bench/results"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    shutil.copy(ROOT / "mkdocs.yml", source)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {
        "index.html",
        "tutorial.html",
        "figures.html",
        "guides/embedding.html",
        "reference/the-engine.html",
    } <= pages
    for page in pages:
        text = (tmp_path / "site" / page).read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)", text)
        loaded += re.findall(r"<link[^>]+rel=\"(?:stylesheet|preconnect|icon)\"[^>]+href=\"(https?:[^\"]+)", text)
        assert loaded == [], page
