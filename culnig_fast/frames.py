"""Tables and sets as pandas frames and Arrow tables: one row a neuron."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import MODULE_NAMES

if TYPE_CHECKING:
    from culnig_fast.scores import ScoreTable

NAMES = ("module_name", "layer_idx", "neuron_idx")
SCORE = "attribute_score"
CATEGORIES: Mapping[str, Sequence[str]] = {NAMES[0]: MODULE_NAMES}
"""Columns that hold numbers of names, and the names."""

FACTS = b"culnig_fast"
"""Key of an Arrow table's metadata that holds what a frame has in `attrs`, as JSON."""


def table_columns(table: ScoreTable, groups: Sequence[str] | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns of a score table, names first and then one a group, and what it says of itself.

    Raises:
        CulnigError: there is no such group, or one is called like a column of names.
    """
    chosen = table.groups if groups is None else tuple(groups)
    rows = [table.group_index(name) for name in chosen]
    taken = [name for name in chosen if name in NAMES]
    if taken:
        raise CulnigError(f"a group is called {taken[0]!r}, as a column of names is; choose others with `groups`")
    _, layers, columns = table.layout.locate(np.arange(table.layout.size))
    codes = [np.full(s.width, MODULE_NAMES.index(s.module_name), dtype=np.int8) for s in table.layout.sites]
    facts = {
        "counts": {name: int(table.counts[row]) for name, row in zip(chosen, rows, strict=True)},
        "probability": {name: float(table.probability[row]) for name, row in zip(chosen, rows, strict=True)},
        "metadata": table.metadata,
    }
    named = dict(zip(NAMES, (np.concatenate(codes), layers, columns), strict=True))
    return named | {name: table.totals[row] for name, row in zip(chosen, rows, strict=True)}, facts


def set_columns(neurons: NeuronSet) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns of a set, best first, and its `info`."""
    codes = np.array([MODULE_NAMES.index(name) for name in neurons.module_names], dtype=np.int8)
    columns = (codes, neurons.layer_idx, neurons.neuron_idx, neurons.scores)
    return dict(zip((*NAMES, SCORE), columns, strict=True)), {"info": neurons.info}


def to_pandas(
    columns: dict[str, np.ndarray], facts: dict[str, Any], categories: Mapping[str, Sequence[str]] = CATEGORIES
) -> Any:
    """A frame with names as categoricals and the facts in `attrs`."""
    import pandas

    named = {
        name: pandas.Categorical.from_codes(columns[name], categories=list(names)) for name, names in categories.items()
    }
    frame = pandas.DataFrame({**columns, **named})
    frame.attrs.update(facts)
    return frame


def to_arrow(
    columns: dict[str, np.ndarray], facts: dict[str, Any], categories: Mapping[str, Sequence[str]] = CATEGORIES
) -> Any:
    """A table with names as dictionary columns and the facts as JSON in its metadata."""
    import pyarrow

    arrays = {name: pyarrow.array(column) for name, column in columns.items()}
    for name, names in categories.items():
        arrays[name] = pyarrow.DictionaryArray.from_arrays(arrays[name], pyarrow.array(names, pyarrow.string()))
    table = pyarrow.Table.from_arrays(list(arrays.values()), names=list(arrays))
    return table.replace_schema_metadata({FACTS: json.dumps(facts, ensure_ascii=False)})


def set_from_pandas(frame: Any, info: dict[str, Any] | None = None) -> NeuronSet:
    """The set of a frame's rows, in their order.

    Raises:
        CulnigError: a column is missing, a layer or column is no whole number, or a score not finite.
    """
    missing = [name for name in NAMES if name not in frame.columns]
    if missing:
        raise CulnigError(f"the frame has no column {', '.join(missing)}; a neuron needs {', '.join(NAMES)}")
    whole = [_whole(frame, name) for name in NAMES[1:]]
    scores = _numbers(frame, SCORE) if SCORE in frame.columns else np.zeros(len(frame))
    if not np.isfinite(scores).all():
        raise CulnigError(f"row {int(np.flatnonzero(~np.isfinite(scores))[0])} of {SCORE} is not finite; leave it out")
    kept = frame.attrs.get("info", {}) if info is None else info
    return NeuronSet(tuple(frame[NAMES[0]].astype(str)), whole[0], whole[1], scores, dict(kept))


def _whole(frame: Any, name: str) -> np.ndarray:
    values = _numbers(frame, name)
    bad = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
    if bad.size:
        raise CulnigError(f"row {int(bad[0])} of {name} is {values[bad[0]]}, not a whole number")
    return values.astype(np.int64)


def _numbers(frame: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise CulnigError(f"the column {name} holds something else than numbers ({error})") from error
