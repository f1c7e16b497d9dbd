"""A model whose weights are divided among processes: which columns this process holds, and what all decide together.

transformers' tensor-parallel plans cut the projections that a layer begins with by their outputs and those that it ends
with by their inputs, so each process computes some columns of a site and all of them exchange sums within every layer.
Processes that decide anything by what they see must decide it together: one that runs a layer more often than the
others leaves them waiting.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from culnig_fast.errors import CulnigError


def is_divided(tensor: Any) -> bool:
    """Whether a weight lies in parts in several processes (torch's DTensor)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def own_part(tensor: Any) -> torch.Tensor:
    """This process's part of a divided weight."""
    part: torch.Tensor = tensor.to_local()
    return part


def refuse_divided(model: nn.Module) -> None:
    """Raise CulnigError when a weight is divided, for work that would take some columns for all."""
    for name, parameter in model.named_parameters():
        if is_divided(parameter):
            raise CulnigError(
                f"{name} is divided among processes, of which only attribute(), evaluate() and suppress() know; "
                "load the whole model in each process, or spread it with --device auto (device_map='auto')"
            )


def division_of(model: nn.Module) -> Division | None:
    """Among which processes the weights of a model are divided; None when they are not.

    Raises:
        CulnigError: they are divided in a way that is not understood (FSDP, more than one axis).
    """
    divided: list[tuple[str, Any]] = [(name, p) for name, p in model.named_parameters() if is_divided(p)]
    if not divided:
        return None
    sharded = [name for name, module in model.named_modules() if type(module).__name__.startswith("FSDP")]
    mesh = divided[0][1].device_mesh
    if sharded or mesh.ndim != 1 or any(parameter.device_mesh != mesh for _, parameter in divided):
        raise CulnigError(
            f"{divided[0][0]} is divided among processes otherwise than by one tensor-parallel plan (FSDP, or several "
            "axes); load the whole model in each process and divide the samples with torchrun"
        )
    return Division(mesh.get_group(), own_part(divided[0][1]).device)


class Division:
    """The processes that hold one model together. Every method is called by all of them, in the same order.

    Args:
        group: of torch.distributed.
        device: where the group exchanges tensors.

    Attributes:
        rank: of this process among them.
        size: processes.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._group, self._device = group, device

    @contextlib.contextmanager
    def runnable(self, model: nn.Module) -> Iterator[None]:
        """Around the model's first run: what cannot be divided among so many processes becomes a CulnigError."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            # gloo has no class of its own for its errors; they begin with the place in its sources.
            if isinstance(error, dist.DistError) or "gloo" in reason:
                raise CulnigError(
                    f"the exchange with the other processes broke off before the first batch ({reason:.200}); look at "
                    "their messages for the one that ended, and start the same job again"
                ) from error
            raise CulnigError(
                f"{type(model).__name__} does not run with its weights divided among {self.size} processes "
                f"({reason:.200}); start a number of them that divides heads, key-value heads and the MLP's width"
            ) from error

    def most(self, value: float) -> float:
        """The largest value that a process gives; NaN when any is."""
        return self.most_of([value])[0]

    def most_of(self, values: Sequence[float]) -> list[float]:
        """The same for several values at once."""
        own = torch.tensor(values, dtype=torch.float64, device=self._device)
        return list(torch.stack(self._gathered(own)).amax(0).tolist())

    def gather(self, value: Any) -> list[Any]:
        """Every process's JSON-ready value, in rank order."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        longest = int(self.most(len(text)))
        padded = torch.full((longest,), ord(" "), dtype=torch.uint8)
        padded[: len(text)] = text
        return [json.loads(bytes(part.cpu().tolist())) for part in self._gathered(padded.to(self._device))]

    def whole(self, part: torch.Tensor) -> torch.Tensor:
        """Every process's columns of [rows, columns], side by side in rank order: the same on all of them."""
        return torch.cat(self._gathered(part.to(self._device)), dim=1).to(part.device)

    def held(self, module: nn.Module, tensor: str, seen: int, width: int) -> range | None:
        """Which columns of what a projection puts out or takes in this process sees; None is all of them.

        Args:
            module: the projection.
            tensor: `output` or `input`.
            seen: columns that there were.
            width: neurons of the site.

        Raises:
            CulnigError: its weight is divided in a way that does not explain them.
        """
        weight: Any = module.weight
        if not is_divided(weight):
            return None
        along = 0 if tensor == "output" else weight.dim() - 1
        columns = int(weight.shape[along])
        if seen == columns:  # gathered after the product, or divided before it
            return None
        if columns % self.size:
            raise CulnigError(
                f"a {type(module).__name__} of {columns} columns cannot be divided evenly among {self.size} processes; "
                "start a number of them that divides heads, key-value heads and the MLP's width"
            )
        share = columns // self.size
        # A type that only looks like Shard interleaves columns.
        is_shard = [type(placement).__name__ for placement in weight.placements] == ["Shard"]
        if not is_shard or weight.placements[0].dim % weight.dim() != along or columns != width or share != seen:
            raise CulnigError(
                f"a {type(module).__name__} of {columns} columns shows {seen} of them, and its weight is divided as "
                f"{', '.join(map(str, weight.placements))}: which ones cannot be told; divide the samples instead"
            )
        return range(self.rank * share, (self.rank + 1) * share)

    def _gathered(self, own: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous(), group=self._group)
        return parts
