"""Processes that hold one model together: all run every batch, and what one of them decides all do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from culnig_fast.divided import Division
from culnig_fast.errors import CulnigError
from culnig_fast.running.budget import Meter
from culnig_fast.running.world import World


class Together(World):
    """The processes among which a model's weights are divided.

    None of them can go on, or keep its progress, without the others: signals and checkpoints are decided together, and
    progress is one file, which rank 0 writes.

    Args:
        world: the job, in which a dead process is told by name; by itself where nobody joined one.
        division: of the model.

    Raises:
        CulnigError: the model is divided among some of the job's processes only.
    """

    independent = False

    def __init__(self, world: World, division: Division) -> None:
        super().__init__(division.rank, division.size, world.store)
        if not world.alone and (world.rank, world.size) != (self.rank, self.size):
            raise CulnigError(
                f"the weights are divided among {self.size} of the job's {world.size} processes; divide them among "
                "all, or start as many as share one model"
            )
        self._division = division

    def share(self, batches: Sequence[Any]) -> list[Any]:
        """All batches."""
        return list(batches)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor: it is whole in every process."""
        return tensor

    def agree(self, *flags: int) -> list[int]:
        """The largest that any process gives for each."""
        return [int(flag) for flag in self._division.most_of(flags)]

    def gather(self, name: str, value: Any, stop: Callable[[], None] = lambda: None) -> list[Any]:
        """Every process's JSON-ready value, in rank order; `name` and `stop` are not needed where all run in step."""
        with self.named_failures():
            return self._division.gather(value)

    @contextlib.contextmanager
    def named_failures(self) -> Iterator[None]:
        """An exchange that broke off inside the block becomes a RankError, where another process's end explains it."""
        try:
            yield
        except RuntimeError as error:
            if self.store is not None:
                self.explain(error)
            raise


def joint(meter: Meter, division: Division) -> Meter:
    """The meter's readings as the process with the least memory has them."""
    return _JointMeter(meter, division)


class _JointMeter:
    def __init__(self, meter: Meter, division: Division) -> None:
        self._meter, self._division = meter, division

    def start(self) -> None:
        self._meter.start()

    def needed(self) -> int:
        return int(self._division.most(self._meter.needed()))

    def available(self) -> int:
        return -int(self._division.most(-self._meter.available()))
