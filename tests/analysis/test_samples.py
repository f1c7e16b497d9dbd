"""Samples of neurons, parts of a set and stability against plain loops."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from culnig_fast.analysis.instances import (
    extreme_samples,
    instances_dict,
    mean_positive_share,
    memberships,
    positive_shares,
)
from culnig_fast.analysis.parts import parts_lost
from culnig_fast.analysis.stability import (
    resample_overlaps,
    select_resamples,
    selection_frequency,
    threshold_overlaps,
)
from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import Evaluation, compare
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.rules import select_general
from culnig_fast.statistics import holm, paired_bootstrap
from culnig_fast.tables.figures import Drawing
from tests.analysis.made import SIZES, draw_set, layout, recorded, table, tasks

WHERE = layout()
CHOSEN = draw_set(0, WHERE, 12)
TABLE = recorded(CHOSEN, samples=23)
QUESTIONS = {name: {"prompt": f"<script>{name}", "answer": "B"} for name in TABLE.ids}
SETS = {"general": CHOSEN, "Iran": NeuronSet.from_flat(WHERE, CHOSEN.flat(WHERE)[[3, 5]]), "none": NeuronSet.empty()}


def test_shares_are_those_of_a_loop() -> None:
    frame = positive_shares(TABLE, SETS)
    for place, row in enumerate(frame.itertuples()):
        positive = sum(TABLE.scores[i][place] > 0 for i in range(23))
        assert (row.positive, row.samples) == (positive, 23)
        assert row.positive_share == positive / 23
        assert row.mean_score == pytest.approx(sum(TABLE.scores[:, place].tolist()) / 23)
        neuron = list(CHOSEN)[place]
        assert (row.module_name, row.layer_idx, row.neuron_idx) == neuron[:3]
        assert row.sets == ("general; Iran" if place in (3, 5) else "general")
    assert mean_positive_share(frame) == pytest.approx(np.mean(frame["positive_share"]))
    assert mean_positive_share(frame, "Iran") == pytest.approx(frame["positive_share"][[3, 5]].mean())
    assert (TABLE.scores == 0).any()  # a score of 0 is not positive
    with pytest.raises(CulnigError, match="no neuron of 'none' was looked at"):
        mean_positive_share(frame, "none")


@pytest.mark.parametrize("count", [1, 5, 40])
def test_extreme_samples_are_sorted_ones_with_earlier_first_in_ties(count: int) -> None:
    for place in range(len(CHOSEN)):
        column = TABLE.scores[:, place].tolist()
        assert len(set(column)) < 23  # ties
        top, bottom = extreme_samples(TABLE, place, count)
        assert top == sorted(range(23), key=lambda i: -column[i])[:count]
        assert bottom == sorted(range(23), key=lambda i: column[i])[:count]


def test_dictionary_for_a_page() -> None:
    found = instances_dict(TABLE, QUESTIONS, SETS, count=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    named = set()
    for place, (neuron, entry) in enumerate(zip(CHOSEN, found["neurons"], strict=True)):
        assert {key: entry[key] for key in neuron._fields} == neuron._asdict()
        assert entry["sets"] == (["general", "Iran"] if place in (3, 5) else ["general"])
        assert entry["positive_share"] == sum(TABLE.scores[:, place] > 0) / 23
        for rows, samples in zip(extreme_samples(TABLE, place, 2), (entry["top"], entry["bottom"]), strict=True):
            assert samples == [
                {"id": TABLE.ids[i], "score": TABLE.scores[i, place], "probability": TABLE.probability[i]} for i in rows
            ]
            named.update(one["id"] for one in samples)
    assert set(found["questions"]) == named
    for name, asked in found["questions"].items():
        assert asked == {**QUESTIONS[name], "group": TABLE.groups[TABLE.ids.index(name)]}
    assert memberships(NeuronSet.empty(), SETS) == []


def test_instances_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CulnigError, match=r"shape \[22, 12\], but there are 23 samples and 12 neurons"):
        positive_shares(replace(TABLE, scores=TABLE.scores[1:]))
    with pytest.raises(CulnigError, match="no sample was recorded"):
        positive_shares(recorded(CHOSEN, samples=0))
    with pytest.raises(CulnigError, match="NaN or infinite"):
        positive_shares(replace(TABLE, scores=np.where(TABLE.scores > 0, np.nan, TABLE.scores)))
    with pytest.raises(CulnigError, match="sample 'question .*' has no question"):
        instances_dict(TABLE, {})
    with pytest.raises(CulnigError, match="count is 0"):
        instances_dict(TABLE, QUESTIONS, count=0)


def test_parts_are_paired_bootstraps_of_their_points() -> None:
    results = tasks(("culture", "sense"), n=60)
    frame = parts_lost(results, SIZES, ["random-0", "random-1"], Drawing(resamples=500))
    assert list(dict.fromkeys(frame["part"])) == ["MLP alone", "attention alone", "both", "random"]
    names = {"MLP alone": "mlp", "attention alone": "attention", "both": "suppressed"}
    p: dict[str, list[float]] = {}
    for row in frame.itertuples():
        points = results[row.task].points
        mean = [(a + b) / 2 for a, b in zip(points["random-0"], points["random-1"], strict=True)]
        values = mean if row.part == "random" else points[names[row.part]]
        assert row.lost == pytest.approx(sum(points["original"]) / 60 - sum(values) / 60)
        expected = paired_bootstrap(points["original"], values, resamples=500)
        assert (row.low, row.high) == (expected.low, expected.high)
        assert row.low <= row.lost <= row.high
        assert row.neurons == (14 if row.part == "random" else SIZES[names[row.part]])
        if row.part == "random":
            assert math.isnan(row.p) and math.isnan(row.p_holm)
        else:
            assert row.p == paired_bootstrap(values, mean, resamples=500).p_less
            p.setdefault(row.part, []).append(row.p)
    for part, values in p.items():
        assert frame[frame["part"] == part]["p_holm"].tolist() == pytest.approx(holm(values).tolist())
    with pytest.raises(CulnigError, match="at least one random set"):
        parts_lost(results, SIZES, [])


def test_loss_is_the_difference_that_evaluate_reports() -> None:
    points = tasks(("culture",))["culture"]
    rows = {name: points.of(name) > 0 for name in ("original", "mlp")}
    ids = tuple(map(str, range(40)))
    text = tuple("A" * 40)
    one, other = (Evaluation(ids, text, text, text, rows[name], np.ones(40)) for name in ("mlp", "original"))
    frame = parts_lost({"culture": points}, SIZES, ["random-0"])
    assert frame["lost"].iloc[0] == pytest.approx(-compare(one, other)["difference"])


def resample(scores: ScoreTable, seed: int, count: int = 6) -> ScoreTable:
    """Groups weighted as a bootstrap over them would."""
    weight = np.random.default_rng(seed).integers(0, 3, (count, len(scores.groups)))
    weight[:, 0] = np.maximum(1, weight[:, 0])
    names = tuple(map(str, range(count)))
    return ScoreTable(
        weight @ scores.totals, names, weight @ scores.counts, weight @ scores.probability, (), scores.layout
    )


def test_resamples_are_selected_one_by_one() -> None:
    tables = [table(seed, WHERE) for seed in range(3)]
    drawn = [resample(one, seed) for seed, one in enumerate(tables)]

    def select(*given: ScoreTable | None) -> NeuronSet:
        return select_general(*given, mlp_share=0.1, attention_share=0.05)  # type: ignore[arg-type]

    full, sets = select(*tables), select_resamples(*drawn, select)
    assert list(sets) == list("012345")
    for i, chosen in enumerate(sets.values()):
        d = [
            drawn[0].totals[i][k] / drawn[0].counts[i] - drawn[1].totals[i][k] / drawn[1].counts[i]
            for k in range(WHERE.size)
        ]
        expected = set()
        for modules, share in ((["mlp.gate_proj"], 0.1), (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                                                           0.05)):  # fmt: skip
            pool = WHERE.indices(modules).tolist()
            surface = sorted(pool, key=lambda k: -drawn[2].totals[i][k])[: int(len(pool) * 0.01)]
            expected |= set(sorted(pool, key=lambda k: -d[k])[: int(len(pool) * share)]) - set(surface)
        assert set(chosen.flat(WHERE).tolist()) == expected
    assert len({tuple(one.flat(WHERE).tolist()) for one in sets.values()}) > 1
    frame = resample_overlaps(full, sets, WHERE)
    flat = {name: set(one.flat(WHERE).tolist()) for name, one in sets.items()}
    whole = set(full.flat(WHERE).tolist())
    for row in frame.itertuples():
        own = flat[row.resample]
        assert row.both == len(own & whole)
        assert row.jaccard == pytest.approx(len(own & whole) / len(own | whole))
        others = [len(own & b) / len(own | b) for name, b in flat.items() if name != row.resample]
        assert row.jaccard_others == pytest.approx(sum(others) / 5)
        assert 0 < row.expected < row.jaccard
    often = selection_frequency(full, sets, WHERE)
    assert len(often) == len(whole.union(*flat.values()))
    for row in often.itertuples():
        neuron = WHERE.flat(row.module_name, row.layer_idx, row.neuron_idx)
        assert row.times == sum(neuron in one for one in flat.values())
        assert row.frequency == row.times / 6
        assert row.in_full == (neuron in whole)
    assert (np.diff(often["times"]) <= 0).all()
    alone = select_resamples(drawn[0], None, None, lambda *given: select_general(*given, mlp_share=0.1))
    assert len(alone["0"]) > 0
    with pytest.raises(CulnigError, match="there are no resamples"):
        resample_overlaps(full, {}, WHERE)


def test_thresholds_are_selected_one_by_one() -> None:
    tables = [table(seed, WHERE) for seed in range(3)]
    frame = threshold_overlaps(*tables, mlp_share=(0.05, 0.2), attention_share=(0.1,), surface_share=(0.0, 0.1))
    settings = list(itertools.product((0.05, 0.2), (0.1,), (0.0, 0.1)))
    sets = [
        set(select_general(*tables, mlp_share=a, attention_share=b, surface_share=c).flat(WHERE).tolist())
        for a, b, c in settings
    ]
    assert len(frame) == 16
    for row in frame.itertuples():
        a, b = sets[row.a - 1], sets[row.b - 1]
        assert (row.mlp_share_a, row.attention_share_a, row.surface_share_a) == settings[row.a - 1]
        assert (row.mlp_share_b, row.attention_share_b, row.surface_share_b) == settings[row.b - 1]
        assert (row.neurons_a, row.neurons_b) == (len(a), len(b))
        assert row.jaccard == pytest.approx(len(a & b) / len(a | b))
