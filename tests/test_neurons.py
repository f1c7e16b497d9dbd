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


def test_a_set_has_the_flat_indices_of_its_neurons_one_by_one() -> None:
    uneven = NeuronLayout([site for i, site in enumerate(SITES) if i % 4])
    rng = np.random.default_rng(0)
    for layout in (LAYOUT, uneven, NeuronLayout(SITES[:1])):
        for size in (0, 1, layout.size):
            chosen = NeuronSet.from_flat(layout, rng.permutation(layout.size)[:size])
            flat = chosen.flat(layout)
            one_by_one = [layout.flat(*neuron[:3]) for neuron in chosen]
            assert flat.dtype == np.int64 and flat.tolist() == one_by_one


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("mlp.act", 0, 3), r"^mlp\.act of layer 0 has neurons 0…2, not 3$"),
        (("mlp.act", 0, 2**63 - 1), "has neurons 0…2, not 9223372036854775807"),
        (("mlp.act", 2, 0), "no neurons of mlp.act in layer 2 were scored; there are layers 0…1"),
        (("mlp.act", 2**63 - 1, 0), "no neurons of mlp.act in layer 9223372036854775807 were scored"),
        (("mlp.experts.act", 1, 0), "no neurons of mlp.experts.act in layer 1 were scored"),
    ],
)
def test_the_first_neuron_that_a_layout_lacks_is_named(bad: tuple[str, int, int], message: str) -> None:
    neurons = [("mlp.act", 1, 3), bad, ("mlp.up_proj", 0, 7)]
    names, layers, columns = zip(*neurons, strict=True)
    with pytest.raises(CulnigError, match=message):
        NeuronSet(names, layers, columns, np.zeros(3)).flat(LAYOUT)


def test_sets_are_equal_by_neurons_scores_and_order() -> None:
    one = NeuronSet.from_flat(LAYOUT, [3, 40, 7], [1.0, 0.0, -1.0], {"a": 1})
    assert one == NeuronSet.from_flat(LAYOUT, [3, 40, 7], [1.0, -0.0, -1.0])
    for flat, scores in (([3, 7, 40], [1.0, 0.0, -1.0]), ([3, 40, 7], [1.0, 0.0, -2.0]), ([3, 40], [1.0, 0.0])):
        assert one != NeuronSet.from_flat(LAYOUT, flat, scores)
    assert one != list(one)


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
