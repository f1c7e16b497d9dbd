"""Names of neurons, and their flat order over a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError

ATTENTION_MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
DENSE_MODULES = ("mlp.gate_proj", "mlp.up_proj", "mlp.act")
SHARED_MODULES = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.act")
"""Of an expert that every token passes, beside the routed ones."""
EXPERT_MODULES = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.act")
"""Of a mixture's routed experts: column c of expert e is neuron e · (columns of one expert) + c."""
MLP_MODULES = DENSE_MODULES + SHARED_MODULES + EXPERT_MODULES
MODULE_NAMES = ATTENTION_MODULES + MLP_MODULES
"""Every module name, in the order that the neurons of one layer have in the flat index (CULNIG, section 2)."""

MODULE_RANK = {name: rank for rank, name in enumerate(MODULE_NAMES)}


def check_module_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` without repeats in flat order; raise CulnigError for one that is no neuron module."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in MODULE_RANK:
            raise CulnigError(f"{name!r} is not a neuron module; the modules are {', '.join(MODULE_NAMES)}")
    if not names:
        raise CulnigError(f"no neuron module was named; choose from {', '.join(MODULE_NAMES)}")
    return tuple(sorted(set(names), key=MODULE_RANK.__getitem__))


def named_modules(sites: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Module names as a caller gave them: one by itself, several, or None for those that are usual."""
    if sites is None:
        return None
    return (sites,) if isinstance(sites, str) else tuple(sites)


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
        self.sites = tuple(sorted(sites, key=lambda site: (site.layer_idx, MODULE_RANK[site.module_name])))
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
            sites = [(str(name), [whole(number) for number in numbers]) for name, *numbers in value["sites"]]
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


def whole(value: Any) -> int:
    """A whole number as such; ValueError for anything else."""
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def finite(value: Any) -> float:
    """A finite number as such; ValueError for anything else."""
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError(f"{value!r:.40} is no finite number")
    return number


def _first_outside(flat: np.ndarray, size: int) -> int:
    return int(flat[(flat < 0) | (flat >= size)][0])


def _describe(site: NeuronSite) -> str:
    among = f" of {site.experts} experts" if site.experts != 1 else ""
    return f"{site.width} neurons of {site.module_name}{among} in layer {site.layer_idx}"


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]}…{layers[-1]}" if layers else "none"
