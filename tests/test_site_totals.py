"""Sites that lie side by side: added in one go, to the same sums as one by one."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch

import culnig_fast as cf
from culnig_fast.backend import resolve
from culnig_fast.batch_scorer import BatchScorer
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.sample_weights import SampleWeights
from culnig_fast.site_totals import SiteTotals

CPU = torch.device("cpu")
IDS, LENGTHS = torch.tensor([[5, 6, 7], [8, 9, 9]]), torch.tensor([3, 2])


def totals_of(sites: tuple[str, ...]) -> tuple[SiteTotals, dict[str, Any]]:
    """Of a model's first layer's sites, and its locations by name."""
    architecture = cf.discover(families.build("qwen3"))
    locations = architecture.select(sites)
    first = {one.site.module_name: one for one in locations if one.site.layer_idx == 0}
    return SiteTotals(locations, architecture.layout(sites), 2), first


def test_neighbours_are_the_sites_of_one_module_in_the_layout_s_order() -> None:
    totals, first = totals_of(("mlp.gate_proj", "mlp.up_proj", "self_attn.v_proj", "self_attn.q_proj"))
    q, v, gate, up = (first[name] for name in sorted(first, key=lambda n: "qvgu".index(n.split(".")[1][0])))
    assert list(totals.neighbours(gate)) == list(totals.neighbours(up)) == [gate, up]
    assert list(totals.neighbours(v)) == [q, v]
    assert totals.together([gate, up], CPU).shape == (2, gate.width + up.width)
    assert totals.together([up, gate], CPU) is None
    assert totals.together([v, gate], CPU) is None
    totals.together([q, v], CPU)[1] += 1
    totals.of(v)[1] += 1
    assert totals.of(q).sum() == q.width and totals.of(v).sum() == 2 * v.width and totals.of(up).sum() == 0


def test_a_site_whose_neighbours_have_no_scores_is_added_all_the_same() -> None:
    """An attempt that broke off has added some of a block, and a module may never run."""
    totals, first = totals_of(("mlp.gate_proj", "mlp.up_proj"))
    gate, up = first["mlp.gate_proj"], first["mlp.up_proj"]
    scorer = BatchScorer(totals, "max", "exclude", resolve("auto"), NeuronSet.empty())
    one, act = torch.ones(1, dtype=torch.float64), torch.ones(1, 2, gate.width)
    weights = SampleWeights.checked(one, one.shape, 2)
    added: set[Any] = {up.site}
    for locations in ([gate], [up, gate]):
        scorer.begin(torch.tensor([2]), 2)
        with scorer.going_back(one, weights, added, None):
            for location in locations:
                scorer.score(location, act, act)
    assert totals.of(gate)[0].tolist() == [1.0] * gate.width  # and not again in the second attempt
    assert totals.of(up)[0].tolist() == [0.0] * up.width  # its scores were there already
    assert added == {gate.site, up.site}


@pytest.mark.parametrize("path", ["taps", "fused"])
def test_additions_of_a_layer(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q|k|v in one, gate|up in the other; the last fused layer's q is of one position and goes alone."""
    widths: list[int] = []
    add = SampleWeights.add

    def count(self: SampleWeights, scores: torch.Tensor, *rest: Any) -> None:
        widths.append(scores.shape[1])
        add(self, scores, *rest)

    monkeypatch.setattr(SampleWeights, "add", count)
    with cf.Attributor(families.build("qwen3"), path=path) as attributor:
        attributor.backward(attributor.forward(IDS, LENGTHS)[:, 4])
    of = {site.module_name: site.width for site in attributor.layout.sites}
    mlp = of["mlp.gate_proj"] + of["mlp.up_proj"]
    q, kv = of["self_attn.q_proj"], of["self_attn.k_proj"] + of["self_attn.v_proj"]
    last = [mlp, q, kv] if path == "fused" else [mlp, q + kv]
    assert widths == [*last, mlp, q + kv]


def test_a_module_that_runs_twice_counts_once() -> None:
    """Of its two passes the one whose gradient comes first, as before its neighbours were waited for."""
    totals, first = totals_of(("mlp.gate_proj", "mlp.up_proj"))
    gate, up = first["mlp.gate_proj"], first["mlp.up_proj"]
    scorer = BatchScorer(totals, "max", "exclude", resolve("auto"), NeuronSet.empty())
    one, act = torch.ones(1, dtype=torch.float64), torch.ones(1, 2, gate.width)
    scorer.begin(torch.tensor([2]), 2)
    with scorer.going_back(one, SampleWeights.checked(one, one.shape, 2), None, None):
        for location, factor in ((gate, 1), (gate, 5), (up, 2), (up, 7), (gate, 9)):
            scorer.score(location, act, act * factor)
    assert totals.of(gate)[0].tolist() == [1.0] * gate.width
    assert totals.of(up)[0].tolist() == [2.0] * up.width


def test_totals_are_there_before_what_is_left_is_measured() -> None:
    totals, _ = totals_of(("mlp.gate_proj", "self_attn.q_proj"))
    assert not totals._blocks
    totals.reserve()
    assert sum(block.numel() for block in totals._blocks.values()) == 2 * totals.layout.size
    assert totals.whole("cpu").shape == totals.whole().shape == (2, totals.layout.size)
