"""How much each sample of a batch counts, and in which rows of the totals."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from culnig_fast.backend import Operations
from culnig_fast.errors import CulnigError


@dataclass(frozen=True)
class SampleWeights:
    """What a batch's scores are multiplied by, and where they are added.

    Attributes:
        weight: float64 [S].
        group: int64 [S] row of the totals; or float64 [S, G], how often each sample counts in each row.
        clamp_below_zero: replace negative weighted scores by 0.
    """

    weight: torch.Tensor
    group: torch.Tensor
    clamp_below_zero: bool

    @classmethod
    def checked(
        cls,
        objective: torch.Tensor,
        batch: torch.Size,
        n_groups: int,
        *,
        weight: torch.Tensor | None = None,
        group: torch.Tensor | None = None,
        clamp_below_zero: bool = False,
    ) -> SampleWeights:
        """Weights of 1 and row 0 where none are given.

        Raises:
            CulnigError: the shapes do not fit a batch of this shape, or a group number, where it can be seen without
                waiting for a device, has no row.
        """
        weight = torch.ones(batch, dtype=torch.float64) if weight is None else weight.detach()
        group = torch.zeros(batch, dtype=torch.int64) if group is None else group
        if objective.shape != batch or weight.shape != batch or group.shape not in (batch, (*batch, n_groups)):
            raise CulnigError(
                f"objective and weight must be [{batch[0]}], group [{batch[0]}] or [{batch[0]}, {n_groups}], not "
                f"{list(objective.shape)}, {list(weight.shape)}, {list(group.shape)}"
            )
        counted = group.dim() == 2
        if not counted and group.device.type == "cpu" and not ((group >= 0) & (group < n_groups)).all():
            raise CulnigError(f"a group number lies outside 0…{n_groups - 1}; give n_groups when constructing")
        device = objective.device
        return cls(
            weight.to(device, torch.float64),
            group.to(device, torch.float64 if counted else torch.int64),
            clamp_below_zero,
        )

    def counts(self, n_groups: int) -> torch.Tensor:
        """How many samples each row of the totals gained, float64 [n_groups]; waits for no device."""
        if self.group.dim() == 2:
            return self.group.sum(0)
        return (self.group[:, None] == torch.arange(n_groups, device=self.group.device)).sum(0).double()

    def add(self, scores: torch.Tensor, totals: torch.Tensor, ops: Operations) -> None:
        """totals [G, K] float64, in place, gain weight · scores [S, K], on whatever device they are."""
        weight, group = self.weight.to(scores.device), self.group.to(scores.device)
        if group.dim() == 2:
            weighted = scores.double() * weight[:, None]
            totals += group.T @ (weighted.clamp(min=0.0) if self.clamp_below_zero else weighted)
        else:
            ops.accumulate(scores, weight, group, totals, self.clamp_below_zero)


def refuse_nan(objective: torch.Tensor, weight: torch.Tensor | None) -> None:
    """Raise CulnigError for a weight that is NaN though its objective is a number, where no device is waited for.

    Both are NaN where the model is broken: whoever looks for that names layer and neuron.
    """
    if weight is None or weight.shape != objective.shape or weight.device.type != "cpu":
        return
    nan = weight.detach().isnan()
    if objective.device.type == "cpu":
        nan = nan & objective.detach().isfinite()
    if nan.any():
        raise CulnigError(f"the weight of sample {int(nan.nonzero()[0])} is NaN; give every sample a number")
