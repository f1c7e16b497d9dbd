"""Files that were cut off, altered, or written by somebody who means harm."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from culnig_fast.baselines.activations import ActivationTable
from culnig_fast.errors import CulnigError
from culnig_fast.files import parse_json, read_json
from culnig_fast.modules.scores import ModuleScores
from culnig_fast.modules.sites import ModuleLayout, ModuleSite
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.running.checkpoint import Checkpoint, Progress
from culnig_fast.scores import ScoreTable
from culnig_fast.tensors import CONTENT, read_metadata, save_tensors

LAYOUT = NeuronLayout([NeuronSite("mlp.gate_proj", 0, 3), NeuronSite("mlp.gate_proj", 1, 4)])


def score_table() -> ScoreTable:
    totals = np.random.default_rng(0).standard_normal((2, 7))
    return ScoreTable(totals, ("a", "b"), np.array([3, 5]), np.array([1.5, 2.5]), ("x", "y"), LAYOUT, {"model": "m"})


def activation_table() -> ActivationTable:
    wide = np.arange(14).reshape(2, 7)
    values = wide.astype(np.float64)
    return ActivationTable(wide, values, values, np.array([4, 5]), np.array([1, 2]), ("a", "b"), ("x", "y"), LAYOUT)


def write_scores(path: Path) -> None:
    score_table().save(path)


def write_activations(path: Path) -> None:
    activation_table().save(path)


def write_checkpoint(path: Path) -> None:
    Checkpoint(path, {"model": "m"}).save(Progress(np.ones((2, 7)), np.ones(4), 2048, None, 0))


def write_module_scores(path: Path) -> None:
    layout = ModuleLayout([ModuleSite("conv", dim=1), ModuleSite("fc", slice(1, 4), "input")], [4, 5])
    ModuleScores(np.arange(14.0).reshape(2, 7), layout, ("a", "b"), np.array([3.0, 0.5]), "log P", "max").save(path)


def load_checkpoint(path: Path) -> Any:
    return Checkpoint(path, {"model": "m"}).load()


KINDS = {
    "scores": (write_scores, ScoreTable.load),
    "activations": (write_activations, ActivationTable.load),
    "checkpoint": (write_checkpoint, load_checkpoint),
    "module scores": (write_module_scores, ModuleScores.load),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_refused(kind: str, tmp_path: Path) -> None:
    write, load = KINDS[kind]
    path = tmp_path / "table.safetensors"
    write(path)
    whole = path.read_bytes()
    load(path)
    header = struct.unpack("<Q", whole[:8])[0]
    # Every byte of the tensors, every third one of length and header; spaces at its end are no content.
    for place in [*range(0, 8 + header, 3), *range(8 + header, len(whole))]:
        altered = bytearray(whole)
        altered[place] ^= 1 << (place % 7)
        if altered[place] in b"\t\n\r " and whole[place] in b" ":
            continue
        path.write_bytes(altered)
        with pytest.raises(CulnigError, match="table"):
            load(path)


def test_a_file_of_before_the_hash_still_loads(tmp_path: Path) -> None:
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    table = score_table()
    table.save(new)
    with safe_open(new, framework="np") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != CONTENT}
        tensors = {name: file.get_tensor(name) for name in ("totals", "counts", "probability")}
    save_file(tensors, old, metadata=metadata)
    assert np.array_equal(ScoreTable.load(old).totals, table.totals)
    assert CONTENT not in read_metadata(old)
    assert read_metadata(new)[CONTENT].startswith("sha256:")


def test_verification_can_be_left_out_and_reading_stays_lazy(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    score_table().save(path)
    altered = bytearray(path.read_bytes())
    altered[-60] ^= 1
    path.write_bytes(altered)
    with pytest.raises(CulnigError, match=r"altered.*restore it"):
        ScoreTable.load(path)
    table = ScoreTable.load(path, verify=False)
    assert isinstance(table.totals, np.memmap)
    assert not np.array_equal(table.totals, score_table().totals)


def test_a_header_that_claims_to_be_huge_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    for size in (2**63, 2**40, 2**27):
        path.write_bytes(struct.pack("<Q", size) + b"{}")
        with pytest.raises(CulnigError, match=r"table\.safetensors"):
            ScoreTable.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layout", '{"sites": [["mlp.gate_proj", 0, 9223372036854775807], ["mlp.gate_proj", 1, 9223372036854775807]]}'),
        ("layout", '{"sites": [["mlp.gate_proj", 0.5, 7]]}'),
        ("layout", '{"sites": [["mlp.gate_proj", 1e999, 7]]}'),
        ("layout", "[" * 100_000),
        ("groups", "5"),
        ("groups", '[1, "a"]'),
        ("groups", '["a", "a"]'),
        ("groups", '["a", "\\ud800"]'),
        ("ids", '{"a": 1}'),
        ("metadata", "[]"),
        ("metadata", '{"n": ' + "9" * 5000 + "}"),
    ],
)
def test_facts_that_make_no_table_are_refused(field: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    table = score_table()
    table.save(path)
    header = {**read_metadata(path), field: value}
    tensors = {"totals": table.totals, "counts": table.counts, "probability": table.probability}
    save_tensors(path, tensors, header, overwrite=True)
    with pytest.raises(CulnigError, match=r"table\.safetensors is a damaged"):
        ScoreTable.load(path)


def test_a_neuron_set_carries_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    chosen = NeuronSet.from_flat(LAYOUT, [1, 5], [0.5, 0.25], {"why": "ü"})
    chosen.save(path)
    assert NeuronSet.load(path) == chosen
    value = read_json(path)
    value["top_neurons"][0]["neuron_idx"] = 2
    path.write_text(json.dumps(value))
    with pytest.raises(CulnigError, match="delete the entry `content`"):
        NeuronSet.load(path)
    del value["content"]
    path.write_text(json.dumps(value))
    assert NeuronSet.load(path).neuron_idx.tolist() == [2, 2]


@pytest.mark.parametrize(
    "entry",
    [
        {"attribute_score": float("nan")},
        {"attribute_score": 10**400},
        {"attribute_score": True},
        {"layer_idx": float("inf")},
        {"neuron_idx": 10**30},
        {"module_name": {}},
    ],
)
def test_neurons_that_are_none_are_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    whole = {"module_name": "mlp.act", "layer_idx": 0, "neuron_idx": 1, **entry}
    path.write_text(json.dumps({"top_neurons": [whole]}))
    with pytest.raises(CulnigError, match=r"set\.json"):
        NeuronSet.load(path)


def test_half_a_surrogate_pair_is_no_text() -> None:
    assert parse_json('"\\ud83d\\ude00"', "x is not JSON") == "😀"
    with pytest.raises(CulnigError, match="surrogate"):
        parse_json('{"a": ["\\ud83d"]}', "x is not JSON")
