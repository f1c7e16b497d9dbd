"""Layouts and neuron sets: order, names, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES, DENSE_MODULES, NeuronLayout, NeuronSite

NAMES = ATTENTION_MODULES + DENSE_MODULES
SITES = [NeuronSite(name, layer, 3 + layer) for layer in (1, 0) for name in reversed(NAMES)]
LAYOUT = NeuronLayout(SITES)


def test_flat_order_is_layer_then_module_then_column() -> None:
    assert [(s.layer_idx, s.module_name) for s in LAYOUT.sites] == [(i, n) for i in (0, 1) for n in NAMES]
    assert LAYOUT.size == 6 * 3 + 6 * 4
    assert LAYOUT.slice("mlp.gate_proj", 1) == slice(18 + 12, 18 + 16)
    assert LAYOUT.flat("mlp.gate_proj", 1, 2) == 32
    assert LAYOUT.layers == (0, 1)


def test_locate_inverts_flat() -> None:
    flat = np.arange(LAYOUT.size)
    names, layers, columns = LAYOUT.locate(flat)
    assert [LAYOUT.flat(n, i, c) for n, i, c in zip(names, layers, columns, strict=True)] == flat.tolist()


def test_indices_of_a_pool_ascend() -> None:
    pool = LAYOUT.indices(["self_attn.v_proj", "self_attn.q_proj"])
    assert pool.tolist() == [0, 1, 2, 6, 7, 8, 18, 19, 20, 21, 26, 27, 28, 29]


def test_layout_survives_json() -> None:
    assert NeuronLayout.from_dict(json.loads(json.dumps(LAYOUT.to_dict()))) == LAYOUT
    assert LAYOUT.difference(LAYOUT) is None
    other = NeuronLayout([*SITES[:-1], NeuronSite(SITES[-1].module_name, 0, 9)])
    assert "9 neurons of self_attn.q_proj in layer 0" in str(LAYOUT.difference(other))
    assert "sites in one" in str(LAYOUT.difference(NeuronLayout(LAYOUT.sites[:-1])))


@pytest.mark.parametrize(
    "call",
    [
        lambda: NeuronLayout([NeuronSite("mlp.nothing", 0, 3)]),
        lambda: NeuronLayout([NeuronSite("mlp.act", 0, 0)]),
        lambda: NeuronLayout([NeuronSite("mlp.act", -1, 2)]),
        lambda: NeuronLayout([NeuronSite("mlp.act", 0, 3)] * 2),
        lambda: NeuronLayout([]),
        lambda: NeuronLayout.from_dict({"sites": [["mlp.act", "x", 3]]}),
        lambda: NeuronLayout.from_dict([]),
        lambda: LAYOUT.slice("mlp.act", 2),
        lambda: LAYOUT.flat("mlp.act", 0, 3),
        lambda: LAYOUT.locate([LAYOUT.size]),
        lambda: LAYOUT.locate([-1]),
        lambda: NeuronLayout(SITES[:1]).indices(["mlp.gate_proj"]),
        lambda: NeuronSet(("mlp.act",), [0, 1], [0], [0.0]),
        lambda: NeuronSet(("mlp.act",) * 2, [0, 0], [1, 1], [0.0, 0.0]),
        lambda: NeuronSet(("mlp.act",), [0], [-1], [0.0]),
    ],
)
def test_nonsense_is_refused(call: object) -> None:
    with pytest.raises(CulnigError):
        call()  # type: ignore[operator]


def test_a_set_survives_its_file_in_order(tmp_path: Path) -> None:
    chosen = NeuronSet.from_flat(LAYOUT, [33, 2, 17], [0.5, 0.25, -1e-300], {"why": "é"})
    path = tmp_path / "set.json"
    chosen.save(path)
    again = NeuronSet.load(path)
    assert again == chosen
    assert again.flat(LAYOUT).tolist() == [33, 2, 17]
    assert again.info == {"why": "é"}
    assert again.per_layer(3) == [2, 1, 0]
    entry = json.loads(path.read_text())["top_neurons"][0]
    assert set(entry) == {"module_name", "layer_idx", "neuron_idx", "attribute_score"}
    with pytest.raises(CulnigError, match="exists already"):
        chosen.save(path)


def test_a_file_of_the_published_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    entries = [
        {
            "module_name": "self_attn.q_proj",
            "layer_idx": 4,
            "neuron_idx": 7,
            "attribute_score": 0.5,
            "scores": {},
        },
        {"module_name": "mlp.gate_proj", "layer_idx": 0, "neuron_idx": 1},
    ]
    path.write_text(json.dumps({"model_name": "x", "dataset_ids": {}, "top_neurons": entries}))
    assert [tuple(neuron) for neuron in NeuronSet.load(path)] == [
        ("self_attn.q_proj", 4, 7, 0.5),
        ("mlp.gate_proj", 0, 1, 0.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"top_neurons": 3}',
        '{"top_neurons": [1]}',
        '{"top_neurons": [{"module_name": "mlp.act", "layer_idx": 0}]}',
        '{"top_neurons": [{"module_name": "mlp.act", "layer_idx": 0.5, "neuron_idx": 1}]}',
        '{"top_neurons": [{"module_name": "mlp.act", "layer_idx": true, "neuron_idx": 1}]}',
        '{"top_neurons": [{"module_name": "os.system", "layer_idx": 0, "neuron_idx": 1}]}',
        '{"top_neurons": [{"module_name": "mlp.act", "layer_idx": -2, "neuron_idx": 1}]}',
        '{"top_neurons": [{"module_name": "mlp.act", "layer_idx": 1e30, "neuron_idx": 1}]}',
        '{"top_neurons": [{"module_name": "mlp.act", "layer_idx": 0, "neuron_idx": 1, "attribute_score": "x"}]}',
    ],
)
def test_a_broken_set_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(CulnigError, match=r"broken\.json"):
        NeuronSet.load(path)
    with pytest.raises(CulnigError, match="missing"):
        NeuronSet.load(tmp_path / "missing.json")
