"""Neurons of any module changed by hooks: multiplied, or put at a value, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.modules.neurons import ModuleNeurons
from culnig_fast.modules.sites import ModuleSite, as_it_was, neurons_last, resolve_sites
from culnig_fast.tap import hook_tensor
from culnig_fast.uncompiled import uncompiled
from culnig_fast.wrappers import unwrapped

Numbers = float | Sequence[float] | np.ndarray | torch.Tensor
"""One number for all neurons, or [n], one each in the set's order."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The neurons of a set that lie in one tensor.

    Attributes:
        site: that tensor.
        module: its module.
        columns: int64 [k] columns of the whole tensor.
        places: int64 [k] their places in the set.
    """

    site: ModuleSite
    module: nn.Module
    columns: torch.Tensor
    places: torch.Tensor

    def last(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as [..., K]; CulnigError when it has no such columns, or holds no real numbers."""
        if not tensor.is_floating_point():
            raise CulnigError(f"{self.site} is {str(tensor.dtype).removeprefix('torch.')}, which holds no activations")
        last = neurons_last(self.site, tensor)
        largest = int(self.columns.max())
        if largest >= last.shape[-1]:
            raise CulnigError(
                f"{self.site} has columns 0…{last.shape[-1] - 1}, not {largest}; is the set of another model, or `dim` "
                "another one?"
            )
        return last

    def widened(self, tensor: torch.Tensor, numbers: torch.Tensor, rest: float) -> torch.Tensor:
        """[K] of the tensor's dtype and device: `numbers` [k] at the columns, `rest` elsewhere."""
        row = torch.full((tensor.shape[-1],), rest, dtype=numbers.dtype)
        row[self.columns] = numbers
        return row.to(tensor)


Change = Callable[[Columns, torch.Tensor], torch.Tensor]
"""Takes the columns and their tensor, [..., K], and gives what stands in its place, a new tensor."""


def columns_of(model: Any, neurons: ModuleNeurons, modules: Mapping[str, Any] | None = None) -> list[Columns]:
    """The set tensor by tensor; CulnigError for a path that the model does not have."""
    check_set(neurons)
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, neuron in enumerate(neurons):
        found.setdefault((neuron.path, neuron.side, neuron.dim), []).append(place)
    if not found:
        return []
    sites = [ModuleSite(path, side=side, dim=dim) for path, side, dim in found]
    resolved = resolve_sites(model, sites, modules)
    columns = torch.from_numpy(neurons.columns)
    return [
        Columns(site, module, columns[places], torch.tensor(places))
        for (site, module), places in zip(resolved, found.values(), strict=True)
    ]


@contextlib.contextmanager
def changed(parts: Sequence[Columns], change: Change) -> Iterator[set[Columns]]:
    """Hook `change` on the tensors; yields those that were reached, filled as they are. All is undone on exit."""
    reached: set[Columns] = set()

    def hook(part: Columns, tensor: torch.Tensor) -> torch.Tensor:
        reached.add(part)
        return as_it_was(part.site, change(part, part.last(tensor)), tensor.shape)

    with contextlib.ExitStack() as stack:
        stack.enter_context(uncompiled())
        for part in parts:
            stack.callback(hook_tensor(part.module, part.site.side, partial(hook, part)).remove)
        yield reached


def scaling(neurons: ModuleNeurons, factor: Numbers) -> Change:
    """Multiplies by factors; CulnigError unless there is one, or one a neuron."""
    numbers = each(neurons, factor, "factor")

    def change(part: Columns, last: torch.Tensor) -> torch.Tensor:
        own = numbers[part.places]
        silent = own == 0  # times 0, what is infinite or NaN is NaN
        scaled = last if silent.all() else last * part.widened(last, own, 1.0)
        return scaled.index_fill(-1, part.columns[silent].to(last.device), 0.0) if silent.any() else scaled

    return change


def replacing(neurons: ModuleNeurons, values: Numbers) -> Change:
    """Puts values in the place of activations; CulnigError unless there is one, or one a neuron."""
    numbers = each(neurons, values, "values")

    def change(part: Columns, last: torch.Tensor) -> torch.Tensor:
        where = part.widened(last, torch.ones(len(part.columns)), 0.0).bool()
        return torch.where(where, part.widened(last, numbers[part.places], 0.0), last)

    return change


@contextlib.contextmanager
def scaled_columns(
    model: Any, neurons: ModuleNeurons, factor: Numbers = 0.0, *, modules: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """Multiply neurons of any module's output or input by `factor` at every position inside the block.

        with scaled_columns(model, table.top(10)):
            model(images)

    What a module takes in is changed for that module alone. Nothing is written in place, gradients pass.

    Args:
        model: any module; yielded, and as it was after the block, also after an error.
        neurons: of it, e.g. from `ModuleScores.top`.
        factor: 0 suppresses, 2 enhances; one number, or [n], one each in the set's order.
        modules: the names that the set's paths are, with their modules; None means `named_modules()`.

    Raises:
        CulnigError: a path that the model does not have; and when the model runs, a column that a module does not.
    """
    model = unwrapped(model)
    with changed(columns_of(model, neurons, modules), scaling(neurons, factor)):
        yield model


@contextlib.contextmanager
def replaced_columns(
    model: Any, neurons: ModuleNeurons, values: Numbers, *, modules: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """Put neurons of any module's output or input at `values` at every position inside the block.

    Args:
        model, neurons, modules: as for `scaled_columns`.
        values: one number, or [n], one each in the set's order, e.g. `ColumnMeans.values`.

    Raises:
        CulnigError: as `scaled_columns`.
    """
    model = unwrapped(model)
    with changed(columns_of(model, neurons, modules), replacing(neurons, values)):
        yield model


def check_set(neurons: Any) -> None:
    """Raise CulnigError for anything but `ModuleNeurons`, saying how to make them."""
    if not isinstance(neurons, ModuleNeurons):
        raise CulnigError(
            f"neurons of a module were given as {type(neurons).__name__}; make ModuleNeurons, of a NeuronSet by "
            "ModuleNeurons.of_decoder(model, neurons), of paths and columns by ModuleNeurons.named"
        )


def each(neurons: ModuleNeurons, numbers: Any, name: str) -> torch.Tensor:
    """float64 [n] on the CPU; CulnigError unless one number was given, or one a neuron."""
    row = torch.as_tensor(numbers, dtype=torch.float64).detach().cpu()
    if row.shape not in ((), (len(neurons),)):
        raise CulnigError(f"{name} has shape {list(row.shape)}; give one number, or {len(neurons)}, one a neuron")
    return row.expand(len(neurons))
