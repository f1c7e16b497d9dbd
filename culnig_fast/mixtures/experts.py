"""Routed experts: which token and expert each row of their tensors belongs to, and a way to look at those tensors.

Newer models hold the experts of a layer in fused 3-D parameters, which no hook on a projection sees. `FusedExperts`
runs such a module's own computation with its tensors laid open, for as long as somebody has attached a change;
parameters are untouched, and the module's own forward is back when the last change is gone. `listed` does the
same for experts that are modules in a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F

Tensor = Literal["output", "input"]


@dataclass(frozen=True)
class Routing:
    """Where the rows of an experts' tensor [S, K] come from; a row is one token at one expert that it was routed to.

    Attributes:
        tokens: int64 [S] the token's place in the batch, sample after sample, pads included.
        experts: int64 [S].
        only: the one expert that all rows belong to, when the experts run one by one; each row's score is then one of
            that expert's columns alone.
    """

    tokens: torch.Tensor
    experts: torch.Tensor
    only: int | None = None


Change = Callable[[torch.Tensor, Routing], torch.Tensor]
"""Takes the whole tensor of a projection, [S, K], and gives what stands in its place."""


class Experts(Protocol):
    """The routed experts of one layer.

    `part` names a projection: a parameter of a fused module, or a path within each expert of a list.
    """

    count: int
    """Experts."""
    form: Any
    """Hashable; layers of one kind and form are alike."""

    def attach(self, part: str, tensor: Tensor, change: Change) -> Any:
        """Hand what the projection puts out or takes in through `change`, until the handle's `remove` is called."""

    def weights(self, part: str) -> list[nn.Parameter]:
        """The projection's weights."""

    def rows(self, part: str, tensor: Tensor) -> Iterator[torch.Tensor]:
        """Each expert's weight with a neuron of the tensor a row, [columns, inputs] or, taken in, [columns, outputs].

        Raises:
            CulnigError: it is quantised.
        """

    def scale(self, model: Any, part: str, tensor: Tensor, edits: list[tuple[int, int]], factor: float) -> None:
        """Multiply weight rows (and biases) of (expert, column of the tensor) in `model`, this one or a copy of it."""

    def columns(self, part: str, tensor: Tensor) -> int:
        """How many columns the projection's tensor has."""


@dataclass(frozen=True)
class FusedForm:
    """How a fused module holds its experts.

    Attributes:
        entry: the parameter [experts, gate and up, hidden], with its bias under the name followed by `_bias`.
        exit: the parameter [experts, hidden, width].
        transposed: the last two dimensions of both stand the other way round.
        gate, up: their columns of what the entry puts out.
    """

    entry: str
    exit: str
    transposed: bool
    gate: tuple[int, int, int]
    up: tuple[int, int, int]


class FusedExperts:
    """Experts in 3-D parameters of one module, which is called with tokens, experts chosen and their weights.

    Args:
        module: the module; its `_apply_gate` makes [S, width] of [S, gate and up].
        path: where it is in the model.
        form: proved by whoever found it.
    """

    def __init__(self, module: Any, path: str, form: FusedForm) -> None:
        self.module, self.path, self.form = module, path, form
        self.count = int(getattr(module, form.entry).shape[0])

    def run(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, changed: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """What the module computes, from plain products.

        Args:
            hidden: [N, H] tokens.
            index: int64 [N, k] experts of each.
            weights: [N, k] what each expert's output is multiplied by.
            changed: called with part, tensor, values [S, K] and routing; gives what stands in place of the values.

        Returns:
            [N, H] of hidden's dtype.
        """
        chosen = index.reshape(-1)
        order = torch.argsort(chosen, stable=True)
        routing = Routing(order // index.shape[-1], chosen[order])
        form = self.form
        weights_of = [self._inputs_first(getattr(self.module, part)) for part in (form.entry, form.exit)]
        rows = None if all(one_launch(hidden, weight) for weight in weights_of) else self.rows_of(chosen)
        # A permutation of copies: its gradient has no two rows that are added in whatever order they come.
        copies = hidden[:, None].expand(*index.shape, -1).reshape(len(chosen), -1)
        gate_up = changed(form.entry, "output", self._product(copies[order], form.entry, routing, rows), routing)
        act = changed(form.exit, "input", self.module._apply_gate(gate_up), routing)
        out = self._product(act, form.exit, routing, rows) * weights.reshape(-1)[order][:, None]
        return out[torch.argsort(order)].view(*index.shape, -1).sum(1).to(hidden.dtype)

    def rows_of(self, chosen: torch.Tensor) -> list[int]:
        """How many of the chosen experts, int64 [rows], each is."""
        counts: list[int] = torch.bincount(chosen, minlength=self.count).tolist()
        return counts

    def attach(self, part: str, tensor: Tensor, change: Change) -> Any:
        """See `Experts`."""
        opened = vars(self.module).get("forward")
        if not isinstance(opened, OpenForward):
            opened = OpenForward(self)
        return opened.add(part, tensor, change)

    def weights(self, part: str) -> list[nn.Parameter]:
        """See `Experts`."""
        return [getattr(self.module, part)]

    def rows(self, part: str, tensor: Tensor) -> Iterator[torch.Tensor]:
        """See `Experts`."""
        return iter(self._rows(getattr(self.module, part), tensor).detach())

    def columns(self, part: str, tensor: Tensor) -> int:
        """See `Experts`."""
        outputs_last = self.form.transposed == (tensor == "output")
        return int(getattr(self.module, part).shape[2 if outputs_last else 1])

    def scale(self, model: Any, part: str, tensor: Tensor, edits: list[tuple[int, int]], factor: float) -> None:
        """See `Experts`."""
        module = model.get_submodule(self.path)
        weight = getattr(module, part)
        rows = self._rows(weight, tensor)
        experts, columns = torch.tensor(edits, device=weight.device).T
        rows[experts, columns] = rows[experts, columns] * factor if factor else 0.0
        bias = getattr(module, f"{part}_bias", None)
        if tensor == "output" and bias is not None:
            bias[experts, columns] = bias[experts, columns] * factor if factor else 0.0

    def _rows(self, weight: torch.Tensor, tensor: Tensor) -> torch.Tensor:
        # A neuron is a row of [experts, outputs, inputs] where it is put out, a column where it is taken in.
        return weight if self.form.transposed != (tensor == "output") else weight.transpose(1, 2)

    def _inputs_first(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if self.form.transposed else weight.transpose(1, 2)

    def _product(self, values: torch.Tensor, part: str, routing: Routing, rows: list[int] | None) -> torch.Tensor:
        """Each expert's own product with its rows of values, which come expert after expert.

        `rows` says how many each has; None asks for all products at once.
        """
        weight, bias = self._inputs_first(getattr(self.module, part)), getattr(self.module, f"{part}_bias", None)
        if rows is None:
            numbers = torch.arange(self.count, device=values.device)
            ends = torch.searchsorted(routing.experts, numbers, right=True).to(torch.int32)
            out = F.grouped_mm(values, weight, offs=ends)
            return out if bias is None else out + bias[routing.experts]
        parts = []
        for expert, own in enumerate(values.split(rows)):
            if len(own):
                out = own @ weight[expert]
                parts.append(out if bias is None else out + bias[expert])
        return torch.cat(parts)


def one_launch(values: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether all experts' products are asked for at once: on a GPU, where asking for each takes longer than it does.

    Args:
        values: [N, ·] of the number format of what is multiplied.
        weight: [experts, inputs, outputs].
    """
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    # torch 2.10 brought it; other number formats came later, and not on all cards.
    plain = values.dtype == weight.dtype == torch.bfloat16
    return values.device.type == "cuda" and hasattr(F, "grouped_mm") and plain and aligned


class OpenForward:
    """Stands in for a fused module's forward while there are changes."""

    def __init__(self, experts: FusedExperts) -> None:
        self.experts = experts
        self._changes: list[tuple[str, Tensor, Change]] = []
        self._earlier = vars(experts.module).get("forward")

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.experts.run(hidden, index, weights, self._changed)

    def add(self, part: str, tensor: Tensor, change: Change) -> Handle:
        """Apply one more change, after those that are there."""
        entry = (part, tensor, change)
        self._changes.append(entry)
        self.experts.module.forward = self
        return Handle(lambda: self._remove(entry))

    def _remove(self, entry: tuple[str, Tensor, Change]) -> None:
        self._changes = [other for other in self._changes if other is not entry]
        if self._changes or vars(self.experts.module).get("forward") is not self:
            return
        if self._earlier is None:
            del self.experts.module.forward
        else:
            self.experts.module.forward = self._earlier

    def _changed(self, part: str, tensor: Tensor, values: torch.Tensor, routing: Routing) -> torch.Tensor:
        for where, which, change in self._changes:
            if (where, which) == (part, tensor):
                values = change(values, routing)
        return values


class Handle:
    """Undoes one attachment, once."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo

    def remove(self) -> None:
        """Undo it; again is harmless."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


def unchanged(part: str, tensor: Tensor, values: torch.Tensor, routing: Routing) -> torch.Tensor:
    """The change that changes nothing, for `FusedExperts.run`."""
    return values
