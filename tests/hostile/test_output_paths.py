"""Names that come out of data lead nowhere but into the folder that was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from culnig_fast.cli import app
from culnig_fast.errors import CulnigError
from culnig_fast.files import file_name, write_text
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.pipeline.reading import load_config
from culnig_fast.scores import ScoreTable

HOSTILE = (
    "../../outside",
    "/etc/outside",
    "..",
    ".",
    ".hidden",
    "a\0b",
    "a\\b",
    "x" * 4000,
    "",
    "a\nb",
    "%2E",
    "\ud800",
)


def test_hostile_names_become_single_parts_of_a_path(tmp_path: Path) -> None:
    names = [file_name(text) for text in HOSTILE]
    assert len(set(names)) == len(HOSTILE)
    for name in names:
        path = tmp_path / name
        assert path.parent == tmp_path
        assert path.resolve().parent == tmp_path.resolve()
        path.write_text("x")
    assert [file_name(text) for text in ("South Korea", "Türkiye", "Côte d'Ivoire")] == [
        "South Korea", "Türkiye", "Côte d'Ivoire"
    ]  # fmt: skip


def _scores(folder: Path, groups: tuple[str, ...]) -> list[str]:
    modules = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj")
    layout = NeuronLayout([NeuronSite(name, 0, 500) for name in modules])
    paths = []
    for seed, name in enumerate(("neur", "control", "surface")):
        totals = np.random.default_rng(seed).standard_normal((len(groups), layout.size))
        ones = np.ones(len(groups))
        path = folder / f"{name}.safetensors"
        ScoreTable(totals, groups, ones.astype(np.int64), ones, ("q",), layout).save(path)
        paths.append(str(path))
    return paths


def test_a_country_named_like_a_path_stays_in_the_folder(tmp_path: Path) -> None:
    groups = ("../../outside", "/abs", "Spain", "a\0b")
    inside = tmp_path / "deep" / "work"
    inside.mkdir(parents=True)
    neur, control, surface = _scores(inside, groups)
    before = set(tmp_path.rglob("*"))
    out = inside / "sets"
    options = ["--control", control, "--surface", surface, "--out-dir", str(out), "--min-z", "0"]
    chosen = [part for name in groups for part in ("--country", name)]
    done = CliRunner().invoke(app, ["select", "specific-all", neur, *options, *chosen])
    assert done.exit_code == 0, done.output
    new = {path for path in tmp_path.rglob("*") if path not in before and path != out}
    assert len(new) == len(groups)
    assert all(path.parent == out for path in new)
    twins = [part for name in ("South Korea", "South_Korea") for part in ("--country", name)]
    neur, control, surface = _scores(tmp_path, ("South Korea", "South_Korea"))
    options = ["--control", control, "--surface", surface, "--out-dir", str(tmp_path / "twins")]
    done = CliRunner().invoke(app, ["select", "specific-all", neur, *options, *twins])
    assert isinstance(done.exception, CulnigError)
    assert "one file" in str(done.exception)


@pytest.mark.parametrize("label", ["../x", "a/b", "a\\0b", ".."])
def test_a_task_named_like_a_path_is_refused(label: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f'model: demo\nout: here\ntasks:\n  "{label}": {{task: blend, data: demo}}\n')
    with pytest.raises(CulnigError, match="letters, digits"):
        load_config(config)


@pytest.mark.parametrize("out", ["a\\0b", "\\uD800"])
def test_an_output_that_no_system_takes_is_refused(out: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f'model: demo\nout: "{out}"\ntasks: {{blend: demo, country_rc: demo}}\n')
    with pytest.raises(CulnigError, match="out"):
        load_config(config)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(CulnigError, match="exists already"):
        write_text(link, "new")
    write_text(link, "new", overwrite=True)
    assert target.read_text() == "precious"
    assert not link.is_symlink()
    assert link.read_text() == "new"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CulnigError, match="exists already"):
        write_text(dangling, "new")
    assert not os.path.lexists(tmp_path / "nowhere")


def test_a_nul_in_an_output_path_is_refused() -> None:
    with pytest.raises(CulnigError, match="NUL"):
        NeuronSet.empty().save("a\0b.json")
