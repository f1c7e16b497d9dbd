"""Ordered sets of any module's neurons, and their files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import json_digest, json_text, read_json, write_json
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
        sides: [n] `output` or `input`; one for all when it is a text.
        dims: [n] the dimension that counts neurons, see `ModuleSite`; one for all when it is no sequence.
        scores: float64 [n] the score that ranked it; 0 when None.
        info: JSON-ready facts about how it was chosen.

    Raises:
        CulnigError: lengths differ, a column is negative, a side unknown, or a neuron occurs twice.
    """

    paths: Sequence[str]
    columns: np.ndarray
    sides: Sequence[str] = "output"
    dims: Sequence[int | None] | int | None = -1
    scores: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_, n = object.__setattr__, len(self.paths)
        set_(self, "paths", tuple(str(path) for path in self.paths))
        set_(self, "columns", np.asarray(self.columns, dtype=np.int64).reshape(-1))
        set_(self, "sides", (self.sides,) * n if isinstance(self.sides, str) else tuple(self.sides))
        dims = self.dims if isinstance(self.dims, Sequence) else (self.dims,) * n
        set_(self, "dims", tuple(None if dim is None else int(dim) for dim in dims))
        scores = np.zeros(n) if self.scores is None else self.scores
        set_(self, "scores", np.asarray(scores, dtype=np.float64).reshape(-1))
        if not n == len(self.columns) == len(self.sides) == len(self.dims) == len(self.scores):  # type: ignore[arg-type]
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
    def from_flat(
        cls, layout: ModuleLayout, flat: Any, scores: Any = None, info: dict[str, Any] | None = None
    ) -> ModuleNeurons:
        """The set of the flat indices [n] of `layout`, in the order given; scores [n] default to 0."""
        paths, columns = layout.locate(flat)
        sites = [layout.sites[number] for number in layout.site_of(flat)]
        return cls(paths.tolist(), columns, [s.side for s in sites], [s.dim for s in sites], scores, dict(info or {}))

    @classmethod
    def of_decoder(cls, model: Any, neurons: NeuronSet) -> ModuleNeurons:
        """The same neurons by the paths of the modules that hold them, scores and facts kept.

        Args:
            model: a Hugging Face decoder, or the `Architecture` found in it.
            neurons: by module name and layer.

        Raises:
            CulnigError: the model lacks one of them, or it is one of routed experts, which no path names.
        """
        from culnig_fast.architecture import Architecture, discover, refuse_experts

        architecture = model if isinstance(model, Architecture) else discover(model)
        neurons.flat(architecture.layout(sorted({x.site.module_name for x in architecture.locations})))
        found = {(x.site.module_name, x.site.layer_idx): x for x in architecture.locations}
        places = [found[neuron.module_name, neuron.layer_idx] for neuron in neurons]
        refuse_experts(places, "a set of module neurons")
        cut = [range(place.columns.start, place.columns.stop, place.columns.step or 1) for place in places]
        columns = np.array([mine[n.neuron_idx] for mine, n in zip(cut, neurons, strict=True)], dtype=np.int64)
        sides = [place.tensor for place in places]
        return cls([p.module_path for p in places], columns, sides, -1, neurons.scores, dict(neurons.info))

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
        if value.get("content") != json_digest({"info": info, _ENTRIES: entries}):
            raise CulnigError(
                f"{path} was altered after it was written (its content hash differs); restore it or write it anew"
            )
        try:
            rows = [_checked(entry) for entry in entries]
            columns = np.array([row.column for row in rows], dtype=np.int64)
            scores = np.array([row.score for row in rows], dtype=np.float64)
            paths, sides, dims = [r.path for r in rows], [r.side for r in rows], [r.dim for r in rows]
            return cls(paths, columns, sides, dims, scores, info)
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
        rows: tuple[Any, ...] = (self.paths, self.columns.tolist(), self.sides, self.dims, self.scores.tolist())  # type: ignore[union-attr]
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
