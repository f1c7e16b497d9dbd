"""Tables of any module's scores, sets chosen from them, and the files of both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import culnig_fast as cf
from culnig_fast.modules.sites import ModuleLayout, ModuleSite

SITES = [
    ModuleSite("conv", dim=1),
    ModuleSite("fc", slice(-3, None)),
    ModuleSite("fc", slice(0, 1), side="input"),
    ModuleSite("heads", dim=None),
]
LAYOUT = ModuleLayout(SITES, [2, 5, 4, 3])
GROUPS = ("Türkiye", 'a "quoted" one')


def table(seed: int = 0, **changes: Any) -> cf.ModuleScores:
    fields: dict[str, Any] = {
        "totals": np.round(np.random.default_rng(seed).standard_normal((2, LAYOUT.size))),
        "layout": LAYOUT,
        "groups": GROUPS,
        "counts": np.array([3.0, 4.5]),
        "objective": "log P",
        "reduction": "max",
        "metadata": {"model": "x", "list": [1, None]},
    }
    return cf.ModuleScores(**{**fields, **changes})


def test_a_table_survives_its_file_to_the_bit(tmp_path: Path) -> None:
    made, path = table(), tmp_path / "x.safetensors"
    made.save(path)
    again = cf.ModuleScores.load(path)
    assert isinstance(again.totals, np.memmap)
    assert not again.totals.flags.writeable
    assert again.totals.tobytes() == made.totals.tobytes()
    assert (again.layout, again.layout.sites, again.layout.widths) == (LAYOUT, LAYOUT.sites, LAYOUT.widths)
    for name in ("groups", "objective", "reduction", "metadata"):
        assert getattr(again, name) == getattr(made, name)
    assert again.counts.tolist() == [3.0, 4.5]
    table(groups=("other", "names")).save(tmp_path / "y.safetensors")
    with pytest.raises(cf.CulnigError, match="exists already"):
        table(1).save(path)
    assert cf.ModuleScores.load(path).totals.tobytes() == made.totals.tobytes()
    again.save(tmp_path / "z.safetensors")
    assert (tmp_path / "z.safetensors").read_bytes() == path.read_bytes()
    table(1).save(path, overwrite=True)
    assert cf.ModuleScores.load(path).totals.tobytes() == table(1).totals.tobytes()


def test_broken_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    table().save(path)
    whole = path.read_bytes()
    for keep in (0, 5, 200, -60, -1):
        path.write_bytes(whole[:keep])
        with pytest.raises(cf.CulnigError, match="x.safetensors"):
            cf.ModuleScores.load(path)
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(cf.CulnigError, match="altered"):
        cf.ModuleScores.load(path)
    layout = cf.NeuronLayout([cf.NeuronSite("mlp.gate_proj", 0, 3)])
    scores = cf.ScoreTable(np.zeros((1, 3)), ("a",), [1], [1.0], ("q",), layout)  # type: ignore[arg-type]
    scores.save(path, overwrite=True)
    with pytest.raises(cf.CulnigError, match="no.* module scores"):
        cf.ModuleScores.load(path)
    table().save(path, overwrite=True)
    with pytest.raises(cf.CulnigError, match="not a score table"):
        cf.ScoreTable.load(path)


@pytest.mark.parametrize(
    "name, value",
    [
        ("layout", '{"sites": []}'),
        ("layout", '{"sites": [["conv", [null, null], "output", 1, 11]]}'),
        ("layout", '{"sites": [["conv", [null, null], "left", 1, 9]]}'),
        ("layout", '{"sites": [["conv", [null, null], "output", 0, 9]]}'),
        ("layout", '{"sites": [["conv", [0.5, null], "output", 1, 9]]}'),
        ("layout", '{"sites": [["conv", [null, null], "output", 1, 1e300]]}'),
        ("layout", '{"sites": [["conv", [null, null], "output", 1]]}'),
        ("layout", '{"sites": [["a", [0, 4], "output", 1, 9], ["a", [3, 8], "output", 1, 9]]}'),
        ("layout", "[]"),
        ("groups", '["a", "a"]'),
        ("groups", '["a"]'),
        ("objective", "7"),
        ("reduction", "null"),
        ("metadata", "[]"),
        ("counts", None),
    ],
)
def test_a_damaged_header_is_refused(name: str, value: str | None, tmp_path: Path) -> None:
    header = {
        "format": "culnig_fast.module_scores/1",
        "groups": json.dumps(GROUPS),
        "layout": json.dumps(LAYOUT.to_dict()),
        "objective": '"log P"',
        "reduction": '"max"',
        "metadata": "{}",
    }
    tensors = {"totals": np.zeros((2, LAYOUT.size)), "counts": np.ones(2)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, header)
    assert cf.ModuleScores.load(path).layout == LAYOUT
    if value is None:
        tensors = {**tensors, name: tensors[name].astype(np.int64)}
    else:
        header[name] = value
    save_file(tensors, path, header)
    with pytest.raises(cf.CulnigError, match="damaged"):
        cf.ModuleScores.load(path)


@pytest.mark.parametrize("as_arrow", [False, True])
def test_each_score_stands_beside_its_neurons_name(as_arrow: bool) -> None:
    scores = table()
    frame = scores.to_arrow().to_pandas() if as_arrow else scores.to_pandas()
    assert list(frame.columns) == ["path", "side", "column", *GROUPS]
    assert len(frame) == LAYOUT.size
    for flat, row in enumerate(frame.to_dict("records")):
        assert LAYOUT.flat(row["path"], row["column"], row["side"]) == flat
        assert [row[name] for name in GROUPS] == scores.totals[:, flat].tolist()
    part = scores.to_arrow(GROUPS[1:]) if as_arrow else scores.to_pandas(GROUPS[1:])
    facts = json.loads(part.schema.metadata[b"culnig_fast"]) if as_arrow else part.attrs
    assert facts["counts"] == {GROUPS[1]: 4.5}
    assert facts["metadata"] == scores.metadata
    assert (facts["objective"], facts["reduction"]) == ("log P", "max")
    with pytest.raises(cf.CulnigError, match="'side'"):
        table(groups=("side", "x")).to_pandas()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("group", [None, *GROUPS])
def test_chosen_neurons_are_those_of_a_plain_sort(group: str | None, absolute: bool) -> None:
    scores = table()  # rounded, so that some are equal
    row = scores.totals.sum(0) if group is None else scores.totals[GROUPS.index(group)]
    key = [abs(x) if absolute else x for x in row.tolist()]
    assert len(set(key)) < len(key)
    order = sorted(range(len(key)), key=lambda i: (-key[i], i))
    chosen = scores.top(5, group, absolute=absolute)
    assert chosen.flat(LAYOUT).tolist() == order[:5]
    assert chosen.scores.tolist() == [row[i] for i in order[:5]]
    assert scores.at(chosen).tolist() == scores.totals[:, order[:5]].tolist()
    threshold = key[order[3]]
    above = scores.above(threshold, group, absolute=absolute)
    assert above.flat(LAYOUT).tolist() == [i for i in order if key[i] > threshold]
    assert chosen.info["objective"] == "log P"
    for neuron in chosen:
        site = LAYOUT.sites[LAYOUT.site_of(LAYOUT.flat(neuron.path, neuron.column, neuron.side))[0]]
        assert (neuron.path, neuron.side, neuron.dim) == (site.path, site.side, site.dim)


def test_rows_of_a_filtered_frame_are_a_set() -> None:
    scores = table()
    frame = scores.to_pandas()
    chosen = scores.neurons(frame.index[frame["path"] == "fc"], GROUPS[0])
    assert [(n.path, n.column, n.side) for n in chosen] == [
        ("fc", 2, "output"), ("fc", 3, "output"), ("fc", 4, "output"), ("fc", 0, "input")
    ]  # fmt: skip
    assert chosen.scores.tolist() == frame.loc[frame["path"] == "fc", GROUPS[0]].tolist()
    assert {name: part.shape for name, part in scores.by_path().items()} == {
        "conv": (2, 2), "fc[-3:]": (2, 3), "fc[0:1] (input)": (2, 1), "heads": (2, 3)
    }  # fmt: skip
    assert all(np.shares_memory(part, scores.totals) for part in scores.by_path().values())


def test_tables_are_merged_row_by_row() -> None:
    one, other = table(0), table(1, groups=(GROUPS[1], "new"))
    merged = one.merge(other)
    assert merged.groups == (*GROUPS, "new")
    want = [one.totals[0], one.totals[1] + other.totals[0], other.totals[1]]
    assert np.array_equal(merged.totals, np.stack(want))
    assert merged.counts.tolist() == [3.0, 7.5, 4.5]
    assert merged.metadata == one.metadata
    assert one.merge(table(1, metadata={"model": "y"})).metadata == {"merged": [one.metadata, {"model": "y"}]}
    moved = ModuleLayout([ModuleSite("conv", dim=-1), *SITES[1:]], LAYOUT.widths)
    for changes, word in (
        ({"layout": moved}, r"columns 0…1 of the output of 'conv' \(dim 1\) in one"),
        ({"objective": "P"}, "objective is 'log P', the other's 'P'"),
        ({"reduction": "sum"}, "reduction"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            one.merge(table(1, **changes))


def test_an_attributor_gives_its_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 4)
    sites = ["0", ModuleSite("2", side="input")]

    def scored(rows: slice, group: Any) -> cf.ModuleScores:
        with cf.ModuleAttributor(model, sites, n_groups=2, reduction="sum") as attributor:
            with pytest.raises(cf.CulnigError, match="first batch"):
                attributor.table()
            attributor.backward(model(x[rows])[:, 1], group=group)
            with pytest.raises(cf.CulnigError, match="3 names"):
                attributor.table(["a", "b", "c"])
            made = attributor.table(["a", "b"], objective="logit 1", metadata={"mine": 1})
            assert np.array_equal(made.totals, attributor.totals)
            assert attributor.table().groups == ("0", "1")
        return made

    numbers = torch.tensor([0, 1, 1, 0, 1])
    whole = scored(slice(None), numbers)
    assert whole.counts.tolist() == [2.0, 3.0]
    assert whole.metadata["mine"] == 1 and whole.metadata["model_class"] == "Sequential"
    assert (whole.objective, whole.reduction) == ("logit 1", "sum")
    halves = scored(slice(0, 3), numbers[:3]).merge(scored(slice(3, 5), numbers[3:]))
    np.testing.assert_allclose(halves.totals, whole.totals, rtol=0, atol=1e-6 * np.abs(whole.totals).max())
    assert halves.counts.tolist() == [2.0, 3.0]
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 2.0], [1.0, 1.0], [0.0, 0.25]])
    assert scored(slice(None), shares).counts.tolist() == [2.5, 4.25]
    whole.save(tmp_path / "x.safetensors")
    chosen = cf.ModuleScores.load(tmp_path / "x.safetensors").top(4)
    with cf.ModuleAttributor(model, sites, watch=chosen, reduction="sum") as attributor:
        attributor.backward(model(x)[:, 1])
    assert attributor.scores is not None
    np.testing.assert_allclose(attributor.scores.sum(0), chosen.scores, rtol=1e-5)


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    nan = table().totals.copy()
    nan[1, 3] = np.nan
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: table(totals=np.zeros((2, 8))), "float64"),
        (lambda: table(totals=np.zeros((2, 9), np.float32)), "float32"),
        (lambda: table(counts=np.ones(3)), "counts"),
        (lambda: table(groups=("a", "a")), "twice"),
        (lambda: table().row("Peru"), "Türkiye"),
        (lambda: table().top(10), "top 10 of 9"),
        (lambda: table().top(0), "top 0"),
        (lambda: table(totals=nan).top(1), "column 3 of 'fc' is NaN"),
        (lambda: table().neurons([-1]), "outside"),
        (lambda: table(metadata={"x": math.nan}).save(tmp_path / "a"), "JSON"),
        (lambda: table(metadata={"x": torch.ones(1)}).save(tmp_path / "a"), "JSON"),
    ]
    for call, word in calls:
        with pytest.raises(cf.CulnigError, match=word):
            call()
    assert not list(tmp_path.iterdir())
    assert table(totals=nan).top(1, GROUPS[0]).scores.tolist() == [table().totals[0].max()]


NEURONS = cf.ModuleNeurons(
    ("conv", "encoder.für", "fc"),
    np.array([1, 2**40, 0]),
    ("output", "input", "output"),
    (1, None, -1),
    np.array([0.1, 1 / 3, -2e-300]),
    {"objective": "log P", "list": [1]},
)


def test_a_set_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for neurons in (NEURONS, cf.ModuleNeurons.named([])):
        neurons.save(path, overwrite=True)
        again = cf.ModuleNeurons.load(path)
        assert again == neurons and hash(again) == hash(neurons)
        assert (again.info, again.scores.tobytes()) == (neurons.info, neurons.scores.tobytes())
    with pytest.raises(cf.CulnigError, match="exists already"):
        NEURONS.save(path)
    frame, arrow = NEURONS.to_pandas(), NEURONS.to_arrow()
    rows = [[n.path, n.side, n.column, n.score] for n in NEURONS]
    assert frame.values.tolist() == arrow.to_pandas().values.tolist() == rows
    assert frame.attrs == {"info": NEURONS.info} == json.loads(arrow.schema.metadata[b"culnig_fast"])


def test_broken_sets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    NEURONS.save(path)
    written = json.loads(path.read_text())
    entry = written["module_neurons"][0]

    def refused(value: Any, word: str) -> None:
        path.write_text(json.dumps(value))
        with pytest.raises(cf.CulnigError, match=word):
            cf.ModuleNeurons.load(path)

    refused({**written, "info": {}}, "altered")
    path.write_text(json.dumps({name: value for name, value in written.items() if name != "content"}))
    assert cf.ModuleNeurons.load(path) == NEURONS, "a change that is meant"
    refused({"top_neurons": []}, "module_neurons")
    refused([], "module_neurons")
    refused({**written, "info": []}, "info")
    for change in (
        {"column": 1.5},
        {"column": -1},
        {"column": 2**70},
        {"side": "left"},
        {"dim": 0},
        {"dim": "1"},
        {"score": "x"},
        {"path": 3},
    ):
        refused({"info": {}, "module_neurons": [{**entry, **change}]}, "x.json is a damaged")
    for missing in entry:
        refused({"module_neurons": [{k: v for k, v in entry.items() if k != missing}]}, "damaged")
    with pytest.raises(cf.CulnigError, match="twice"):
        cf.ModuleNeurons.named([("a", 1), ("a", 1, "input"), ("a", 1, "output")])
    with pytest.raises(cf.CulnigError, match="whole number"):
        cf.ModuleNeurons.named([("a", 1.5)])
    with pytest.raises(cf.CulnigError, match="JSON"):
        cf.ModuleNeurons.named([("a", 1)], info={"x": {1, 2}}).save(tmp_path / "y.json")
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
