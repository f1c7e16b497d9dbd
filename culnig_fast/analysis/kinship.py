"""Which countries lose when another country's neurons are suppressed (CULNIG, section 9).

Suppressed sets differ in the damage they do anywhere, and countries in how easily they lose. The paper ranks the bare
drops; `centred` takes both differences out first, and says what is left for this pair of countries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.errors import CulnigError
from culnig_fast.tables.figures import TaskPoints

if TYPE_CHECKING:
    import pandas as pd

    from culnig_fast.evaluation import Evaluation

RANKED = ("drop", "centred")
"""What countries may be ranked by."""

MEASURES = ("accuracy", "probability")


def measured(evaluations: Mapping[str, Evaluation], measure: str = "accuracy") -> TaskPoints:
    """Points of each condition's questions, 0…100.

    Args:
        evaluations: condition → its results on the same questions in the same order.
        measure: `accuracy`, 100 for a right answer, or `probability`, 100 · P of the gold token, which also sees
            answers that only became less sure. A task with points of its own hands them over as `TaskPoints`.

    Raises:
        CulnigError: nothing evaluated, another measure, or conditions of different questions.
    """
    if measure not in MEASURES:
        raise CulnigError(f"measure is {measure!r}; choose {' or '.join(MEASURES)}")
    if not evaluations:
        raise CulnigError("nothing was evaluated; evaluate the original model and each country's set suppressed")
    first = next(iter(evaluations.values()))
    points = {}
    for name, one in evaluations.items():
        if one.ids != first.ids:
            raise CulnigError(f"condition {name!r} answered other questions than the first; evaluate both on the same")
        values = one.correct if measure == "accuracy" else one.probability
        points[name] = 100 * np.asarray(values, dtype=np.float64)
    return TaskPoints(first.groups, points)


def drops(task: TaskPoints, conditions: Mapping[str, str]) -> pd.DataFrame:
    """What every country loses under every country's suppression, and its rank among all countries.

    Args:
        task: points of a culture task whose groups are countries, with `original`.
        conditions: country whose neurons are suppressed → condition.

    Returns:
        One row a suppressed country and a country: `suppressed`, `country`, `questions`, `original` and `with` (mean
        points), `drop` (their difference), `centred` (the drop without the set's and the country's mean effect; see
        `centre`), `rank` and `rank_centred` (1 loses most; equal drops share their average rank), `own`.

    Raises:
        CulnigError: no condition, one that was not evaluated, or a suppressed country without questions.
    """
    import pandas as pd

    if not conditions:
        raise CulnigError("no country's neurons were suppressed; evaluate at least one country's set")
    countries = tuple(dict.fromkeys(task.groups))
    for name in conditions:
        if name not in countries:
            raise CulnigError(f"the task has no questions of {name!r}; it has {', '.join(countries)}")
    groups = np.array(task.groups, dtype=object)
    rows = [groups == country for country in countries]
    before = np.array([task.of("original")[row].mean() for row in rows])
    after = np.array([[task.of(condition)[row].mean() for row in rows] for condition in conditions.values()])
    # Means differ in their last bits by the order of summing; drops equal on paper must tie.
    drop = np.round(before - after, 9)
    own = np.array([[name == country for country in countries] for name in conditions])
    centred = np.round(centre(drop, own), 9)
    ranks, ranks_centred = rank_rows(drop), rank_rows(centred)
    return pd.DataFrame(
        {
            "suppressed": np.repeat(np.array(list(conditions), dtype=object), len(countries)),
            "country": np.tile(np.array(countries, dtype=object), len(conditions)),
            "questions": np.tile([int(row.sum()) for row in rows], len(conditions)),
            "original": np.tile(before, len(conditions)),
            "with": after.ravel(),
            "drop": drop.ravel(),
            "centred": centred.ravel(),
            "rank": ranks.ravel(),
            "rank_centred": ranks_centred.ravel(),
            "own": own.ravel(),
        }
    )


def centre(drop: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What remains of drops after an effect of each row (set) and column (country), float64 [sets, countries].

    drop ≈ mean + set + country is fitted by least squares to the cells that are not a country's own: those are large
    by design, and would make every country with a set look robust elsewhere. Where nothing is own this takes off the
    row and column means. Own cells hold their drop less the same effects.

    Args:
        drop: float64 [sets, countries].
        own: bool, same shape.
    """
    n_sets, n_countries = drop.shape
    design = np.zeros((drop.size, n_sets + n_countries))
    place = np.arange(drop.size)
    design[place, place // n_countries] = 1
    design[place, n_sets + place % n_countries] = 1
    others = ~own.ravel()
    effects, *_ = np.linalg.lstsq(design[others], drop.ravel()[others], rcond=None)
    return drop - (design @ effects).reshape(drop.shape)


def rank_rows(values: np.ndarray) -> np.ndarray:
    """Ranks within each row, 1 the largest, equal values by their average rank; float64, same shape."""
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(-values, method="average", axis=1)
    return ranks


def matrix(frame: pd.DataFrame, column: str) -> tuple[list[str], list[str], np.ndarray]:
    """A column of `drops` as suppressed countries, countries, and float64 [suppressed, countries]."""
    need(frame, ("suppressed", "country", column), "kinship")
    rows, columns = list(dict.fromkeys(frame["suppressed"])), list(dict.fromkeys(frame["country"]))
    return rows, columns, frame[column].to_numpy(dtype=np.float64).reshape(len(rows), len(columns))


def average_ranks(frame: pd.DataFrame, ranked: str = "drop") -> pd.DataFrame:
    """How near two countries are: the average of each one's rank when the other's neurons are suppressed.

    Args:
        frame: of `drops`.
        ranked: by `drop` (the paper's way) or by `centred`.

    Returns:
        One row an ordered pair of the suppressed countries: `a`, `b`, `rank_ab` (of b under a's suppression),
        `rank_ba`, `average_rank` (0 for a country with itself: a dissimilarity; its rank under its own suppression
        stays in `rank_ab`), `leaf` (place of a in the tree) and `ranked`.

    Raises:
        CulnigError: fewer than two countries were suppressed, or another `ranked`.
    """
    import pandas as pd

    rows, columns, ranks = matrix(frame, _rank_column(ranked))
    if len(rows) < 2:
        raise CulnigError("kinship needs the sets of at least two countries suppressed; evaluate another")
    square = ranks[:, [columns.index(name) for name in rows]]
    average = (square + square.T) / 2
    np.fill_diagonal(average, 0.0)
    leaf = {rows[place]: i for i, place in enumerate(cluster(average)["leaves"])}
    return pd.DataFrame(
        {
            "a": np.repeat(np.array(rows, dtype=object), len(rows)),
            "b": np.tile(np.array(rows, dtype=object), len(rows)),
            "rank_ab": square.ravel(),
            "rank_ba": square.T.ravel(),
            "average_rank": average.ravel(),
            "leaf": np.repeat([leaf[name] for name in rows], len(rows)),
            "ranked": ranked,
        }
    )


def cluster(dissimilarity: np.ndarray) -> dict[str, Any]:
    """Hierarchical clustering by average linkage, similar leaves side by side.

    Args:
        dissimilarity: float64 [n, n], symmetric, 0 on the diagonal, n ≥ 2.

    Returns:
        `linkage` (SciPy's, [n − 1, 4]), `leaves` (order of the rows), and `cophenetic`: the correlation of the tree's
        distances with the given ones, NaN where these are all equal.
    """
    from scipy.cluster.hierarchy import cophenet, leaves_list, linkage
    from scipy.spatial.distance import squareform

    condensed = squareform(dissimilarity, checks=False)
    tree = linkage(condensed, method="average", optimal_ordering=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = float(cophenet(tree, condensed)[0]) if np.ptp(condensed) > 0 else float("nan")
    return {"linkage": tree, "leaves": leaves_list(tree).tolist(), "cophenetic": correlation}


def _rank_column(ranked: str) -> str:
    if ranked not in RANKED:
        raise CulnigError(f"countries cannot be ranked by {ranked!r}; choose {' or '.join(RANKED)}")
    return "rank" if ranked == "drop" else "rank_centred"
