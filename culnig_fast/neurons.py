"""Names of neurons: their flat order over a model, and ordered sets of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json, write_json

ATTENTION_MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
DENSE_MODULES = ("mlp.gate_proj", "mlp.up_proj", "mlp.act")
SHARED_MODULES = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.act")
"""Of an expert that every token passes, beside the routed ones."""
EXPERT_MODULES = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.act")
"""Of a mixture's routed experts: column c of expert e is neuron e · (columns of one expert) + c."""
MLP_MODULES = DENSE_MODULES + SHARED_MODULES + EXPERT_MODULES
MODULE_NAMES = ATTENTION_MODULES + MLP_MODULES
"""Every module name, in the order that the neurons of one layer have in the flat index (CULNIG, section 2)."""

_ORDER = {name: rank for rank, name in enumerate(MODULE_NAMES)}


def check_module_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` without repeats in flat order; raise CulnigError for one that is no neuron module."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in _ORDER:
            raise CulnigError(f"{name!r} is not a neuron module; the modules are {', '.join(MODULE_NAMES)}")
    if not names:
        raise CulnigError(f"no neuron module was named; choose from {', '.join(MODULE_NAMES)}")
    return tuple(sorted(set(names), key=_ORDER.__getitem__))


@dataclass(frozen=True)
class NeuronSite:
    """The `width` neurons of one module in one layer, e.g. the 8192 columns of `mlp.gate_proj` in layer 3.

    Attributes:
        module_name: one of `MODULE_NAMES`.
        layer_idx: the decoder layer.
        width: neurons, those of all experts together.
        experts: among how many routed experts they are divided evenly, expert by expert; 1 for every other module.
    """

    module_name: str
    layer_idx: int
    width: int
    experts: int = 1


class NeuronLayout:
    """Flat index ⇄ (module name, layer, column) for the scored neurons of one model.

    Flat order: layer, then q, k, v, gate, up, act within the layer, then column; of a mixture's routed experts expert,
    then column. The order breaks ties everywhere.

    Args:
        sites: the scored sites in any order; every (module, layer) at most once, widths positive.

    Raises:
        CulnigError: an unknown module name, a repeated site, a negative layer or a width below 1.
    """

    def __init__(self, sites: Iterable[NeuronSite]) -> None:
        sites = list(sites)
        check_module_names(site.module_name for site in sites)
        for site in sites:
            if not 0 <= site.layer_idx < 2**31 or site.width < 1:
                raise CulnigError(
                    f"site {site.module_name} of layer {site.layer_idx} has width {site.width}; "
                    "layers count from 0 and widths from 1"
                )
            divided = site.experts != 1
            if site.experts < 1 or site.width % site.experts or (divided and site.module_name not in EXPERT_MODULES):
                raise CulnigError(
                    f"site {site.module_name} of layer {site.layer_idx} cannot divide {site.width} neurons among "
                    f"{site.experts} experts; only {', '.join(EXPERT_MODULES)} have experts, all of one width"
                )
        self.sites = tuple(sorted(sites, key=lambda site: (site.layer_idx, _ORDER[site.module_name])))
        if sum(site.width for site in self.sites) >= 2**63:
            raise CulnigError("the layout's neurons are more than can be counted; the widths cannot be right")
        self._starts = np.concatenate(([0], np.cumsum([site.width for site in self.sites]))).astype(np.int64)
        self._position = {(s.module_name, s.layer_idx): i for i, s in enumerate(self.sites)}
        if len(self._position) != len(self.sites):
            raise CulnigError("a layout names the same module of the same layer twice; list each site once")

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(self._starts[-1])

    @property
    def module_names(self) -> tuple[str, ...]:
        """The module names present, in flat order."""
        return check_module_names(site.module_name for site in self.sites)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer indices present, ascending."""
        return tuple(sorted({site.layer_idx for site in self.sites}))

    def slice(self, module_name: str, layer_idx: int) -> slice:
        """The range of flat indices of one site; CulnigError when the layout does not hold it."""
        position = self._position.get((module_name, layer_idx))
        if position is None:
            raise CulnigError(
                f"no neurons of {module_name} in layer {layer_idx} were scored; "
                f"there are layers {_span(self.layers)} of {', '.join(self.module_names)}"
            )
        return slice(int(self._starts[position]), int(self._starts[position + 1]))

    def indices(self, module_names: Iterable[str]) -> np.ndarray:
        """Ascending flat indices, int64 [pool], of all neurons of the named modules.

        Raises:
            CulnigError: a name is unknown, or none of the layout's sites has it.
        """
        wanted = check_module_names(module_names)
        missing = [name for name in wanted if name not in self.module_names]
        if missing:
            raise CulnigError(
                f"no neurons of {', '.join(missing)} were scored (only {', '.join(self.module_names)}); "
                "score these sites too, or leave them out of the selection"
            )
        ranges = [
            np.arange(start, start + site.width)
            for site, start in zip(self.sites, self._starts, strict=False)
            if site.module_name in wanted
        ]
        return np.concatenate(ranges).astype(np.int64)

    def locate(self, flat: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Module names (object), layers (int64) and columns (int64), each [n], of flat indices [n]."""
        flat = np.atleast_1d(np.asarray(flat, dtype=np.int64))
        if flat.size and (flat.min() < 0 or flat.max() >= self.size):
            raise CulnigError(f"flat neuron index {_first_outside(flat, self.size)} is outside 0…{self.size - 1}")
        position = np.searchsorted(self._starts, flat, side="right") - 1
        names = np.array([site.module_name for site in self.sites], dtype=object)
        layers = np.array([site.layer_idx for site in self.sites], dtype=np.int64)
        return names[position], layers[position], flat - self._starts[position]

    def expert_of(self, flat: Any) -> tuple[np.ndarray, np.ndarray]:
        """Expert and column within it, int64 [n] each, of flat indices [n]; expert −1 for neurons of no expert."""
        names, layers, columns = self.locate(flat)
        sites = [self.sites[self._position[key]] for key in zip(names, layers.tolist(), strict=True)]
        inside = np.array([site.module_name in EXPERT_MODULES for site in sites], dtype=bool)
        width = np.array([site.width // site.experts for site in sites], dtype=np.int64)
        return np.where(inside, columns // width, -1), np.where(inside, columns % width, columns)

    def flat(self, module_name: str, layer_idx: int, neuron_idx: int, expert: int | None = None) -> int:
        """Flat index of one neuron, or of column `neuron_idx` of one expert.

        Raises:
            CulnigError: the layout has no such site, expert or column.
        """
        where = self.slice(module_name, layer_idx)
        if expert is not None:
            site = self.sites[self._position[module_name, layer_idx]]
            width = site.width // site.experts
            if module_name not in EXPERT_MODULES or not (0 <= expert < site.experts and 0 <= neuron_idx < width):
                raise CulnigError(
                    f"{module_name} of layer {layer_idx} has experts 0…{site.experts - 1} of {width} neurons, so no "
                    f"neuron {neuron_idx} of expert {expert}"
                )
            neuron_idx += expert * width
        if not 0 <= neuron_idx < where.stop - where.start:
            raise CulnigError(
                f"{module_name} of layer {layer_idx} has neurons 0…{where.stop - where.start - 1}, not {neuron_idx}"
            )
        return int(where.start) + int(neuron_idx)

    def difference(self, other: NeuronLayout) -> str | None:
        """None when both layouts are equal, else one phrase that names the first difference."""
        for mine, theirs in zip(self.sites, other.sites, strict=False):
            if mine != theirs:
                return f"{_describe(mine)} in one, {_describe(theirs)} in the other"
        if len(self.sites) != len(other.sites):
            return f"{len(self.sites)} sites in one, {len(other.sites)} in the other"
        return None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` reads it back. A site of routed experts has their number as a fourth entry."""
        return {
            "sites": [
                [site.module_name, site.layer_idx, site.width, *([site.experts] if site.experts != 1 else [])]
                for site in self.sites
            ]
        }

    @classmethod
    def from_dict(cls, value: Any) -> NeuronLayout:
        """Read what `to_dict` wrote; CulnigError for anything else."""
        try:
            sites = [(str(name), [_whole(number) for number in numbers]) for name, *numbers in value["sites"]]
            return cls([NeuronSite(name, *numbers) for name, numbers in sites])
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            if isinstance(error, CulnigError):
                raise
            raise CulnigError(f"the neuron layout is malformed ({error!r}); score again to rewrite the file") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeuronLayout) and self.sites == other.sites

    def __hash__(self) -> int:
        return hash(self.sites)

    def __repr__(self) -> str:
        return f"NeuronLayout({self.size:,} neurons, layers {_span(self.layers)}: {', '.join(self.module_names)})"


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
        return np.array([layout.flat(n.module_name, n.layer_idx, n.neuron_idx) for n in self], dtype=np.int64)

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
        write_json(path, {**written, "content": _digest(written)}, overwrite)

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
        if "content" in value and value["content"] != _digest({"info": info, "top_neurons": entries}):
            raise CulnigError(
                f"{path} was altered after it was written (its content hash differs); restore it, or delete the entry "
                "`content` if the change is meant"
            )
        columns: list[list[Any]] = [[], [], [], []]
        for rank, entry in enumerate(entries):
            try:
                row = (
                    str(entry["module_name"]),
                    _whole(entry["layer_idx"]),
                    _whole(entry["neuron_idx"]),
                    _finite(entry.get("attribute_score", 0.0)),
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

        return frames.to_pandas(*frames.set_columns(self))

    def to_arrow(self) -> Any:
        """As `to_pandas`, a pyarrow.Table; `info` is JSON under `culnig_fast` in its metadata."""
        from culnig_fast import frames

        return frames.to_arrow(*frames.set_columns(self))

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

        return frames.set_from_pandas(frame, info)

    def __iter__(self) -> Iterator[Neuron]:
        rows = (self.module_names, self.layer_idx.tolist(), self.neuron_idx.tolist(), self.scores.tolist())
        return (Neuron(*row) for row in zip(*rows, strict=True))

    def __len__(self) -> int:
        return len(self.module_names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeuronSet) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"NeuronSet({len(self):,} neurons)"


def _first_repeat(names: Sequence[str], layers: np.ndarray, columns: np.ndarray) -> int | None:
    """Position of the first neuron that stands before it already, or None."""
    if not len(names):
        return None
    depth, width = int(layers.max()) + 1, int(columns.max()) + 1
    if len(_ORDER) * depth * width < 2**63:
        # One number a neuron: 73,000 of them take 8 ms, a Python set of tuples takes 25 ms.
        ranks = np.fromiter(map(_ORDER.__getitem__, names), np.int64, len(names))
        keys = (ranks * depth + layers) * width + columns
        ordered = np.sort(keys)
        if not (ordered[1:] == ordered[:-1]).any():
            return None
    seen: set[tuple[str, int, int]] = set()
    for position, key in enumerate(zip(names, layers.tolist(), columns.tolist(), strict=True)):
        if key in seen:
            return position
        seen.add(key)
    return None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError(f"{value!r:.40} is no finite number")
    return number


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _first_outside(flat: np.ndarray, size: int) -> int:
    return int(flat[(flat < 0) | (flat >= size)][0])


def _describe(site: NeuronSite) -> str:
    among = f" of {site.experts} experts" if site.experts != 1 else ""
    return f"{site.width} neurons of {site.module_name}{among} in layer {site.layer_idx}"


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]}…{layers[-1]}" if layers else "none"
