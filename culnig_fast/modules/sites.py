"""Neurons of any module, named by module path and column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from culnig_fast.errors import CulnigError
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


SiteLike = Any
"""A `ModuleSite`, or short for one: a path, the module itself, nnsight's envoy of it, or one of these and columns.
In a model that nnsight has wrapped also a path as nnsight writes it, `.input` or `.output` at its end."""


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
        if site.side not in ("output", "input"):
            raise CulnigError(f"site {site}: unknown side {site.side!r}; choose from output, input")
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
        self.sites = tuple(sites)
        ranges = [range(*site.columns.indices(width)) for site, width in zip(sites, widths, strict=True)]
        for number, (site, mine) in enumerate(zip(sites, ranges, strict=True)):
            if not mine:
                raise CulnigError(f"site {site} holds no column; its tensor has {widths[number]}")
            for other, theirs in zip(sites[:number], ranges[:number], strict=True):
                if (other.path, other.side) == (site.path, site.side) and (
                    max(mine.start, theirs.start) < min(mine.stop, theirs.stop)
                ):
                    raise CulnigError(f"sites {other} and {site} share columns; name each neuron once")
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
        flat = np.atleast_1d(np.asarray(flat, dtype=np.int64))
        outside = flat[(flat < 0) | (flat >= self.size)]
        if outside.size:
            raise CulnigError(f"flat neuron index {outside[0]} is outside 0…{self.size - 1}")
        number = np.searchsorted(self._starts, flat, side="right") - 1
        paths = np.array([site.path for site in self.sites], dtype=object)
        return paths[number], flat - self._starts[number] + self._first[number]

    def flat(self, path: str, column: int, side: str = "output") -> int:
        """Flat index of one neuron; CulnigError when it is not scored."""
        for number, site in enumerate(self.sites):
            where = self.slice(number)
            place = where.start + column - int(self._first[number])
            if (site.path, site.side) == (path, side) and where.start <= place < where.stop:
                return int(place)
        raise CulnigError(f"column {column} of the {side} of {path!r} is not scored; name it among the sites")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleLayout) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __iter__(self) -> Any:
        """(path, side, first column, columns) of each site."""
        widths = np.diff(self._starts).tolist()
        rows = zip(self.sites, self._first.tolist(), widths, strict=True)
        return ((site.path, site.side, first, width) for site, first, width in rows)

    def __repr__(self) -> str:
        return f"ModuleLayout({self.size:,} neurons: {', '.join(map(str, self.sites))})"
