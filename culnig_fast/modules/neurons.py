"""Ordered sets of any module's neurons, and their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import json_digest, json_text, read_json, write_json
from culnig_fast.interleaved import places as columns_in_order
from culnig_fast.modules.sites import SIDES, ModuleLayout
from culnig_fast.neurons import finite, whole

if TYPE_CHECKING:
    from culnig_fast.neuron_sets import NeuronSet

_ENTRIES = "module_neurons"


class ModuleNeuron(NamedTuple):
    """One neuron, where it lies, and the score that it was chosen by."""

    path: str
    column: int
    side: str
    dim: int | None
    score: float


@dataclass(frozen=True, eq=False)
class ModuleNeurons:
    """An ordered set of neurons of any `nn.Module`, best first, with their scores.

    `suppress`, `scaled` and `replaced_columns` take one, and so does `watch` of a `ModuleAttributor`.

    Attributes:
        paths: [n] the module of each neuron, as `named_modules()` gives it.
        columns: int64 [n] column of the module's whole tensor.
        sides: [n] `output` or `input`.
        dims: [n] the dimension that counts neurons, see `ModuleSite`.
        scores: float64 [n] the score that ranked it.
        info: JSON-ready facts about how it was chosen.

    Raises:
        CulnigError: lengths differ, a column is negative, a side unknown, or a neuron occurs twice.
    """

    paths: tuple[str, ...]
    columns: np.ndarray
    sides: tuple[str, ...]
    dims: tuple[int | None, ...]
    scores: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_, n = object.__setattr__, len(self.paths)
        set_(self, "paths", tuple(str(path) for path in self.paths))
        set_(self, "columns", np.asarray(self.columns, dtype=np.int64).reshape(-1))
        set_(self, "sides", tuple(str(side) for side in self.sides))
        set_(self, "dims", tuple(None if dim is None else int(dim) for dim in self.dims))
        set_(self, "scores", np.asarray(self.scores, dtype=np.float64).reshape(-1))
        if not n == len(self.columns) == len(self.sides) == len(self.dims) == len(self.scores):
            raise CulnigError("a set of module neurons needs as many columns, sides, dims and scores as paths")
        seen: set[tuple[str, int, str]] = set()
        for path, column, side, dim, _ in self:
            if side not in SIDES:
                raise CulnigError(f"column {column} of {path!r}: unknown side {side!r}; choose from {', '.join(SIDES)}")
            if column < 0 or dim == 0:
                raise CulnigError(
                    f"column {column} of {path!r}, dim {dim}, is no neuron; columns count from 0, dims from 1"
                )
            if (path, column, side) in seen:
                raise CulnigError(f"column {column} of the {side} of {path!r} is listed twice; list each once")
            seen.add((path, column, side))

    @classmethod
    def named(
        cls,
        neurons: Iterable[tuple[Any, ...]],
        *,
        dim: int | None = -1,
        scores: Any = None,
        info: dict[str, Any] | None = None,
    ) -> ModuleNeurons:
        """The set of (path, column) or (path, column, side), e.g. `[("blocks.0.mlp.fc1", 3), ("head", 7, "input")]`.

        Args:
            neurons: in the order of the set.
            dim: of all of them.
            scores: [n]; 0 when None.
            info: facts of the set.

        Raises:
            CulnigError: a column is no whole number, or as for the class.
        """
        rows = [(*one, "output")[:3] for one in neurons]
        try:
            columns = np.array([whole(column) for _, column, _ in rows], dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise CulnigError(f"neurons are (path, column) or (path, column, side); {error}") from error
        paths, sides = tuple(path for path, *_ in rows), tuple(side for *_, side in rows)
        scores = np.zeros(len(rows)) if scores is None else scores
        return cls(paths, columns, sides, (dim,) * len(rows), scores, dict(info or {}))

    @classmethod
    def from_flat(
        cls, layout: ModuleLayout, flat: Any, scores: Any = None, info: dict[str, Any] | None = None
    ) -> ModuleNeurons:
        """The set of the flat indices [n] of `layout`, in the order given; scores [n] default to 0."""
        paths, columns = layout.locate(flat)
        sites = [layout.sites[number] for number in layout.site_of(flat)]
        scores = np.zeros(len(sites)) if scores is None else scores
        sides, dims = tuple(site.side for site in sites), tuple(site.dim for site in sites)
        return cls(tuple(paths), columns, sides, dims, scores, dict(info or {}))

    @classmethod
    def of_decoder(cls, model: Any, neurons: NeuronSet) -> ModuleNeurons:
        """The same neurons by the paths of the modules that hold them, scores and facts kept.

        Args:
            model: a Hugging Face decoder, or the `Architecture` found in it.
            neurons: by module name and layer.

        Raises:
            CulnigError: the model lacks one of them, or it is one of routed experts, which no path names.
        """
        from culnig_fast.architecture import architecture_of

        architecture = architecture_of(model)
        neurons.flat(architecture.layout(sorted({x.site.module_name for x in architecture.locations})))
        found = {(x.site.module_name, x.site.layer_idx): x for x in architecture.locations}
        places = [found[neuron.module_name, neuron.layer_idx] for neuron in neurons]
        routed = sorted({place.site.module_name for place in places if place.experts is not None})
        if routed:
            raise CulnigError(
                f"routed experts ({', '.join(routed)}) have no module of their own to name; leave them out of the set"
            )
        cut = [columns_in_order(place.columns) for place in places]
        columns = np.array([mine[n.neuron_idx] for mine, n in zip(cut, neurons, strict=True)], dtype=np.int64)
        paths, sides = tuple(place.module_path for place in places), tuple(place.tensor for place in places)
        return cls(paths, columns, sides, (-1,) * len(places), neurons.scores, dict(neurons.info))

    def ranked(self, scores: Any, info: dict[str, Any] | None = None) -> ModuleNeurons:
        """The same neurons with other scores, float [n] in the set's order, best first; ties keep their order."""
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(self),):
            raise CulnigError(f"{len(self)} neurons need as many scores, not {list(scores.shape)}")
        order = np.argsort(-scores, kind="stable")
        paths, sides, dims = (tuple(names[i] for i in order) for names in (self.paths, self.sides, self.dims))
        facts = self.info if info is None else info
        return ModuleNeurons(paths, self.columns[order], sides, dims, scores[order], dict(facts))

    def flat(self, layout: ModuleLayout) -> np.ndarray:
        """Flat indices, int64 [n], in set order; CulnigError for a neuron that `layout` does not hold."""
        return np.array([layout.flat(n.path, n.column, n.side) for n in self], dtype=np.int64)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write JSON, with a hash of its content; atomic.

        Raises:
            CulnigError: the file exists and `overwrite` is false, it cannot be written, or JSON cannot hold `info`.
        """
        json_text(self.info, "the set's info")
        written = {"info": self.info, _ENTRIES: [neuron._asdict() for neuron in self]}
        write_json(path, {**written, "content": json_digest(written)}, overwrite)

    @classmethod
    def load(cls, path: str | Path) -> ModuleNeurons:
        """Read what `save` wrote.

        Raises:
            CulnigError: the file is not JSON, no set of module neurons, or was altered.
        """
        value = read_json(path)
        entries = value.get(_ENTRIES) if isinstance(value, dict) else None
        if not isinstance(entries, list):
            raise CulnigError(f"{path} is not a set of module neurons: it has no list `{_ENTRIES}`")
        info = value.get("info", {})
        if not isinstance(info, dict):
            raise CulnigError(f"{path}: `info` is no object; write the set anew")
        if "content" in value and value["content"] != json_digest({"info": info, _ENTRIES: entries}):
            raise CulnigError(
                f"{path} was altered after it was written (its content hash differs); restore it, or delete the entry "
                "`content` if the change is meant"
            )
        try:
            rows = [_checked(entry) for entry in entries]
            columns = np.array([row.column for row in rows], dtype=np.int64)
            scores = np.array([row.score for row in rows], dtype=np.float64)
            paths, sides = tuple(row.path for row in rows), tuple(row.side for row in rows)
            return cls(paths, columns, sides, tuple(row.dim for row in rows), scores, info)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CulnigError(f"{path} is a damaged set of module neurons ({error!s:.300}); write it anew") from error

    def to_pandas(self) -> Any:
        """A frame of one row a neuron, best first: path, side, column, score; `info` is in its `attrs`."""
        from culnig_fast import frames

        return frames.to_pandas(*self._frame())

    def to_arrow(self) -> Any:
        """As `to_pandas`, a pyarrow.Table; `info` is JSON under `culnig_fast` in its metadata."""
        from culnig_fast import frames

        return frames.to_arrow(*self._frame())

    def _frame(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Sequence[str]]]:
        names = list(dict.fromkeys(self.paths))
        number = {name: i for i, name in enumerate(names)}
        paths = np.array([number[path] for path in self.paths], dtype=np.int32)
        sides = np.array([SIDES.index(side) for side in self.sides], dtype=np.int8)
        columns = {"path": paths, "side": sides, "column": self.columns, "score": self.scores}
        return columns, {"info": self.info}, {"path": names, "side": SIDES}

    def __iter__(self) -> Iterator[ModuleNeuron]:
        rows: tuple[Any, ...] = (self.paths, self.columns.tolist(), self.sides, self.dims, self.scores.tolist())
        return (ModuleNeuron(*row) for row in zip(*rows, strict=True))

    def __len__(self) -> int:
        return len(self.paths)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleNeurons) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"ModuleNeurons({len(self):,} neurons)"


def _checked(entry: Any) -> ModuleNeuron:
    """One entry of a file; an exception that says what is wrong for anything else."""
    path, side, dim = entry["path"], entry["side"], entry["dim"]
    if not isinstance(path, str) or not isinstance(side, str):
        raise ValueError(f"{entry!r:.100} names no module")
    return ModuleNeuron(path, whole(entry["column"]), side, None if dim is None else whole(dim), finite(entry["score"]))
