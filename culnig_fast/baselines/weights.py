"""Weight norm: how large a neuron's own weights are, whatever it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from culnig_fast.architecture import SiteLocation, architecture_of
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import cut, places
from culnig_fast.neurons import named_modules
from culnig_fast.quantised import why_not_plain
from culnig_fast.scores import ScoreTable


def weight_norms(model: Any, sites: Iterable[str] | None = None) -> ScoreTable:
    """Euclidean norm of each neuron's weights, as a score table of one group.

    The weights are the projection's row that makes the neuron (`mlp.act`: the column that reads it); biases are
    left out. A routed expert's neurons have the rows of that expert, however often tokens reach it.

    Args:
        model: a Hugging Face decoder or its `Architecture`.
        sites: module names; None means q, k, v, gate and up, where the model has them.

    Raises:
        CulnigError: the structure cannot be resolved, or weights are quantised.
    """
    architecture = architecture_of(model)
    sites = named_modules(sites)
    norms = torch.cat([_norms(location).cpu() for location in architecture.select(sites)])
    return ScoreTable(
        totals=norms.numpy()[None],
        groups=("weights",),
        counts=np.ones(1, dtype=np.int64),
        probability=np.zeros(1),
        ids=("weights",),
        layout=architecture.layout(sites),
        metadata={"score": "weight norm", "model_class": type(architecture.model).__name__},
    )


def _norms(location: SiteLocation) -> torch.Tensor:
    if location.experts is not None:
        own = (cut(one.T, location.columns) for one in location.experts.rows(location.part, location.tensor))
        return torch.cat([torch.linalg.vector_norm(one, dim=0, dtype=torch.float64) for one in own])
    kind = why_not_plain(location.module)
    if kind is not None:
        raise CulnigError(f"{location.module_path} is quantised ({kind}); load the model unquantised")
    weight = location.module.weight.detach()
    outputs_first = not isinstance(location.module, Conv1D)
    along = 1 if outputs_first == (location.tensor == "output") else 0
    # Only the site's own part is widened to float64.
    if isinstance(location.columns, slice):
        part = weight.narrow(1 - along, location.columns.start, location.columns.stop - location.columns.start)
    else:
        part = weight.index_select(1 - along, torch.tensor(places(location.columns), device=weight.device))
    norms: torch.Tensor = torch.linalg.vector_norm(part, dim=along, dtype=torch.float64)
    return norms
