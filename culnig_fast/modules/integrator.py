"""Integrated gradients along the activation path of any module: what the first order of a score leaves out.

Let a be the activation of one site (its columns at all positions i) on a sample, b its baseline, and f(α) the objective
when b + α·(a − b) stands in the place of a and everything before the site is unchanged. Then

    IG[n, i] = (a[n, i] − b[n, i]) · (1/m) Σ_{j=1…m} ∂f/∂(activation)[n, i] at α_j = (j − ½)/m

is the midpoint rule for Sundararajan, Taly and Yan's integral (ICML 2017, equation 1), applied within the network at a
site. As m grows Σ_{n,i} IG → f(1) − f(0): what the site as a whole contributes is shared out completely, as long as f
is continuous. The first-order score is the same product with b = 0 and the gradient at α = 1 alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from culnig_fast import backend as backends
from culnig_fast.errors import CulnigError
from culnig_fast.last_position import evaluation_mode, frozen_parameters
from culnig_fast.modules.reduction import checked_batch, reduced
from culnig_fast.modules.scores import ModuleScores
from culnig_fast.modules.sites import ModuleLayout, ModuleSite, SiteLike, as_it_was, neurons_last, resolve_sites
from culnig_fast.modules.totals import GroupTotals, Run, checked_objective, joined
from culnig_fast.positions import check_reduction
from culnig_fast.sample_weights import SampleWeights
from culnig_fast.tap import hook_tensor
from culnig_fast.wrappers import unwrapped


class ModuleIntegrator:
    """Integrated gradients of neurons of any `nn.Module`, site by site, summed per group (see the module's text).

        integrator = ModuleIntegrator(model, ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"], steps=16)
        for images in batches:
            integrator.add(lambda model: model(images)[:, 3])
        integrator.table().top(10)

    A batch costs `steps` forward passes, and as many backward passes from the site up, for every site. For P(y|x) of a
    Hugging Face decoder `integrated_gradients` does the same.

    Args:
        model: any module; frozen, in evaluation mode and hooked while it runs, and afterwards as it was.
        sites: as for `ModuleAttributor`; its columns are what moves along the path, together.
        steps: m; 1 takes the gradient half-way.
        n_groups: rows of `totals`.
        reduction: over positions: `sum` (complete), `max`, `mean`, `absmax` or `last`.
        backend: see `backend.resolve`.
        modules: other names for the model's modules, which `sites` then use; None means `named_modules()`.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: a path that the model does not have, or an unknown option.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[SiteLike],
        *,
        steps: int = 16,
        n_groups: int = 1,
        reduction: str = "sum",
        backend: str = "auto",
        modules: Mapping[str, nn.Module] | None = None,
        progress: bool = True,
    ) -> None:
        check_reduction(reduction)
        if steps < 1:
            raise CulnigError(f"integrated gradients were asked for with {steps} steps; take at least 1")
        self.model, self.steps, self.reduction, self.progress = unwrapped(model), steps, reduction, progress
        self._sites: list[tuple[ModuleSite, nn.Module]] = resolve_sites(self.model, sites, modules)
        self._ops = backends.resolve(backend)
        self._sums = GroupTotals([site for site, _ in self._sites], n_groups, self._ops)

    def add(
        self,
        run: Run,
        *,
        baseline: Run | None = None,
        weight: torch.Tensor | None = None,
        group: torch.Tensor | None = None,
        clamp_below_zero: bool = False,
        lengths: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Integrate a batch and add weight · score to its groups' totals; all sites or none.

        Samples must not interact. No `grad` of a parameter or input is touched.

        Args:
            run: takes the model and gives [batch], a scalar a sample; called for every step of every site.
            baseline: runs the model on other inputs, whose activations are b; of what it gives nothing is used. None
                takes b = 0, the silenced site.
            weight, group, clamp_below_zero, lengths, positions: as for `ModuleAttributor.backward`.

        Returns:
            float32 [batch, neurons] (float64 in a float64 model), each sample's own scores, without the weight.

        Raises:
            CulnigError: what `run` gives is not [batch] or depends on no site, a site's module did not run, or ran
                twice, or shapes do not fit.
        """
        found, weights = [], None
        options = {"weight": weight, "group": group, "clamp_below_zero": clamp_below_zero}
        bar = tqdm(
            total=self.steps * len(self._sites), unit="step", desc="integrating", disable=not self.progress, leave=False
        )
        with contextlib.ExitStack() as stack:
            # The caller may sit in torch.no_grad() or inference_mode(), where no objective could be differentiated.
            for context in (torch.inference_mode(False), torch.enable_grad(), bar):
                stack.enter_context(context)
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(frozen_parameters(self.model))
            for site, module in self._sites:
                difference, gradient, objective = self._integrate(site, module, run, baseline, bar)
                if weights is None:
                    weights = SampleWeights.checked(objective, objective.shape, self._sums.n_groups, **options)  # type: ignore[arg-type]
                    batch = checked_batch(len(objective), lengths, positions)
                scores = reduced(site, difference, gradient, batch, self._ops, self.reduction)
                found.append((scores, site.width(difference)))
        assert weights is not None
        self._sums.add(found, weights)
        return joined([scores for scores, _ in found])

    @property
    def layout(self) -> ModuleLayout:
        """Which column of `totals` is which neuron; known after the first batch, CulnigError before."""
        return self._sums.layout

    @property
    def totals(self) -> torch.Tensor:
        """float64 [n_groups, neurons] sums so far, on the device of the first site; CulnigError before any."""
        return self._sums.whole

    def by_path(self) -> dict[str, torch.Tensor]:
        """Path → float64 [n_groups, columns] sums so far; see `ModuleAttributor.by_path`."""
        return self._sums.by_path()

    def table(
        self, groups: Sequence[str] | None = None, *, objective: str = "", metadata: dict[str, Any] | None = None
    ) -> ModuleScores:
        """The sums so far as a table; arguments and errors as for `ModuleAttributor.table`."""
        facts = {
            "score": "integrated gradients",
            "steps": self.steps,
            "model_class": type(self.model).__name__,
            **(metadata or {}),
        }
        return self._sums.table(groups, objective, self.reduction, facts)

    def _integrate(
        self, site: ModuleSite, module: nn.Module, run: Run, baseline: Run | None, bar: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """a − b and the mean gradient along the path, each of the site's whole tensor, and an objective, [batch]."""
        start = None if baseline is None else self._activation(site, module, baseline)
        gradient: torch.Tensor | None = None
        for step in range(self.steps):
            path = _Path(site, (step + 0.5) / self.steps, start)
            handle = hook_tensor(module, site.side, path.move)
            try:
                objective = checked_objective(run(self.model))
            finally:
                handle.remove()
            part = path.gradient(objective) / self.steps
            gradient = part if gradient is None else gradient + part
            bar.update()
        assert gradient is not None
        return path.difference.to(gradient.dtype), gradient, objective.detach()

    def _activation(self, site: ModuleSite, module: nn.Module, run: Run) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def look(tensor: torch.Tensor) -> torch.Tensor:
            seen.append(tensor.detach().clone())
            return tensor

        handle = hook_tensor(module, site.side, look)
        try:
            with torch.no_grad():
                run(self.model)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise CulnigError(f"the baseline ran {site} {len(seen)} times; it must run once")
        return seen[0]


class _Path:
    """One step: the site's tensor part of the way from its baseline, and the gradient there.

    Args:
        site: whose columns move; the rest of the tensor stays.
        alpha: how far.
        start: the baseline; None means 0.
    """

    def __init__(self, site: ModuleSite, alpha: float, start: torch.Tensor | None) -> None:
        self.site, self.alpha, self.start = site, alpha, start
        self.difference = torch.empty(0)
        self._leaf: torch.Tensor | None = None

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """What stands in the tensor's place: everything before the site is constant, so the graph starts here."""
        if self._leaf is not None:
            raise CulnigError(f"{self.site} ran more than once in the forward pass; name modules that run once")
        if not tensor.is_floating_point():
            raise CulnigError(f"{self.site} is {str(tensor.dtype).removeprefix('torch.')}; it has no gradient")
        act = tensor.detach()
        start = torch.zeros_like(act) if self.start is None else self.start
        if start.shape != act.shape:
            raise CulnigError(
                f"{self.site} is {list(start.shape)} on the baseline and {list(act.shape)} on the batch; give a "
                "baseline of the batch's shape"
            )
        self.difference = act - start
        moved = neurons_last(self.site, start + self.alpha * self.difference)[..., self.site.columns]
        whole = neurons_last(self.site, act).clone()
        whole[..., self.site.columns] = moved
        self._leaf = as_it_was(self.site, whole, act.shape).requires_grad_(True)
        return self._leaf.clone()  # a consumer may write over it

    def gradient(self, objective: torch.Tensor) -> torch.Tensor:
        """Of the objective's sum, of the tensor's shape, float32 (float64 in a float64 model)."""
        if self._leaf is None:
            raise CulnigError(f"{self.site} did not run; leave it out of the sites")
        grads: Sequence[torch.Tensor | None] = (None,)
        if objective.requires_grad:
            grads = torch.autograd.grad(objective.sum(), [self._leaf], allow_unused=True)
        if grads[0] is None:
            raise CulnigError(f"no gradient came to {self.site}: the objective does not depend on it; leave it out")
        return grads[0].to(torch.float64 if grads[0].dtype == torch.float64 else torch.float32)
