"""Routed experts that are modules in a list: each sees the tokens routed to it, and not where they come from.

A token's row is found again by its bits: what an expert is given are rows of what its block was given. Equal rows are
equal tokens after equal texts, are routed alike, and come in order; discovery proves it on a batch of repeated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from culnig_fast.errors import CulnigError
from culnig_fast.mixtures.experts import Change, Handle, Routing, Tensor
from culnig_fast.probing.layer import linear_shape, same_output
from culnig_fast.quantised import why_not_plain

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def matching_rows(tokens: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Where the rows of given, [S, H], stand in tokens, [N, H]: int64 [S].

    Rows are compared bit by bit. The r-th of equal rows in `given` is the r-th in `tokens`.

    Raises:
        CulnigError: a row is not there, or of equal rows only some are given, so that they cannot be told apart.
    """
    if not len(given):
        return torch.zeros(0, dtype=torch.int64, device=tokens.device)
    known, sought = _keys(tokens), _keys(given)
    order, wanted = torch.argsort(known, stable=True), torch.argsort(sought, stable=True)
    known, sought = known[order], sought[wanted]
    first = torch.searchsorted(known, sought)
    place = first + torch.arange(len(sought), device=sought.device) - torch.searchsorted(sought, sought)
    rows = torch.empty_like(order[: len(sought)])
    rows[wanted] = order[place.clamp(max=len(order) - 1)]
    here = torch.searchsorted(sought, sought, right=True) - torch.searchsorted(sought, sought)
    there = torch.searchsorted(known, sought, right=True) - first
    if not torch.equal(here, there) or not torch.equal(tokens[rows], given):
        raise CulnigError(
            "an expert is given something else than rows of its block's input, so which token it sees cannot be told; "
            "score the model's attention and dense neurons alone"
        )
    return rows


def _keys(rows: torch.Tensor) -> torch.Tensor:
    """One int64 a row, equal for equal bits: integer sums wrap around and come out alike in any order."""
    bits = rows.contiguous().view(_INTEGERS[rows.element_size()]).long()
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator).to(bits.device) * 2 + 1
    return (bits * odd).sum(1)


class ListedExperts:
    """Experts in a list of modules alike.

    Args:
        block: the module around them, whose first argument is the tokens.
        experts: the list.
        path: where the list is in the model.
        form: hashable; what the experts have in common.
    """

    def __init__(self, block: nn.Module, experts: nn.ModuleList, path: str, form: Any) -> None:
        self.block, self.experts, self.path, self.form = block, experts, path, form
        self.count = len(experts)

    def attach(self, part: str, tensor: Tensor, change: Change) -> Handle:
        """See `experts.Experts`."""
        tokens: list[torch.Tensor] = []
        routing: dict[int, Routing] = {}

        def see_block(module: nn.Module, args: tuple[Any, ...]) -> None:
            tokens[:] = [args[0].detach().reshape(-1, args[0].shape[-1])]

        def leave_block(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tokens.clear()  # an expert that runs by itself, outside its block, is left alone
            routing.clear()

        def see_expert(expert: int) -> Callable[..., None]:
            def see(module: nn.Module, args: tuple[Any, ...]) -> None:
                if tokens:
                    rows = matching_rows(tokens[0], args[0].detach())
                    routing[expert] = Routing(rows, torch.full_like(rows, expert), expert)

            return see

        def change_output(expert: int) -> Callable[..., torch.Tensor]:
            return lambda module, args, output: change(output, routing[expert]) if routing else output

        def change_input(expert: int) -> Callable[..., tuple[Any, ...]]:
            return lambda module, args: (change(args[0], routing[expert]), *args[1:]) if routing else args

        hooks: list[Any] = [
            self.block.register_forward_pre_hook(see_block),
            self.block.register_forward_hook(leave_block),
        ]
        for number, expert in enumerate(self.experts):
            hooks.append(expert.register_forward_pre_hook(see_expert(number)))
            projection = expert.get_submodule(part)
            if tensor == "output":
                hooks.append(projection.register_forward_hook(change_output(number)))
            else:
                hooks.append(projection.register_forward_pre_hook(change_input(number)))

        def undo() -> None:
            for hook in hooks:
                hook.remove()

        return Handle(undo)

    def projections(self, part: str) -> list[tuple[str, nn.Module]]:
        """Path in the model and module of each expert's projection."""
        return [(f"{self.path}.{i}.{part}", expert.get_submodule(part)) for i, expert in enumerate(self.experts)]

    def weights(self, part: str) -> list[nn.Parameter]:
        """See `experts.Experts`."""
        return [module.weight for _, module in self.projections(part)]  # type: ignore[misc]

    def rows(self, part: str, tensor: Tensor) -> Iterator[torch.Tensor]:
        """See `experts.Experts`."""
        return (_rows(module, path, tensor).detach() for path, module in self.projections(part))

    def columns(self, part: str, tensor: Tensor) -> int:
        """See `experts.Experts`."""
        shape = linear_shape(self.experts[0].get_submodule(part))
        if shape is None:
            raise CulnigError(f"{self.path}.0.{part} is no linear projection")
        return shape[1] if tensor == "output" else shape[0]

    def scale(self, model: Any, part: str, tensor: Tensor, edits: list[tuple[int, int]], factor: float) -> None:
        """See `experts.Experts`."""
        for expert, column in edits:
            path = f"{self.path}.{expert}.{part}"
            module = model.get_submodule(path)
            row = _rows(module, path, tensor)[column]
            row.copy_(row * factor if factor else torch.zeros_like(row))
            if tensor == "output" and module.bias is not None:
                module.bias[column] = module.bias[column] * factor if factor else 0.0


def _rows(module: Any, path: str, tensor: Tensor) -> torch.Tensor:
    """A plain projection's weight with a neuron of the tensor a row."""
    kind = why_not_plain(module)
    if kind is not None:
        raise CulnigError(f"{path} is quantised ({kind}); load the model unquantised")
    rows_are_outputs = not isinstance(module, Conv1D)
    weight: torch.Tensor = module.weight
    return weight if rows_are_outputs == (tensor == "output") else weight.T


@torch.no_grad()
def tells_tokens_apart(experts: ListedExperts, exits: str, hidden: torch.Tensor) -> bool:
    """Whether rows are matched to the right tokens, also where tokens repeat.

    What is taken for the second half of a batch of repeated tokens is erased within the experts; just those tokens'
    results must change.

    Args:
        experts: the experts.
        exits: path of their last projection.
        hidden: [T, H] tokens.
    """
    batch = torch.cat([hidden, hidden])[None]
    plain = _first(experts.block(batch))

    def erase(values: torch.Tensor, routing: Routing) -> torch.Tensor:
        return values.masked_fill((routing.tokens >= len(hidden))[:, None], 0.0)

    handle = experts.attach(exits, "input", erase)
    try:
        erased = _first(experts.block(batch))
    except CulnigError:
        return False
    finally:
        handle.remove()
    half = len(hidden)
    plain, erased = (out.reshape(2 * half, -1) for out in (plain, erased))
    changed = [not same_output(erased[row], plain[row]) for row in range(2 * half)]
    return changed == [False] * half + [True] * half


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
