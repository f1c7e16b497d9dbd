"""Ordered sets of neurons, and their files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import json_digest, read_json, write_json
from culnig_fast.neurons import (
    EXPERT_MODULES,
    MODULE_RANK,
    NeuronLayout,
    check_module_names,
    finite,
    whole,
)


class Neuron(NamedTuple):
    """One neuron and the score that it was chosen by."""

    module_name: str
    layer_idx: int
    neuron_idx: int
    attribute_score: float


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """An ordered set of neurons, best first, with their scores.

    Attributes:
        module_names: [n] module name of each neuron.
        layer_idx: int64 [n] decoder layer.
        neuron_idx: int64 [n] column within the module.
        scores: float64 [n] the score that ranked it (0 for random sets).
        info: JSON-ready facts about how it was chosen.

    Raises:
        CulnigError: lengths differ, a module name is unknown, an index is negative, or a neuron occurs twice.
    """

    module_names: tuple[str, ...]
    layer_idx: np.ndarray
    neuron_idx: np.ndarray
    scores: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "module_names", tuple(str(name) for name in self.module_names))
        set_(self, "layer_idx", np.asarray(self.layer_idx, dtype=np.int64).reshape(-1))
        set_(self, "neuron_idx", np.asarray(self.neuron_idx, dtype=np.int64).reshape(-1))
        set_(self, "scores", np.asarray(self.scores, dtype=np.float64).reshape(-1))
        n = len(self.module_names)
        if not n == len(self.layer_idx) == len(self.neuron_idx) == len(self.scores):
            raise CulnigError("a neuron set needs as many layers, columns and scores as module names")
        if n:
            check_module_names(set(self.module_names))
            if self.layer_idx.min() < 0 or self.neuron_idx.min() < 0:
                raise CulnigError("a neuron set holds a negative layer or neuron index; both count from 0")
        again = _first_repeat(self.module_names, self.layer_idx, self.neuron_idx)
        if again is not None:
            name, layer, column = self.module_names[again], self.layer_idx[again], self.neuron_idx[again]
            raise CulnigError(f"neuron {column} of {name} in layer {layer} is listed twice; list each once")

    @classmethod
    def from_flat(
        cls, layout: NeuronLayout, flat: Any, scores: Any = None, info: dict[str, Any] | None = None
    ) -> NeuronSet:
        """The set of the flat indices [n] of `layout`, in the order given; scores [n] default to 0."""
        names, layers, columns = layout.locate(flat)
        scores = np.zeros(len(names)) if scores is None else scores
        chosen = set(names)
        # With it a reader of the file tells expert and column: neuron_idx divided by the width, and the remainder.
        widths = {s.module_name: s.width // s.experts for s in layout.sites if s.module_name in EXPERT_MODULES}
        widths = {name: width for name, width in widths.items() if name in chosen}
        return cls(
            tuple(names), layers, columns, scores, {**(info or {}), **({"expert_width": widths} if widths else {})}
        )

    @classmethod
    def empty(cls) -> NeuronSet:
        """The set of no neurons: an intervention on it changes nothing."""
        return cls((), np.zeros(0), np.zeros(0), np.zeros(0))

    def flat(self, layout: NeuronLayout) -> np.ndarray:
        """Flat indices, int64 [n], in set order; CulnigError for a neuron that `layout` does not hold."""
        # Sites are in this order. One neuron after the other takes 33 ms for 31,457 of them in place of 2.6.
        keys = _site_keys([s.module_name for s in layout.sites], np.array([s.layer_idx for s in layout.sites]))
        own = _site_keys(self.module_names, self.layer_idx)
        site = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        widths = np.array([s.width for s in layout.sites], dtype=np.int64)
        for missing in np.flatnonzero((keys[site] != own) | (self.neuron_idx >= widths[site]))[:1]:
            layout.flat(self.module_names[missing], int(self.layer_idx[missing]), int(self.neuron_idx[missing]))
        flat: np.ndarray = (np.cumsum(widths) - widths)[site] + self.neuron_idx
        return flat

    def where(self, module_names: Sequence[str]) -> NeuronSet:
        """The subset that lies in the named modules, order kept."""
        wanted = check_module_names(module_names)
        keep = np.array([name in wanted for name in self.module_names], dtype=bool)
        names = tuple(name for name, kept in zip(self.module_names, keep, strict=True) if kept)
        return NeuronSet(names, self.layer_idx[keep], self.neuron_idx[keep], self.scores[keep], dict(self.info))

    def per_layer(self, n_layers: int) -> list[int]:
        """How many of the neurons lie in each of `n_layers` layers; CulnigError when one lies beyond."""
        if len(self) and int(self.layer_idx.max()) >= n_layers:
            raise CulnigError(f"a neuron lies in layer {self.layer_idx.max()}, the model has layers 0…{n_layers - 1}")
        counts: list[int] = np.bincount(self.layer_idx, minlength=n_layers).tolist()
        return counts

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the published program's JSON (`top_neurons`), our facts beside it under `info`; atomic."""
        neurons = [neuron._asdict() for neuron in self]
        written = {"info": self.info, "top_neurons": neurons}
        write_json(path, {**written, "content": json_digest(written)}, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> NeuronSet:
        """Read `top_neurons` from a file of ours or of the published program.

        Raises:
            CulnigError: the file is not JSON, holds no `top_neurons`, an entry lacks a field, or the file carries a
                content hash and was altered since.
        """
        value = read_json(path)
        entries = value.get("top_neurons") if isinstance(value, dict) else None
        if not isinstance(entries, list):
            raise CulnigError(f"{path} is not a neuron set: it has no list `top_neurons`; write one with `select`")
        info = value.get("info", {})
        if not isinstance(info, dict):
            raise CulnigError(f"{path}: `info` is no object; write the set anew with `select`")
        if "content" in value and value["content"] != json_digest({"info": info, "top_neurons": entries}):
            raise CulnigError(
                f"{path} was altered after it was written (its content hash differs); restore it, or delete the entry "
                "`content` if the change is meant"
            )
        columns: list[list[Any]] = [[], [], [], []]
        for rank, entry in enumerate(entries):
            try:
                row = (
                    str(entry["module_name"]),
                    whole(entry["layer_idx"]),
                    whole(entry["neuron_idx"]),
                    finite(entry.get("attribute_score", 0.0)),
                )
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise CulnigError(
                    f"{path}: entry {rank} of `top_neurons` needs module_name, layer_idx and neuron_idx "
                    f"({error!r:.200})"
                ) from error
            for column, cell in zip(columns, row, strict=True):
                column.append(cell)
        names, layers, neurons, scores = columns
        try:
            return cls(tuple(names), np.array(layers, np.int64), np.array(neurons, np.int64), np.array(scores), info)
        except (CulnigError, OverflowError) as error:
            raise CulnigError(f"{path}: {error}") from error

    def to_pandas(self) -> Any:
        """A frame of one row a neuron, best first: module_name, layer_idx, neuron_idx, attribute_score; `info` is
        in its `attrs`."""
        from culnig_fast import frames

        return frames.to_pandas(*self._frame())

    def to_arrow(self) -> Any:
        """As `to_pandas`, a pyarrow.Table; `info` is JSON under `culnig_fast` in its metadata."""
        from culnig_fast import frames

        return frames.to_arrow(*self._frame())

    @classmethod
    def from_pandas(cls, frame: Any, info: dict[str, Any] | None = None) -> NeuronSet:
        """The set of a frame's rows in their order, e.g. of a filtered `to_pandas()`.

        Args:
            frame: with module_name, layer_idx and neuron_idx; without attribute_score the scores are 0.
            info: facts of the set; None takes what the frame has in its `attrs`.

        Raises:
            CulnigError: a column is missing, an index is no whole number, a score is not finite, or as for the class.
        """
        from culnig_fast import frames

        columns = frames.from_pandas(frame)
        return cls(*columns, dict(frame.attrs.get("info", {}) if info is None else info))

    def _frame(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Columns, best first, and what the set says of itself."""
        from culnig_fast.frames import NAMES, SCORE

        codes = _ranks(self.module_names).astype(np.int8)
        columns = (codes, self.layer_idx, self.neuron_idx, self.scores)
        return dict(zip((*NAMES, SCORE), columns, strict=True)), {"info": self.info}

    def __iter__(self) -> Iterator[Neuron]:
        rows = (self.module_names, self.layer_idx.tolist(), self.neuron_idx.tolist(), self.scores.tolist())
        return (Neuron(*row) for row in zip(*rows, strict=True))

    def __len__(self) -> int:
        return len(self.module_names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet) or self.module_names != other.module_names:
            return False
        mine, theirs = ((one.layer_idx, one.neuron_idx, one.scores) for one in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"NeuronSet({len(self):,} neurons)"


def _ranks(names: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(MODULE_RANK.__getitem__, names), np.int64, len(names))


def _site_keys(names: Sequence[str], layers: np.ndarray) -> np.ndarray:
    """One number for each (module, layer), int64 [n], in flat order; layers that no layout can have share one."""
    keys: np.ndarray = np.minimum(layers, 2**31) * len(MODULE_RANK) + _ranks(names)
    return keys


def _first_repeat(names: Sequence[str], layers: np.ndarray, columns: np.ndarray) -> int | None:
    """Position of the first neuron that stands before it already, or None."""
    if not len(names):
        return None
    depth, width = int(layers.max()) + 1, int(columns.max()) + 1
    if len(MODULE_RANK) * depth * width < 2**63:
        # One number a neuron: 73,000 of them take 8 ms, a Python set of tuples takes 25 ms.
        keys = (_ranks(names) * depth + layers) * width + columns
        ordered = np.sort(keys)
        if not (ordered[1:] == ordered[:-1]).any():
            return None
    seen: set[tuple[str, int, int]] = set()
    for position, key in enumerate(zip(names, layers.tolist(), columns.tolist(), strict=True)):
        if key in seen:
            return position
        seen.add(key)
    return None
