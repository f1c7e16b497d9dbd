"""Brute force on any module: neurons silenced one by one, and what the caller's objective loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from culnig_fast import backend as backends
from culnig_fast.errors import CulnigError
from culnig_fast.last_position import evaluation_mode
from culnig_fast.modules.columns import Numbers, changed, check_set, columns_of, each, replacing, scaling
from culnig_fast.modules.neurons import ModuleNeurons
from culnig_fast.modules.totals import Run, checked_objective
from culnig_fast.sample_weights import SampleWeights
from culnig_fast.wrappers import unwrapped


class ModuleAblator:
    """What each neuron of a set does by itself: the objective as it is, minus the objective without the neuron.

        ablator = ModuleAblator(model, table.top(20))
        for images in batches:
            ablator.add(lambda model: model(images)[:, 3])
        agreement(table.at(ablator.neurons)[0], ablator.effects[0], top=5)

    A batch costs one forward pass, and one more a neuron. To first order the effect of silencing a neuron is its
    activation × gradient with reduction `sum`. For P(y|x) of a Hugging Face decoder `ablate` does the same faster.

    Args:
        model: any module; left as it was, also after an error.
        neurons: of it; a `NeuronSet` of a decoder by `ModuleNeurons.of_decoder`.
        n_groups: rows of `effects`.
        factor: what a neuron is multiplied by; one number, or one a neuron.
        values: what stands in a neuron's place instead, e.g. `ColumnMeans.values`; one number, or one a neuron.
        modules: see `scaled_columns`.
        progress: show a progress bar on standard error.

    Attributes:
        neurons: the set.
        effects: float64 [n_groups, n] Σ weight · (objective − objective without the neuron), in the set's order.
        counts: float64 [n_groups] samples of each group.

    Raises:
        CulnigError: no neurons, or a path that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        neurons: ModuleNeurons,
        *,
        n_groups: int = 1,
        factor: Numbers = 0.0,
        values: Numbers | None = None,
        modules: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        check_set(neurons)
        if not len(neurons):
            raise CulnigError("there are no neurons to silence; choose a set that holds some")
        if n_groups < 1:
            raise CulnigError(f"n_groups is {n_groups}; brute force needs at least one group")
        self.model, self.neurons, self.progress = unwrapped(model), neurons, progress
        numbers = each(neurons, factor, "factor") if values is None else each(neurons, values, "values")
        change = scaling if values is None else replacing
        self._alone = []
        for neuron, number in zip(neurons, numbers, strict=True):
            one = ModuleNeurons.named([neuron[:3]], dim=neuron.dim)
            self._alone.append((columns_of(self.model, one, modules), change(one, number)))
        self._ops = backends.resolve("reference")
        self._sums = torch.zeros((n_groups, len(neurons)), dtype=torch.float64)
        self._counts = torch.zeros(n_groups, dtype=torch.float64)

    def add(self, run: Run, *, weight: torch.Tensor | None = None, group: torch.Tensor | None = None) -> np.ndarray:
        """Run a batch, in evaluation mode and without gradients, as it is and without each neuron.

        Args:
            run: takes the model and gives [batch], a scalar a sample; called once more than there are neurons.
            weight, group: as for `ModuleAttributor.backward`.

        Returns:
            float64 [batch, n], each sample's own effects, without the weight.

        Raises:
            CulnigError: what `run` gives is not [batch] or not finite, or a neuron's module did not run or has no
                such column; nothing is added then.
        """
        bar = tqdm(total=len(self.neurons), unit="neuron", desc="silencing", disable=not self.progress, leave=False)
        with torch.no_grad(), evaluation_mode(self.model), bar:
            whole = checked_objective(run(self.model))
            if not whole.isfinite().all():
                raise CulnigError(f"the objective of sample {int((~whole.isfinite()).nonzero()[0])} is not finite")
            weights = SampleWeights.checked(whole, whole.shape, len(self._sums), weight=weight, group=group)
            effects = torch.empty((len(whole), len(self.neurons)), dtype=torch.float64)
            for place, (parts, change) in enumerate(self._alone):
                with changed(parts, change) as reached:
                    without = checked_objective(run(self.model))
                self._check(place, reached, whole, without)
                effects[:, place] = (whole.double() - without.double()).cpu()
                bar.update()
        weights.add(effects, self._sums, self._ops)
        self._counts += weights.counts(len(self._counts)).cpu()
        return effects.numpy()

    @property
    def effects(self) -> np.ndarray:
        """See the class."""
        return self._sums.numpy()

    @property
    def counts(self) -> np.ndarray:
        """See the class."""
        return self._counts.numpy()

    def ranked(self, row: int | None = None) -> ModuleNeurons:
        """The set by its effects, largest first, which are its scores; of one row of `effects`, or summed."""
        effects = self.effects.sum(0) if row is None else self.effects[row]
        return self.neurons.ranked(effects, {**self.neurons.info, "score": "effect of silencing it"})

    def _check(self, place: int, reached: Any, whole: torch.Tensor, without: torch.Tensor) -> None:
        if reached and without.shape == whole.shape and without.isfinite().all():
            return
        neuron = list(self.neurons)[place]
        name = f"column {neuron.column} of the {neuron.side} of {neuron.path!r}"
        if not reached:
            raise CulnigError(f"the module of {name} did not run, so nothing shows its effect; leave it out")
        if without.shape != whole.shape:
            raise CulnigError(
                f"without {name} `run` gives {list(without.shape)}, before {list(whole.shape)}; it must run one batch"
            )
        raise CulnigError(f"silencing {name} makes the objective infinite or NaN; try float32 or bfloat16")
