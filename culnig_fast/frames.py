"""Tables and sets as pandas frames and Arrow tables: one row a neuron."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import MODULE_NAMES

NAMES = ("module_name", "layer_idx", "neuron_idx")
SCORE = "attribute_score"
CATEGORIES: Mapping[str, Sequence[str]] = {NAMES[0]: MODULE_NAMES}
"""Columns that hold numbers of names, and the names."""

FACTS = b"culnig_fast"
"""Key of an Arrow table's metadata that holds what a frame has in `attrs`, as JSON."""


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


def from_pandas(frame: Any) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Module names, layers, columns and scores of a frame's rows, in their order; scores that it lacks are 0.

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
    return tuple(frame[NAMES[0]].astype(str)), whole[0], whole[1], scores


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
