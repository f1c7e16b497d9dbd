"""What neurons of any module are on average: the usual stand-in for a neuron that is taken out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from culnig_fast.errors import CulnigError
from culnig_fast.last_position import evaluation_mode
from culnig_fast.modules.columns import Columns, changed, columns_of
from culnig_fast.modules.neurons import ModuleNeurons
from culnig_fast.modules.reduction import checked_batch, counted_rows
from culnig_fast.wrappers import unwrapped


class ColumnMeans:
    """Means of chosen neurons over all samples and positions that count.

        means = ColumnMeans(model, neurons)
        for images in batches:
            means.add(lambda model: model(images))
        with replaced_columns(model, neurons, means.values):
            ...

    Args:
        model: any module; left as it was.
        neurons: of it.
        modules: see `scaled_columns`.

    Raises:
        CulnigError: a path that the model does not have.
    """

    def __init__(self, model: Any, neurons: ModuleNeurons, *, modules: Mapping[str, Any] | None = None) -> None:
        self.model, self.neurons = unwrapped(model), neurons
        self._parts = columns_of(self.model, neurons, modules)
        self._sums, self._counts = np.zeros(len(neurons)), np.zeros(len(neurons))

    def add(
        self,
        run: Callable[[Any], torch.Tensor],
        *,
        lengths: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> None:
        """Run a batch, in evaluation mode and without gradients, and count its neurons.

        Args:
            run: takes the model, returns anything of [batch, ...].
            lengths, positions: as for `ModuleAttributor.backward`.

        Raises:
            CulnigError: a module of the set did not run, or has no such column, or the positions do not fit it.
        """
        seen: list[tuple[Columns, torch.Tensor]] = []

        def look(part: Columns, last: torch.Tensor) -> torch.Tensor:
            seen.append((part, last[..., part.columns.to(last.device)]))  # a copy: what follows may write over it
            return last

        with torch.no_grad(), evaluation_mode(self.model), changed(self._parts, look) as reached:
            samples = len(run(self.model))
        missing = [str(part.site) for part in self._parts if part not in reached]
        if missing:
            raise CulnigError(f"{missing[0]} did not run, so its neurons have no mean; leave them out of the set")
        batch = checked_batch(samples, lengths, positions)
        for part, last in seen:
            rows, places = counted_rows(part.site, last, batch).double(), part.places.numpy()
            self._sums[places] += rows.sum(0).cpu().numpy()
            self._counts[places] += len(rows)

    @property
    def values(self) -> np.ndarray:
        """float64 [n] means so far, in the set's order; CulnigError before any batch."""
        if len(self.neurons) and not self._counts.any():
            raise CulnigError("no batch was added yet; means need one")
        return self._sums / self._counts
