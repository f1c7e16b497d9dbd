"""ModuleAttributor: activation × gradient of any module's neurons, whatever the model and the objective."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import nn

from culnig_fast import backend as backends
from culnig_fast.errors import CulnigError
from culnig_fast.last_position import evaluation_mode, frozen_parameters
from culnig_fast.modules.reduction import BatchPositions, checked_batch, reduced
from culnig_fast.modules.scores import ModuleScores
from culnig_fast.modules.sites import ModuleLayout, ModuleSite, SiteLike, resolve_sites
from culnig_fast.modules.totals import Found, GroupTotals, checked_objective, joined
from culnig_fast.overwriting import remembered
from culnig_fast.positions import check_reduction
from culnig_fast.sample_weights import SampleWeights
from culnig_fast.tap import attach_taps, was_overwritten
from culnig_fast.wrappers import unwrapped


@dataclass(frozen=True, eq=False)
class _Place:
    """A site of the model in use, as `attach_taps` wants it; its columns are cut when it is scored."""

    number: int
    site: ModuleSite
    module: Any
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def tensor(self) -> str:
        return self.site.side


class ModuleAttributor:
    """Activation × gradient of neurons of any `nn.Module`, scored inside the backward pass and summed per group.

        with ModuleAttributor(model, ["blocks.0.mlp.fc1", ("blocks.1.mlp.fc1", slice(0, 64))]) as attributor:
            logits = model(images)
            attributor.backward(logits[:, 3])
        attributor.totals

    The caller runs the model, however it is called. What a site's module puts out (or takes in) is [batch, ..., K]: K
    neurons at any number of positions, or [batch·positions, K], or [batch, K]; no product of that size is made. Inside
    the block the model is frozen, in evaluation mode and hooked; on exit, also after an error, it is as it was. For a
    Hugging Face decoder `Attributor` does the same faster and names its neurons by layer.

    Args:
        model: any module. A module of a site may run once a forward pass.
        sites: module paths or modules, (path, column slice) pairs, or `ModuleSite`s.
        n_groups: rows of `totals`.
        reduction: over positions: `max`, `sum`, `mean`, `absmax` (the largest absolute value, as such) or `last`.
        backend: see `backend.resolve`.
        watch: (path, column) or (path, column, side) of neurons of which each sample's own score is kept, in `scores`;
            or a `ModuleNeurons` set.
        copied: hand copies of the tapped tensors on, for models that overwrite them; None does so where a module says
            that it does (`inplace=True`), and looks on the first batch whether others do.
        modules: other names for the model's modules, which `sites` then use; None means `named_modules()`.

    Raises:
        CulnigError: a path that the model does not have, or an unknown option.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[SiteLike],
        *,
        n_groups: int = 1,
        reduction: str = "max",
        backend: str = "auto",
        watch: Iterable[tuple[Any, ...]] = (),
        copied: bool | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        check_reduction(reduction)
        self.model, self.n_groups, self.reduction = unwrapped(model), n_groups, reduction
        resolved = resolve_sites(model, sites, modules)
        self._places = [_Place(number, site, module) for number, (site, module) in enumerate(resolved)]
        self._watch = [tuple(one)[:3] for one in watch]
        self._copied = overwrites(self.model) if copied is None else copied
        self._looked = copied is not None or self._copied
        self._ops = backends.resolve(backend)
        self._sums = GroupTotals([site for site, _ in resolved], n_groups, self._ops)
        self._anchor = torch.zeros((), requires_grad=True)
        self._stack: contextlib.ExitStack | None = None
        self._batch: BatchPositions | None = None
        self._found: dict[int, tuple[torch.Tensor, int]] = {}
        self.scores: torch.Tensor | None = None

    def __enter__(self) -> ModuleAttributor:
        if self._stack is not None:
            raise CulnigError("this attributor is in use already; leave its block first or make another")
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(frozen_parameters(self.model))
            copied = self._places if self._copied else ()
            for handle in attach_taps(self._places, self._score, anchor=self._anchor, copied=copied, guard=self._guard):
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        stack, self._stack = self._stack, None
        stack.close()
        if was_overwritten(error):
            raise CulnigError(
                "the model writes over a tapped tensor in place; give the attributor copied=True"
            ) from error

    def backward(
        self,
        objective: torch.Tensor,
        *,
        weight: torch.Tensor | None = None,
        group: torch.Tensor | None = None,
        clamp_below_zero: bool = False,
        lengths: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Differentiate each sample's objective and add weight · score to its group's totals; all sites or none.

        Samples must not interact: one gradient of the sum gives every sample's own. No `grad` of a parameter or
        input is touched. `scores` then holds the watched neurons' scores, [batch, watched], without the weight.

        Args:
            objective: [batch] a scalar a sample, a function of what the model returned inside the block.
            weight: [batch] multiplies a sample's scores; 1 when None.
            group: int64 [batch] row of `totals`, 0 when None; or float [batch, n_groups], how often each sample
                counts in each row.
            clamp_below_zero: replace negative weighted scores by 0.
            lengths: int64 [batch] real positions of each sample, the rest of a row being padding; None means all.
            positions: bool [batch, T], the positions that count; None means all real ones. Sites of one position
                a sample, [batch, K], are not concerned by either.
            retain_graph: keep the graph for another objective of the same forward pass.

        Raises:
            CulnigError: called outside the block, the objective has no gradient, shapes do not fit, a site's module
                was not reached, or twice, or what it put out is written over (the first batch tells).
        """
        if self._stack is None:
            raise CulnigError("use the attributor inside its `with` block")
        if not checked_objective(objective).requires_grad:
            raise CulnigError(
                "the objective depends on no site; run the model inside the block with gradients enabled, and check "
                "that the sites lie on the way to it"
            )
        options = {"weight": weight, "group": group, "clamp_below_zero": clamp_below_zero}
        weights = SampleWeights.checked(objective, objective.shape, self.n_groups, **options)  # type: ignore[arg-type]
        self._batch, self._found = checked_batch(len(objective), lengths, positions), {}
        try:
            torch.autograd.grad(objective.sum(), self._anchor, allow_unused=True, retain_graph=retain_graph)
            found = self._complete()
            self._looked = True
            self._add(found, weights, objective.dtype)
        finally:
            self._batch, self._found = None, {}

    @property
    def layout(self) -> ModuleLayout:
        """Which column of `totals` is which neuron; known after the first batch, CulnigError before."""
        return self._sums.layout

    @property
    def totals(self) -> torch.Tensor:
        """float64 [n_groups, neurons] sums so far, on the device of the first site; CulnigError before any."""
        return self._sums.whole

    def by_path(self) -> dict[str, torch.Tensor]:
        """Path → float64 [n_groups, columns] sums so far, views on the devices of the sites; CulnigError before any.

        A path that is scored in several parts, or in and out, stands with them in brackets.
        """
        return self._sums.by_path()

    def table(
        self, groups: Sequence[str] | None = None, *, objective: str = "", metadata: dict[str, Any] | None = None
    ) -> ModuleScores:
        """The sums so far as a table that has a file, frames and choices of neurons; a copy, on the CPU.

        Args:
            groups: names of the rows; None means `all`, or `0`, `1`, … of several.
            objective: what was scored, in your words.
            metadata: JSON-ready facts to go along.

        Raises:
            CulnigError: no batch was scored yet, or the names are not as many as the groups.
        """
        facts = {"score": "activation x gradient", "model_class": type(self.model).__name__, **(metadata or {})}
        return self._sums.table(groups, objective, self.reduction, facts)

    def _guard(self, places: list[_Place], activation: torch.Tensor) -> Callable[[torch.Tensor], None] | None:
        """Until a batch has come back, see to it that the model leaves the tensor alone."""
        return None if self._looked else remembered(str(places[0].site), activation)

    def _score(self, place: _Place, act: torch.Tensor, grad: torch.Tensor) -> None:
        """Reduce what a tap saw."""
        if self._batch is None:
            raise CulnigError("a backward pass ran outside ModuleAttributor.backward; call that one instead")
        if place.number in self._found:
            raise CulnigError(f"{place.site} ran more than once in the forward pass; tap modules that run once")
        scores = reduced(place.site, act, grad, self._batch, self._ops, self.reduction)
        self._found[place.number] = scores, place.site.width(act)

    def _complete(self) -> list[tuple[torch.Tensor, int]]:
        missing = [str(place.site) for place in self._places if place.number not in self._found]
        if missing:
            raise CulnigError(
                f"no gradient came to {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}: the module did not "
                "run, or the objective does not depend on it; leave it out of the sites"
            )
        return [self._found[place.number] for place in self._places]

    def _add(self, found: Found, weights: SampleWeights, dtype: torch.dtype) -> None:
        layout = self._sums.layout_of(found)
        watched = [layout.flat(*one) for one in self._watch]
        if watched:
            self.scores = joined([scores for scores, _ in found])[:, watched].to(dtype)
        self._sums.add(found, weights)


def overwrites(model: nn.Module) -> bool:
    """Whether a module of the model says that it writes its result over its input."""
    return any(getattr(module, "inplace", False) for module in model.modules())
