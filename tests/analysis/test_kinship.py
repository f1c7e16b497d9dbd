"""Drops, ranks and recovered kin against loops over questions and pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from culnig_fast.analysis.kin import kin_ranks, kin_recovery
from culnig_fast.analysis.kinship import average_ranks, centre, cluster, drops, matrix, measured, rank_rows
from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import Evaluation
from culnig_fast.tables.figures import TaskPoints
from tests.analysis.made import culture

NAMES = ("UK", "USA", "Spain", "Mexico", "Iran", "Greece")
SUPPRESSED = ("USA", "Mexico", "UK", "Iran")
CONDITIONS = {name: f"specific-{name}" for name in SUPPRESSED}
TASK = culture(NAMES, each=20)


def average_rank(values: list[float], place: int) -> float:
    above = sum(value > values[place] for value in values)
    return above + (sum(value == values[place] for value in values) + 1) / 2


def test_drops_and_ranks_are_those_of_a_loop() -> None:
    frame = drops(TASK, CONDITIONS)
    assert len(frame) == 24
    lost: dict[str, list[float]] = {}
    for name in SUPPRESSED:
        for country in NAMES:
            rows = [i for i, group in enumerate(TASK.groups) if group == country]
            before = sum(TASK.points["original"][i] for i in rows) / len(rows)
            after = sum(TASK.points[f"specific-{name}"][i] for i in rows) / len(rows)
            lost.setdefault(name, []).append(round(before - after, 9))
    for row in frame.itertuples():
        values = lost[row.suppressed]
        assert row.drop == values[NAMES.index(row.country)]
        assert row.drop == pytest.approx(row.original - frame.loc[row.Index, "with"])
        assert row.rank == average_rank(values, NAMES.index(row.country))
        assert row.own == (row.suppressed == row.country)
        assert row.questions == 20
    ranks = frame["rank"].to_numpy()
    assert (ranks != np.round(ranks)).any()  # there were ties


def test_centred_drops_leave_no_effect_of_set_or_country() -> None:
    _, columns, drop = matrix(drops(TASK, CONDITIONS), "drop")
    own = np.array([[a == b for b in columns] for a in SUPPRESSED])
    rest = centre(drop, own)
    others = np.where(own, 0.0, rest)
    assert others.sum(0) == pytest.approx(np.zeros(6), abs=1e-9)
    assert others.sum(1) == pytest.approx(np.zeros(4), abs=1e-9)
    # What is taken off is a sum of one number a row and one a column.
    effects = drop - rest
    for i, j in itertools.product(range(1, 4), range(1, 6)):
        assert effects[i, j] - effects[0, j] == pytest.approx(effects[i, 0] - effects[0, 0])
    # Damage added to a set and fragility added to a country change nothing that remains.
    shifted = drop + np.arange(4)[:, None] + 10 * np.arange(6)[None]
    assert centre(shifted, own) == pytest.approx(rest)


def test_without_own_cells_centring_takes_off_means() -> None:
    drop = np.random.default_rng(0).random((3, 5))
    plain = drop - drop.mean(1, keepdims=True) - drop.mean(0, keepdims=True) + drop.mean()
    assert centre(drop, np.zeros((3, 5), dtype=bool)) == pytest.approx(plain)


def test_average_ranks_are_of_both_directions() -> None:
    frame = drops(TASK, CONDITIONS)
    for ranked, column in (("drop", "rank"), ("centred", "rank_centred")):
        pairs = average_ranks(frame, ranked)
        by = {(row.suppressed, row.country): getattr(row, column) for row in frame.itertuples()}
        assert len(pairs) == 16
        for row in pairs.itertuples():
            assert row.rank_ab == by[row.a, row.b]
            assert row.rank_ba == by[row.b, row.a]
            assert row.average_rank == (0.0 if row.a == row.b else (by[row.a, row.b] + by[row.b, row.a]) / 2)
        assert sorted(set(pairs["leaf"])) == [0, 1, 2, 3]


def test_the_tree_joins_by_average_linkage() -> None:
    """Every joint stands at the mean distance of the leaves that it joins."""
    rng = np.random.default_rng(3)
    distance = rng.random((7, 7))
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    found = cluster(distance)
    members = {i: [i] for i in range(7)}
    joined = np.zeros((7, 7))
    for step, (left, right, height, size) in enumerate(found["linkage"]):
        a, b = members.pop(int(left)), members.pop(int(right))
        mean = np.mean([distance[i, j] for i in a for j in b])
        assert height == pytest.approx(mean)
        # Nothing that is still apart is nearer.
        for x, y in itertools.combinations([a, b, *members.values()], 2):
            assert np.mean([distance[i, j] for i in x for j in y]) >= height - 1e-12
        for i, j in itertools.product(a, b):
            joined[i, j] = joined[j, i] = height
        members[7 + step] = a + b
        assert size == len(a + b)
    upper = np.triu_indices(7, 1)
    assert found["cophenetic"] == pytest.approx(np.corrcoef(distance[upper], joined[upper])[0, 1])
    assert sorted(found["leaves"]) == list(range(7))
    assert math.isnan(cluster(np.ones((3, 3)) - np.eye(3))["cophenetic"])


def test_kin_ranks_are_those_of_a_loop() -> None:
    frame = drops(TASK, CONDITIONS)
    kin = [("UK", "USA"), ("Spain", "Mexico"), ("Iran", "Greece", "UK")]
    found = kin_ranks(frame, kin)
    expected = {(a, b) for a in SUPPRESSED for b in NAMES if a != b and any(a in group and b in group for group in kin)}
    assert {(row.suppressed, row.kin) for row in found.itertuples()} == expected
    for column, rank_name, hit_name in (("drop", "rank", "hit"), ("centred", "rank_centred", "hit_centred")):
        value = {(row.suppressed, row.country): getattr(row, column) for row in frame.itertuples()}
        for row in found.itertuples():
            others = [name for name in NAMES if name != row.suppressed]
            values = [value[row.suppressed, name] for name in others]
            place = others.index(row.kin)
            assert getattr(row, rank_name) == average_rank(values, place)
            m = sum(a == row.suppressed for a, _ in expected)
            assert (row.kin_count, row.others) == (m, 5)
            # A tie across the line counts by how much of it lies above, over all orders of the tied.
            tied = [i for i, v in enumerate(values) if v == values[place]]
            above = sum(v > values[place] for v in values)
            orders = list(itertools.permutations(tied))
            hit = sum(above + order.index(place) < m for order in orders) / len(orders)
            assert getattr(row, hit_name) == pytest.approx(hit)


def test_recovery_against_the_plain_means_and_a_plain_permutation_test() -> None:
    frame = drops(TASK, CONDITIONS)
    kin = [("UK", "USA"), ("Spain", "Mexico"), ("Iran", "Greece")]
    ranks = kin_ranks(frame, kin)
    found = kin_recovery(frame, kin, permutations=3000).set_index("ranked")
    assert found.loc["drop", "mean_rank"] == pytest.approx(ranks["rank"].mean())
    assert found.loc["centred", "share"] == pytest.approx(ranks["hit_centred"].mean())
    assert (found["chance_rank"] == 3.0).all()
    assert (found["chance_share"] == 0.2).all()
    # All renamings: 4! of the suppressed times 2! of the others, by loops.
    rows, columns, drop = matrix(frame, "drop")
    own = np.array([[a == b for b in columns] for a in rows])
    rest = centre(drop, own)
    effects = drop - rest
    means: dict[str, list[float]] = {"drop": [], "centred": []}
    free = [name for name in columns if name not in rows]
    for order in itertools.permutations(rows):
        for others in itertools.permutations(free):
            renamed = dict(zip([*rows, *free], [*order, *others], strict=True))
            for name, drawn in means.items():
                total = []
                for pair in ranks.itertuples():
                    s = rows.index(pair.suppressed)
                    values = []
                    for j, country in enumerate(columns):
                        moved = rest[rows.index(renamed[pair.suppressed]), columns.index(renamed[country])]
                        values.append(round(moved + (effects[s, j] if name == "drop" else 0.0), 9))
                    candidates = [j for j, country in enumerate(columns) if country != pair.suppressed]
                    place = candidates.index(columns.index(pair.kin))
                    total.append(average_rank([values[j] for j in candidates], place))
                drawn.append(sum(total) / len(total))
    for name, column in (("drop", "rank"), ("centred", "rank_centred")):
        exact = np.mean(np.array(means[name]) <= ranks[column].mean() + 1e-9)
        assert abs(found.loc[name, "p_rank"] - exact) < 5 * math.sqrt(exact * (1 - exact) / 3000) + 1e-3
        assert found.loc[name, "null_rank"] == pytest.approx(np.mean(means[name]), abs=0.1)


def test_kin_by_construction_are_recovered_and_strangers_are_not() -> None:
    names = tuple("abcdefghij")
    task = culture(names, each=150, seed=4)
    frame = drops(task, {name: f"specific-{name}" for name in names})
    kin = [names[i : i + 2] for i in range(9)]  # neighbours lose four times as much
    clear = kin_recovery(frame, kin, permutations=999).set_index("ranked")
    assert (clear["p_rank"] == 0.001).all() and (clear["p_share"] == 0.001).all()
    assert (clear["share"] > 0.9).all()
    strangers = [("a", "e"), ("b", "h"), ("c", "j"), ("d", "g")]
    apart = kin_recovery(frame, strangers, permutations=999).set_index("ranked")
    assert (apart["p_rank"] > 0.05).all()


def test_a_merely_fragile_kin_proves_nothing() -> None:
    """Two countries lose under every suppression: bare ranks place them on top, and the test is not impressed."""
    names = tuple("abcdefgh")
    rng = np.random.default_rng(1)
    groups = tuple(names[i % 8] for i in range(1600))
    original = np.full(1600, 100.0)
    chance = np.where(np.isin(groups, ("a", "b")), 0.5, 0.1)
    points = {"original": original, **{name: original * (rng.random(1600) > chance) for name in names}}
    frame = drops(TaskPoints(groups, points), {name: name for name in names})
    found = kin_recovery(frame, [("a", "b")], permutations=999).set_index("ranked")
    assert found.loc["drop", "mean_rank"] == 1.0
    assert found.loc["drop", "share"] == 1.0
    assert found.loc["drop", "p_rank"] > 0.9


def evaluation(seed: int, ids: tuple[str, ...] = ("a", "b", "c")) -> Evaluation:
    rng = np.random.default_rng(seed)
    return Evaluation(ids, ("UK", "USA", "UK"), ("A",) * 3, ("A", "B", "A"), np.array([1, 0, 1], bool), rng.random(3))


def test_measures() -> None:
    both = {"original": evaluation(0), "specific-UK": evaluation(1)}
    assert measured(both).of("specific-UK").tolist() == [100.0, 0.0, 100.0]
    assert measured(both, "probability").of("original") == pytest.approx(100 * evaluation(0).probability)
    assert measured(both).groups == ("UK", "USA", "UK")
    with pytest.raises(CulnigError, match="measure is 'rank'; choose accuracy or probability"):
        measured(both, "rank")
    with pytest.raises(CulnigError, match="condition 'x' answered other questions"):
        measured({**both, "x": evaluation(0, ("a", "c", "b"))})
    with pytest.raises(CulnigError, match="nothing was evaluated"):
        measured({})


def test_refusals() -> None:
    frame = drops(TASK, CONDITIONS)
    with pytest.raises(CulnigError, match="no country's neurons were suppressed"):
        drops(TASK, {})
    with pytest.raises(CulnigError, match="no questions of 'Assam'; it has UK"):
        drops(TASK, {"Assam": "original"})
    with pytest.raises(CulnigError, match="condition 'specific-Assam' was not evaluated"):
        drops(TASK, {"UK": "specific-Assam"})
    with pytest.raises(CulnigError, match="at least two countries"):
        average_ranks(drops(TASK, {"UK": "specific-UK"}))
    with pytest.raises(CulnigError, match="cannot be ranked by 'size'"):
        average_ranks(frame, "size")
    with pytest.raises(CulnigError, match="has kin among the task's"):
        kin_ranks(frame, [("Spain", "Greece")])
    with pytest.raises(CulnigError, match="permutations is 0"):
        kin_recovery(frame, [("UK", "USA")], permutations=0)
    assert rank_rows(np.array([[1.0, 3.0, 3.0]])).tolist() == [[3.0, 1.5, 1.5]]
