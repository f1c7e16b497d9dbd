"""Neurons of any module, named by module path and column."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import whole
from culnig_fast.wrappers import module_of, named_by_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModuleSite:
    """Neurons of one module: columns of what it puts out, or of what it takes in.

    Attributes:
        path: the module's name, as `named_modules()` gives it; "" is the model itself.
        columns: which columns, of all; steps are not supported.
        side: `output`, or `input`: the first argument, with the gradient that comes back through this module alone.
        dim: the dimension that counts neurons; -1 for linear layers, 1 for the channels of a convolution. Every other
            one but the first is a position. None: every dimension after [batch, positions] counts neurons, such as
            heads × columns of attention, in the order in which they lie in memory.
    """

    path: str
    columns: slice = field(default_factory=lambda: slice(None))
    side: Literal["output", "input"] = "output"
    dim: int | None = -1

    def width(self, tensor: torch.Tensor) -> int:
        """How many neurons a tensor of this site holds, before columns are cut."""
        return tensor.shape[2:].numel() if self.dim is None and tensor.dim() > 2 else tensor.shape[self.dim or -1]

    def __str__(self) -> str:
        ends = ["" if end is None else str(end) for end in (self.columns.start, self.columns.stop)]
        where = "" if ends == ["", ""] else f"[{':'.join(ends)}]"
        return f"{self.path or 'the model'}{where}{' (input)' if self.side == 'input' else ''}"


SIDES = ("output", "input")

SiteLike = Any
"""A `ModuleSite`, or short for one: a path, the module itself, nnsight's envoy of it, or one of these and columns.
In a model that nnsight has wrapped also a path as nnsight writes it, `.input` or `.output` at its end."""


def neurons_last(site: ModuleSite, tensor: torch.Tensor) -> torch.Tensor:
    """The site's tensor with its neurons in the last dimension; CulnigError for one without [batch, ..., neurons]."""
    if tensor.dim() < 2:
        raise CulnigError(f"{site} is {list(tensor.shape)}; neurons need [batch, ..., K]")
    if site.dim is None:
        return tensor.flatten(2) if tensor.dim() > 3 else tensor
    if site.dim >= tensor.dim() or site.dim + tensor.dim() < 1:
        raise CulnigError(f"{site} is {list(tensor.shape)}; its dimension {site.dim} counts no neurons there")
    return tensor.movedim(site.dim, -1)


def as_it_was(site: ModuleSite, last: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Undo `neurons_last`; `shape` is the tensor's before."""
    return last.reshape(shape) if site.dim is None else last.movedim(-1, site.dim)


def resolve_sites(
    model: Any, sites: Iterable[SiteLike], modules: Mapping[str, Any] | None = None
) -> list[tuple[ModuleSite, Any]]:
    """Each site with its module.

    Args:
        model: the module whose parts the sites are, or nnsight's wrapper of it.
        sites: what to score.
        modules: the names that paths are, with their modules; None means `named_modules()`.

    Raises:
        CulnigError: no sites, a path that the model does not have, or an option that is unknown.
    """
    if isinstance(sites, (str, ModuleSite)):
        sites = [sites]
    wrapper, model = model, module_of(model)
    modules = dict(model.named_modules()) if modules is None else modules
    found = []
    for one in sites:
        site = _in_torchs_words(wrapper, _site(one, modules), modules)
        if site.path not in modules:
            raise CulnigError(f"{type(model).__name__} has no module {site.path!r}{_like(site.path, list(modules))}")
        if site.side not in SIDES:
            raise CulnigError(f"site {site}: unknown side {site.side!r}; choose from {', '.join(SIDES)}")
        if not isinstance(site.columns, slice) or site.columns.step not in (None, 1):
            raise CulnigError(f"site {site.path}: columns must be a slice without a step, not {site.columns!r}")
        if site.dim == 0:
            raise CulnigError(f"site {site}: dimension 0 counts samples; neurons need another one")
        found.append((site, modules[site.path]))
    if not found:
        raise CulnigError("no site was given; name modules, as named_modules() does, e.g. 'encoder.layers.0.linear1'")
    return found


def _site(one: SiteLike, modules: Mapping[str, Any]) -> ModuleSite:
    site = one if isinstance(one, ModuleSite) else ModuleSite(*(one if isinstance(one, tuple) else (one,)))
    what: Any = site.path
    if isinstance(what, str):
        return site
    module = module_of(what)
    path = next((path for path, known in modules.items() if known is module), None)
    if path is None:
        raise CulnigError(f"a {type(module).__name__} was given as a site, but is no part of the model")
    return replace(site, path=path)


def _in_torchs_words(wrapper: Any, site: ModuleSite, modules: Mapping[str, Any]) -> ModuleSite:
    path, end = named_by_torch(wrapper, site.path, modules)
    if path == site.path:
        return site
    return replace(site, path=path, side="input" if end == "input" else site.side)


def _like(path: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(path, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "; named_modules() lists them"


class ModuleLayout:
    """Flat index ⇄ (module path, column) of the neurons scored, in the order in which the sites were given.

    A column keeps its number in the whole tensor, also where a site is a part of it.

    Args:
        sites: the sites.
        widths: size of each one's whole tensor along its dimension.

    Raises:
        CulnigError: a site without columns, or two that share some.
    """

    def __init__(self, sites: Sequence[ModuleSite], widths: Sequence[int]) -> None:
        self.sites, self.widths = tuple(sites), tuple(widths)
        ranges = [range(*site.columns.indices(width)) for site, width in zip(sites, widths, strict=True)]
        for site, mine, width in zip(sites, ranges, widths, strict=True):
            if not mine:
                raise CulnigError(f"site {site} holds no column; its tensor has {width}")
        order = sorted(range(len(sites)), key=lambda n: (sites[n].path, sites[n].side, ranges[n].start))
        for one, other in pairwise(order):
            same = (sites[one].path, sites[one].side) == (sites[other].path, sites[other].side)
            if same and ranges[other].start < ranges[one].stop:
                raise CulnigError(f"sites {sites[one]} and {sites[other]} share columns; name each neuron once")
        if sum(map(len, ranges)) >= 2**63:
            raise CulnigError("the layout's neurons are more than can be counted; the widths cannot be right")
        self._first = np.array([mine.start for mine in ranges], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum([len(mine) for mine in ranges]))).astype(np.int64)

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(self._starts[-1])

    def slice(self, number: int) -> slice:
        """The flat indices of the site of that number."""
        return slice(int(self._starts[number]), int(self._starts[number + 1]))

    def locate(self, flat: Any) -> tuple[np.ndarray, np.ndarray]:
        """Module paths (object) and columns (int64), each [n], of flat indices [n]; CulnigError for one outside."""
        number = self.site_of(flat)
        paths = np.array([site.path for site in self.sites], dtype=object)
        flat = np.atleast_1d(np.asarray(flat, dtype=np.int64))
        return paths[number], flat - self._starts[number] + self._first[number]

    def site_of(self, flat: Any) -> np.ndarray:
        """The number of the site, int64 [n], of flat indices [n]; CulnigError for one outside."""
        flat = np.atleast_1d(np.asarray(flat, dtype=np.int64))
        outside = flat[(flat < 0) | (flat >= self.size)]
        if outside.size:
            raise CulnigError(f"flat neuron index {outside[0]} is outside 0…{self.size - 1}")
        number: np.ndarray = np.searchsorted(self._starts, flat, side="right") - 1
        return number

    def flat(self, path: str, column: int, side: str = "output") -> int:
        """Flat index of one neuron; CulnigError when it is not scored."""
        for number, site in enumerate(self.sites):
            where = self.slice(number)
            place = where.start + column - int(self._first[number])
            if (site.path, site.side) == (path, side) and where.start <= place < where.stop:
                return int(place)
        raise CulnigError(f"column {column} of the {side} of {path!r} is not scored; name it among the sites")

    def by_path(self) -> dict[str, builtins.slice]:
        """Path → flat indices of each site.

        A path that is scored in several parts, or in and out, stands with them in brackets.
        """
        times = Counter(site.path for site in self.sites)
        names = [str(site) if times[site.path] > 1 else site.path for site in self.sites]
        return {name: self.slice(number) for number, name in enumerate(names)}

    def difference(self, other: ModuleLayout) -> str | None:
        """None when both layouts are equal, else one phrase that names the first difference."""
        for mine, theirs in zip(self._facts(), other._facts(), strict=False):
            if mine != theirs:
                return f"{_described(*mine)} in one, {_described(*theirs)} in the other"
        if len(self.sites) != len(other.sites):
            return f"{len(self.sites)} sites in one, {len(other.sites)} in the other"
        return None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form, which `from_dict` reads back: path, columns, side, dim and width of each site."""
        return {
            "sites": [
                [site.path, [site.columns.start, site.columns.stop], site.side, site.dim, width]
                for site, width in zip(self.sites, self.widths, strict=True)
            ]
        }

    @classmethod
    def from_dict(cls, value: Any) -> ModuleLayout:
        """Read what `to_dict` wrote; CulnigError for anything else."""
        try:
            sites, widths = [], []
            for path, (start, stop), side, dim, width in value["sites"]:
                if not isinstance(path, str) or side not in SIDES or dim == 0 or whole(width) < 1:
                    raise ValueError(f"{[path, side, dim, width]!r:.100} is no site")
                sites.append(ModuleSite(path, slice(_end(start), _end(stop)), side, _end(dim)))
                widths.append(whole(width))
            return cls(sites, widths)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            if isinstance(error, CulnigError):
                raise
            raise CulnigError(f"the layout is malformed ({error!r:.200}); score again to rewrite the file") from error

    def _facts(self) -> list[tuple[Any, ...]]:
        return [(*row, site.dim) for row, site in zip(self, self.sites, strict=True)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleLayout) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(tuple(self._facts()))

    def __iter__(self) -> Any:
        """(path, side, first column, columns) of each site."""
        widths = np.diff(self._starts).tolist()
        rows = zip(self.sites, self._first.tolist(), widths, strict=True)
        return ((site.path, site.side, first, width) for site, first, width in rows)

    def __repr__(self) -> str:
        return f"ModuleLayout({self.size:,} neurons: {', '.join(map(str, self.sites))})"


def _end(value: Any) -> int | None:
    return None if value is None else whole(value)


def _described(path: str, side: str, first: int, columns: int, dim: int | None) -> str:
    return f"columns {first}…{first + columns - 1} of the {side} of {path!r} (dim {dim})"
