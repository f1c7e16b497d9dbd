"""Many thresholds at once, and tables on a device: each the same as one choice at a time by the core."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import culnig_fast as cf
from culnig_fast.errors import CulnigError
from culnig_fast.selection.device import DeviceTable
from culnig_fast.selection.sweep import grid, jaccard, sweep_general, sweep_specific

GROUPS = ("Spain", "Mexico", "USA", "Iran")
LAYOUT = cf.NeuronLayout(
    cf.NeuronSite(name, layer, width)
    for layer in range(3)
    for name, width in (
        ("self_attn.q_proj", 40),
        ("self_attn.k_proj", 20),
        ("self_attn.v_proj", 20),
        ("mlp.gate_proj", 90),
    )
)


def table(seed: int, steps: int = 0, groups: tuple[str, ...] = GROUPS) -> cf.ScoreTable:
    """Random scores; with `steps`, only so many different ones, so that there are ties."""
    generator = np.random.default_rng(seed)
    totals = generator.normal(size=(len(groups), LAYOUT.size))
    if steps:
        totals = np.round(totals * steps) / steps
    counts = np.arange(3, 3 + len(groups))
    return cf.ScoreTable(totals, groups, counts, counts / 2, (), LAYOUT)


def on(device: str, scores: cf.ScoreTable) -> DeviceTable:
    return DeviceTable(torch.from_numpy(scores.totals).to(device), scores.groups, scores.counts, scores.layout)


TABLES = [table(0), table(1), table(2)]
TIED = [table(0, 2), table(1, 2), table(2, 2)]
THREE = pytest.mark.parametrize("tables", [TABLES, TIED, [*TABLES[:2], None], [TABLES[0], None, None]])
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@THREE
def test_a_general_sweep_is_one_selection_a_setting(tables: list[Any]) -> None:
    values = {"mlp_share": (0.0, 0.05, 1.0), "attention_share": (0.02, 0.3), "surface_share": (0.0, 0.1, 0.5)}
    swept = sweep_general(*tables, **values)
    assert len(swept.settings) == 18
    for setting, chosen in zip(swept.settings, swept.sets, strict=True):
        assert chosen == cf.select_general(*tables, **setting)
        assert chosen.info["thresholds"] == setting
    sets = [set(chosen.flat(LAYOUT).tolist()) for chosen in swept.sets]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert swept.jaccard[i, j] == pytest.approx(len(a & b) / len(a | b) if a | b else 1.0)


@THREE
def test_a_specific_sweep_is_one_selection_a_setting(tables: list[Any]) -> None:
    values = {"share": (0.02, 0.2), "surface_share": (0.0, 0.3), "min_z": (-np.inf, 0.5, 1.2)}
    swept = sweep_specific(*tables, ("Mexico", "USA"), **values)
    assert list(swept) == ["Mexico", "USA"]
    for country, one in swept.items():
        for setting, chosen in zip(one.settings, one.sets, strict=True):
            assert chosen == cf.select_specific(*tables, country, **setting)
    sizes = [len(chosen) for chosen in swept["USA"].sets]
    assert sizes == sorted(sizes[:3], reverse=True) + sizes[3:] and min(sizes) < max(sizes)


@pytest.mark.parametrize("device", DEVICES)
@THREE
def test_tables_on_a_device_give_the_same_sets(tables: list[Any], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the device's way is asked for by hand: there a tensor would go to the core."""
    expected = cf.select_general(*tables, mlp_share=0.1, attention_share=0.05, surface_share=0.2)
    specific = cf.select_specific_all(*tables, ("Spain", "Iran"), share=0.1, surface_share=0.1)
    if device == "cpu":
        from culnig_fast.selection import device as selection_device

        monkeypatch.setattr("culnig_fast.selection.ranking._core_of", lambda source: selection_device)
    there = [None if one is None else on(device, one) for one in tables]
    got = cf.select_general(*there, mlp_share=0.1, attention_share=0.05, surface_share=0.2)
    assert got == expected and len(got) > 0
    assert cf.select_specific_all(*there, ("Spain", "Iran"), share=0.1, surface_share=0.1) == specific


def test_torch_tensors_on_a_cpu_go_to_the_core_without_a_copy() -> None:
    there = [on("cpu", one) for one in TABLES]
    assert cf.select_general(*there, mlp_share=0.1) == cf.select_general(*TABLES, mlp_share=0.1)


def test_a_nan_on_a_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from culnig_fast.selection import device as selection_device

    monkeypatch.setattr("culnig_fast.selection.ranking._core_of", lambda source: selection_device)
    broken = table(0)
    broken.totals[1, LAYOUT.flat("mlp.gate_proj", 1, 7)] = np.nan
    with pytest.raises(CulnigError, match=r"the neur score of neuron 7 of mlp.gate_proj in layer 1 is NaN"):
        cf.select_general(on("cpu", broken), on("cpu", TABLES[1]), None)


def test_a_device_table_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CulnigError, match="need float64 or float32"):
        DeviceTable(torch.zeros(2, 5), ("a", "b"), np.ones(2), LAYOUT)
    with pytest.raises(CulnigError, match="names a group twice"):
        DeviceTable(torch.zeros(2, LAYOUT.size), ("a", "a"), np.ones(2), LAYOUT)


def test_a_grid_needs_values() -> None:
    assert grid(a=(1.0, 2.0), b=(3.0,)) == [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0}]
    with pytest.raises(CulnigError, match="b has no value to try"):
        grid(a=(1.0,), b=())


def test_overlap_of_empty_sets_is_whole() -> None:
    none = np.zeros(0, np.int64)
    assert jaccard([none, none, np.array([1, 2])]).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
