"""Score files: the published layout to the byte, the other layouts, refusals, and memory that the file does not set."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import culnig_fast as cf
from culnig_fast.interop import score_files
from culnig_fast.interop.score_files import read_score_file, write_score_file

LAYOUT = cf.NeuronLayout(
    [cf.NeuronSite("self_attn.q_proj", 0, 3), *(cf.NeuronSite("mlp.gate_proj", i, 5) for i in (0, 1))]
)
GROUPS = ("China", "Côte d'Ivoire", "UK")


def make_table(**metadata: Any) -> cf.ScoreTable:
    random = np.random.default_rng(0)
    totals = random.normal(size=(3, LAYOUT.size)) * 10.0 ** random.integers(-12, 3, (3, LAYOUT.size))
    ids = tuple(f"{GROUPS[i % 3]}/q{i}" for i in range(7))
    return cf.ScoreTable(totals, GROUPS, np.array([3, 2, 2]), random.random(3), ids, LAYOUT, metadata)


def as_dictionary(table: cf.ScoreTable, datasets: dict[str, list[str]]) -> dict[str, Any]:
    names, layers, columns = table.layout.locate(np.arange(table.layout.size))
    neurons = {
        f"{name}_{layer}_{column}": dict(zip(table.groups, table.totals[:, i].tolist(), strict=True))
        for i, (name, layer, column) in enumerate(zip(names, layers, columns, strict=True))
    }
    total = dict(zip(table.groups, table.probability.tolist(), strict=True))
    return {"neuron_scores": neurons, "total_probabilities_per_country": total, "dataset_ids": datasets}


def test_it_is_what_the_published_program_would_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_files, "_CHUNK", 2)
    table = make_table(task="blend", control=True)
    write_score_file(table, tmp_path / "x.json")
    want = as_dictionary(table, {"blendcontrol": [f"q{i}" for i in range(7)]})
    assert (tmp_path / "x.json").read_text() == json.dumps(want, indent=4)


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_a_table_comes_back(tmp_path: Path, name: str) -> None:
    table = make_table(task="blend")
    write_score_file(table, tmp_path / name)
    back = read_score_file(tmp_path / name)
    assert np.array_equal(back.totals, table.totals)
    assert np.array_equal(back.probability, table.probability)
    assert (back.groups, back.layout, back.n_samples) == (table.groups, table.layout, 7)
    assert back.ids == tuple(f"q{i}" for i in range(7))
    back.save(tmp_path / "x.safetensors")
    write_score_file(cf.ScoreTable.load(tmp_path / "x.safetensors"), tmp_path / f"again.{name}")
    first, second = ((tmp_path / file).read_bytes() for file in (name, f"again.{name}"))
    unpack = gzip.decompress if name.endswith("gz") else bytes
    assert unpack(first) == unpack(second)


def test_the_other_layouts_are_read(tmp_path: Path) -> None:
    table = make_table()
    names, layers, columns = table.layout.locate(np.arange(table.layout.size))
    grouped: dict[str, Any] = {}
    single: dict[str, Any] = {}
    records, plain = [], []
    for i in np.random.default_rng(1).permutation(table.layout.size):
        key = (str(names[i]), int(layers[i]), int(columns[i]))
        scores = dict(zip(table.groups[::-1], table.totals[::-1, i].tolist(), strict=True))
        grouped.setdefault(key[0], {}).setdefault(str(key[1]), {})[str(key[2])] = scores
        single.setdefault(key[0], {}).setdefault(str(key[1]), {})[str(key[2])] = scores["UK"]
        record = dict(zip(("module_name", "layer_idx", "neuron_idx"), key, strict=True))
        records.append({**record, "attribute_score": 1.0, "scores": scores})
        plain.append({**record, "attribute_score": scores["UK"]})
    for value, is_grouped in ((grouped, True), (records, True), (single, False), (plain, False)):
        (tmp_path / "x.json").write_text(json.dumps(value))
        back = read_score_file(tmp_path / "x.json")
        assert back.layout == table.layout
        if is_grouped:
            assert back.groups == GROUPS[::-1]
            assert np.array_equal(back.totals, table.totals[::-1])
        else:
            assert back.groups == ("all",)
            assert np.array_equal(back.totals[0], table.row("UK"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d["neuron_scores"].pop("mlp.gate_proj_1_2"), "neuron 2 of mlp.gate_proj in layer 1 is missing"),
        (lambda d: d["neuron_scores"]["mlp.gate_proj_1_2"].pop("UK"), "group 'UK'"),
        (lambda d: d["neuron_scores"].update({"lm_head_0_1": {"UK": 1.0}}), "lm_head_0_1"),
        (lambda d: d["neuron_scores"]["mlp.gate_proj_1_2"].update({"UK": "1.0"}), "number"),
        (lambda d: d["neuron_scores"]["mlp.gate_proj_1_2"].update({"UK": float("nan")}), "not a whole JSON"),
        (lambda d: d["neuron_scores"].clear(), "no neuron scores"),
        (lambda d: d["total_probabilities_per_country"].pop("UK"), "no total probability for 'UK'"),
        (lambda d: d.update(neuron_scores=[1, 2]), "laid out"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, change: Any, word: str) -> None:
    value = as_dictionary(make_table(), {"blend": ["q0", "q1", "q2"]})
    change(value)
    (tmp_path / "bad.json").write_text(json.dumps(value))
    with pytest.raises(cf.CulnigError, match="bad.json.*" + word):
        read_score_file(tmp_path / "bad.json")


def test_files_cut_off_or_in_the_way_are_refused(tmp_path: Path) -> None:
    table = make_table(task="blend")
    write_score_file(table, tmp_path / "x.json")
    write_score_file(table, tmp_path / "x.json.gz")
    for name in ("x.json", "x.json.gz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(data[: len(data) // 2])
        with pytest.raises(cf.CulnigError, match=f"cut.{name}"):
            read_score_file(tmp_path / f"cut.{name}")
    with pytest.raises(cf.CulnigError, match="exists already"):
        write_score_file(table, tmp_path / "x.json")
    with pytest.raises(cf.CulnigError, match="name the dataset"):
        write_score_file(make_table(), tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Reading a 60 MB file into an 8 MB table: a parser that loads it whole needs several hundred MB."""
    layout = cf.NeuronLayout([cf.NeuronSite("mlp.gate_proj", 0, 60_000)])
    groups = tuple(f"country number {i}" for i in range(16))
    totals = np.random.default_rng(0).normal(size=(16, layout.size))
    table = cf.ScoreTable(totals, groups, np.ones(16), np.ones(16), ("a",), layout, {"task": "blend"})
    write_score_file(table, tmp_path / "x.json")
    size = (tmp_path / "x.json").stat().st_size
    assert size > 40e6
    code = (
        "import resource, sys\n"
        "from culnig_fast.interop.score_files import read_score_file\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        f"table = read_score_file({str(tmp_path / 'x.json')!r})\n"
        "print(peak() - before, table.totals.nbytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, table_bytes = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 3 * table_bytes + 16e6, f"{grown * unit / 1e6:.0f} MB for a table of {table_bytes / 1e6:.0f}"
