"""Do the ranks of `kinship` recover countries known to be kin?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.analysis.kinship import RANKED, centre, matrix
from culnig_fast.errors import CulnigError

if TYPE_CHECKING:
    import pandas as pd

_CHUNK_CELLS = 4_000_000
"""Comparisons of drops held at once by the permutation test."""


def kin_ranks(frame: pd.DataFrame, kin: Iterable[Sequence[str]]) -> pd.DataFrame:
    """The rank of every kin under every suppression, the suppressed country itself left out.

    Args:
        frame: of `kinship.drops`.
        kin: groups of countries; all members of a group are kin of each other.

    Returns:
        One row a suppressed country and a kin of it: `suppressed`, `kin`, `rank` and `rank_centred` (1 loses most,
        ties averaged), `hit` and `hit_centred` (whether it is among the m that lose most, m being the suppressed
        country's number of kin; a fraction where ties cross that line), `others` (countries ranked) and `kin_count`.

    Raises:
        CulnigError: no suppressed country has kin among the countries.
    """
    import pandas as pd

    rows, columns, _ = matrix(frame, "drop")
    pairs = _pairs(rows, columns, kin)
    top = _kin_counts(pairs)
    found = {name: _ranks(matrix(frame, name)[2], _own(rows, columns), pairs, top) for name in RANKED}
    return pd.DataFrame(
        {
            "suppressed": [rows[s] for s, _ in pairs],
            "kin": [columns[c] for _, c in pairs],
            "rank": found["drop"][0],
            "rank_centred": found["centred"][0],
            "hit": found["drop"][1],
            "hit_centred": found["centred"][1],
            "others": len(columns) - 1,
            "kin_count": top,
        }
    )


def kin_recovery(
    frame: pd.DataFrame, kin: Iterable[Sequence[str]], *, permutations: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """How well kin are recovered, against chance, by bare and by centred drops.

    The test renames countries at random, suppressed ones among themselves and the others among themselves, in what the
    drops are beyond each set's and each country's own effect, and puts these effects back. So every country keeps its
    overall drop, and every set the damage it does: a kin that is merely fragile proves nothing.

    Args:
        frame, kin: as for `kin_ranks`.
        permutations: of the test.
        seed: of NumPy's PCG64.

    Returns:
        Two rows, `ranked` by `drop` and by `centred`: `pairs` (ordered), `mean_rank` of kin and `chance_rank`
        ((countries + 1) / 2 of the others), `share` of kin among the m that lose most and `chance_share`, and of the
        test `null_rank`, `null_share` (means over the permutations), `p_rank`, `p_share` (one-sided,
        (1 + as good) / (1 + permutations)).
    """
    import pandas as pd

    if permutations < 1:
        raise CulnigError(f"permutations is {permutations}; draw at least one")
    rows, columns, drop = matrix(frame, "drop")
    pairs, own = _pairs(rows, columns, kin), _own(rows, columns)
    top = _kin_counts(pairs)
    rest = centre(drop, own)
    effects = drop - rest
    nulls: dict[str, list[np.ndarray]] = {name: [] for name in RANKED}
    generator = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, _CHUNK_CELLS // (len(pairs) * len(columns)))
    for start in range(0, permutations, chunk):
        orders = [_renaming(rows, columns, generator) for _ in range(min(chunk, permutations - start))]
        moved = np.stack([rest[np.ix_(by_row, by_column)] for by_row, by_column in orders])
        for name, values in (("drop", np.round(effects + moved, 9)), ("centred", np.round(moved, 9))):
            ranks, hits = _ranks(values, own, pairs, top)
            nulls[name].append(np.stack([ranks.mean(-1), hits.mean(-1)], axis=-1))
    result: list[dict[str, Any]] = []
    for name in RANKED:
        # The observed drops took part in the test's own arithmetic, so that equal is equal.
        values = np.round(effects + rest if name == "drop" else rest, 9)
        rank, share = (float(x.mean()) for x in _ranks(values, own, pairs, top))
        null = np.concatenate(nulls[name])
        result.append(
            {
                "ranked": name,
                "pairs": len(pairs),
                "mean_rank": rank,
                "chance_rank": len(columns) / 2,
                "share": share,
                "chance_share": float(top.mean() / (len(columns) - 1)),
                "null_rank": float(null[:, 0].mean()),
                "null_share": float(null[:, 1].mean()),
                "p_rank": (1 + int((null[:, 0] <= rank + 1e-12).sum())) / (1 + permutations),
                "p_share": (1 + int((null[:, 1] >= share - 1e-12).sum())) / (1 + permutations),
                "permutations": permutations,
            }
        )
    return pd.DataFrame(result)


def _pairs(rows: list[str], columns: list[str], kin: Iterable[Sequence[str]]) -> list[tuple[int, int]]:
    """(row, column) of every suppressed country and kin."""
    groups = [set(group) for group in kin]
    pairs = [
        (s, c)
        for s, name in enumerate(rows)
        for c, other in enumerate(columns)
        if name != other and any({name, other} <= group for group in groups)
    ]
    if not pairs:
        raise CulnigError(
            f"none of the suppressed countries ({', '.join(rows)}) has kin among the task's; give groups of these names"
        )
    return pairs


def _kin_counts(pairs: list[tuple[int, int]]) -> np.ndarray:
    """Number of kin of each pair's suppressed country, int64 [pairs]."""
    rows = [s for s, _ in pairs]
    return np.array([rows.count(s) for s in rows], dtype=np.int64)


def _own(rows: list[str], columns: list[str]) -> np.ndarray:
    return np.array([[row == column for column in columns] for row in rows])


def _ranks(
    drop: np.ndarray, own: np.ndarray, pairs: list[tuple[int, int]], top: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of kin among the other countries and their hits, float64 [..., pairs], of drops [..., sets, countries]."""
    s, c = (np.array(x) for x in zip(*pairs, strict=True))
    others = ~own[s]  # [pairs, countries]
    values, mine = drop[..., s, :], drop[..., s, c][..., None]
    above = ((values > mine) & others).sum(-1)
    ties = ((values == mine) & others).sum(-1)  # itself among them
    return above + (ties + 1) / 2, np.clip((top - above) / ties, 0.0, 1.0)


def _renaming(rows: list[str], columns: list[str], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which row and which column stands in each place, the same renaming for both."""
    by_row = generator.permutation(len(rows))
    by_column = np.arange(len(columns))
    suppressed = np.array([columns.index(name) for name in rows])
    by_column[suppressed] = suppressed[by_row]
    rest = np.setdiff1d(np.arange(len(columns)), suppressed)
    by_column[rest] = generator.permutation(rest)
    return by_row, by_column
