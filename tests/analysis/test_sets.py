"""Neurons by layer, overlaps and scores of pools: each number against counting one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from culnig_fast.analysis.layers import neurons_by_layer
from culnig_fast.analysis.overlap import expected_jaccard, hypergeometric, overlaps, shared_distribution
from culnig_fast.analysis.scores import mean_difference, score_histogram, score_quantiles, symmetric_log_edges
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.rules import select_general, select_random
from tests.analysis.made import MODULES, draw_set, layout, table

WHERE = layout()


def test_layers_are_counted_one_by_one() -> None:
    sets = {"general": draw_set(0, WHERE, 25), "South Korea": draw_set(1, WHERE, 9), "none": NeuronSet.empty()}
    random = [select_random(WHERE, 25, seed=seed) for seed in range(4)]
    frame = neurons_by_layer(sets, WHERE, random)
    assert len(frame) == 4 * 3 * len(MODULES)
    for row in frame.itertuples():
        drawn = random if row.set == "random" else [sets[row.set]]
        counts = [sum(n.module_name == row.module and n.layer_idx == row.layer for n in one) for one in drawn]
        assert row.neurons == pytest.approx(sum(counts) / len(counts))
        assert row.density == pytest.approx(sum(counts) / len(counts) / MODULES[row.module])
        assert row.share == pytest.approx(row.neurons / max(1, len(drawn[0])))
        assert (row.width, row.sets) == (MODULES[row.module], len(drawn))
        if row.set == "random":
            mean = sum(counts) / 4
            assert row.sd == pytest.approx(math.sqrt(sum((n - mean) ** 2 for n in counts) / 3))
        else:
            assert math.isnan(row.sd)
    assert frame[frame["set"] == "general"]["neurons"].sum() == 25


def test_only_selected_modules_have_rows() -> None:
    both = NeuronLayout([*WHERE.sites, *(NeuronSite("mlp.up_proj", layer, 90) for layer in range(3))])
    gate = NeuronSet.from_flat(both, [both.flat("mlp.gate_proj", 0, 1)])
    up = NeuronSet.from_flat(both, [both.flat("mlp.up_proj", 2, 1)])
    assert set(neurons_by_layer({"a": gate}, both)["module"]) == set(MODULES)
    assert set(neurons_by_layer({"a": gate, "b": up}, both)["module"]) == {*MODULES, "mlp.up_proj"}
    with pytest.raises(CulnigError, match="a set is named 'random'"):
        neurons_by_layer({"random": gate}, both)


def test_chance_is_that_of_every_possible_pair_of_sets() -> None:
    """Two pools of 4 and 3: all draws of 2 + 1 and 1 + 2 neurons, enumerated."""
    mlp, attention = range(4), range(4, 7)
    a = [{*x, *y} for x in itertools.combinations(mlp, 2) for y in itertools.combinations(attention, 1)]
    b = [{*x, *y} for x in itertools.combinations(mlp, 1) for y in itertools.combinations(attention, 2)]
    shared = [len(x & y) for x in a for y in b]
    found = shared_distribution([4, 3], [2, 1], [1, 2])
    assert found == pytest.approx([shared.count(k) / len(shared) for k in range(len(found))])
    mean = sum(len(x & y) / len(x | y) for x in a for y in b) / len(shared)
    assert expected_jaccard(found, 3, 3) == pytest.approx(mean)
    whole = [set(x) for x in itertools.combinations(range(7), 3)]
    shared = [len(x & y) for x in whole for y in whole]
    assert shared_distribution([7], [3], [3]) == pytest.approx([shared.count(k) / len(shared) for k in range(4)])


@pytest.mark.parametrize("draws", [(170, 12, 30), (40, 30, 25), (9, 0, 4), (5, 5, 5), (1_460_224, 9000, 7000)])
def test_hypergeometric_agrees_with_scipy(draws: tuple[int, int, int]) -> None:
    found = hypergeometric(*draws)
    expected = scipy.stats.hypergeom.pmf(np.arange(len(found)), *draws)
    assert len(found) == min(draws[1:]) + 1
    # SciPy's own logarithms of factorials of millions are good to about 1e-9.
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-250)


def test_overlaps_are_counted_one_by_one() -> None:
    sets = {"Iran": draw_set(0, WHERE, 30), "UK": draw_set(1, WHERE, 12), "USA": draw_set(2, WHERE, 20)}
    sets["none"] = NeuronSet.empty()
    frame = overlaps(sets, WHERE)
    assert [(row.a, row.b) for row in frame.itertuples()] == list(itertools.combinations_with_replacement(sets, 2))
    for row in frame.itertuples():
        a, b = ({(n.module_name, n.layer_idx, n.neuron_idx) for n in sets[name]} for name in (row.a, row.b))
        assert (row.neurons_a, row.neurons_b, row.both) == (len(a), len(b), len(a & b))
        assert row.jaccard == (len(a & b) / len(a | b) if a | b else 1.0)
        assert row.expected_both == pytest.approx(len(a) * len(b) / WHERE.size)
        # Hypergeometric by binomial coefficients.
        chances = [
            math.comb(len(b), k) * math.comb(WHERE.size - len(b), len(a) - k) / math.comb(WHERE.size, len(a))
            for k in range(min(len(a), len(b)) + 1)
        ]
        if row.a != row.b:
            assert row.p == pytest.approx(sum(chances[len(a & b) :]))
            assert row.p_holm >= row.p
        else:
            assert math.isnan(row.p)
        if a and b:
            assert row.ratio == pytest.approx(row.both / row.expected_both)
            by_pool = 0.0
            for part, size in (("mlp", 270), ("self_attn", 240)):
                n_a, n_b = (sum(n[0].startswith(part) for n in one) for one in (a, b))
                by_pool += n_a * n_b / size
            assert row.expected_by_pool == pytest.approx(by_pool)


def test_random_sets_share_what_chance_gives() -> None:
    sets = {str(i): select_random(WHERE, 60, seed=i) for i in range(40)}
    frame = overlaps(sets, WHERE)
    frame = frame[frame["a"] != frame["b"]]
    # 780 pairs of hypergeometric variance about 5.5, nearly independent: five standard errors are 0.42.
    assert abs((frame["both"] - frame["expected_both"]).mean()) < 0.42
    assert abs((frame["jaccard"] - frame["expected_jaccard"]).mean()) < 0.005
    assert (frame["p_holm"] > 0.05).all()


def test_a_set_outside_the_pool_is_refused() -> None:
    one = NeuronSet.from_flat(WHERE, [0])
    with pytest.raises(CulnigError, match="set 'a' holds neurons outside the pool mlp.gate_proj"):
        overlaps({"a": one}, WHERE, ["mlp.gate_proj"])
    with pytest.raises(CulnigError, match="no set was given"):
        overlaps({}, WHERE)


@pytest.mark.parametrize("with_control", [True, False])
def test_histogram_of_scores_is_counted_one_by_one(with_control: bool) -> None:
    neur, control, surface = (table(seed, WHERE) for seed in range(3))
    chosen = select_general(neur, control if with_control else None, surface, mlp_share=0.1, attention_share=0.05)
    frame = score_histogram(neur, control if with_control else None, chosen, mlp_share=0.1, attention_share=0.05)
    d = [
        sum(neur.totals[:, i]) / 7 - (sum(control.totals[:, i]) / 7 if with_control else 0.0) for i in range(WHERE.size)
    ]
    assert mean_difference(neur, control if with_control else None) == pytest.approx(d)
    held = set(chosen.flat(WHERE).tolist())
    for pool, modules, share in (
        ("mlp", ["mlp.gate_proj"], 0.1),
        ("attention", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], 0.05),
    ):
        own = frame[frame["pool"] == pool]
        index = WHERE.indices(modules).tolist()
        ranked = sorted((d[i] for i in index), reverse=True)
        cut = ranked[int(len(index) * share) - 1]
        assert own["threshold"].iloc[0] == pytest.approx(cut)
        assert own["neurons"].sum() == len(index)
        assert own["candidates"].sum() == int(len(index) * share)
        assert own["selected"].sum() == sum(i in held for i in index) > 0
        last = own["high"].max()
        for row in own.itertuples():
            inside = [i for i in index if row.low <= d[i] < row.high or d[i] == row.high == last]
            assert row.neurons == len(inside)
            assert row.selected == sum(i in held for i in inside)
        assert (own["low"].to_numpy()[1:] == own["high"].to_numpy()[:-1]).all()


def test_bins_are_symmetric_and_hold_everything() -> None:
    for values in (np.array([3e-7, -2.0, 0.5]), np.zeros(4), np.array([1e-3, -1e-3]), np.array([0.0, 5e-30]),
                   np.array([1.0, 10.0])):  # fmt: skip
        edges, linear = symmetric_log_edges(values, 4)
        assert edges == pytest.approx(-edges[::-1])
        assert (np.diff(edges) > 0).all()
        assert edges[0] <= values.min() and values.max() <= edges[-1]
        assert linear in edges
        assert len(edges) <= 2 * (8 * 4 + 1)


def test_a_share_below_one_neuron_has_no_threshold() -> None:
    frame = score_histogram(table(0, WHERE), None, NeuronSet.empty(), mlp_share=0.001, attention_share=0.5)
    assert frame[frame["pool"] == "mlp"]["threshold"].isna().all()
    assert frame[frame["pool"] == "mlp"]["candidates"].sum() == 0
    assert frame[frame["pool"] == "attention"]["candidates"].sum() == 120


def test_quantiles_of_every_site() -> None:
    neur = table(0, WHERE)
    frame = score_quantiles(neur, None)
    assert len(frame) == 12 * 11
    for (layer, module), own in frame.groupby(["layer", "module"]):
        here = WHERE.slice(str(module), int(layer))
        values = sorted((neur.totals.sum(0) / neur.n_samples)[here].tolist())
        by_quantile = dict(zip(own["quantile"], own["score"], strict=True))
        assert by_quantile[0.0] == pytest.approx(values[0])
        assert by_quantile[1.0] == pytest.approx(values[-1])
        middle = len(values) // 2
        assert by_quantile[0.5] == pytest.approx((values[middle - 1] + values[middle]) / 2)


def test_scores_that_cannot_be_spread_are_refused() -> None:
    empty = ScoreTable(np.zeros((1, WHERE.size)), ("a",), [0], [0.0], (), WHERE)
    with pytest.raises(CulnigError, match="the neur scores hold no samples"):
        mean_difference(empty, None)
    broken = table(0, WHERE)
    broken.totals[0, 3] = np.nan
    with pytest.raises(CulnigError, match="NaN or infinite"):
        mean_difference(broken, None)
