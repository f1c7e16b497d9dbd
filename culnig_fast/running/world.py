"""The processes of a job: who does what, who is alive, and the sum of what they have in one order.

Every process scores whole batches of the same plan, so each sample is scored in the batch that one process would
have scored it in, and only the order of the float64 sums differs: the merged totals equal one process's to 1e-12 of
a site's largest, as long as the processes compute alike (the same card, the same number of CPU threads). Totals are
exchanged once a run, each part of them summed in rank order by the rank that owns it: the same bits on every rank and
in every run of as many processes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from culnig_fast.errors import CulnigError

PULSE_SECONDS = 0.5
"""How often a process tells the others that it lives, and how often it asks."""

DEAD_SECONDS = 20.0
"""A process that has not told so for so long is taken for dead; a busy one misses no more than a few pulses."""

GRACE_SECONDS = 4.0
"""torchrun stops all processes when one dies; for so long the others find out which one it was."""

_BLOCK = 1 << 23  # float64 that are exchanged at once, 64 MiB


class RankError(CulnigError):
    """Another process of the job failed; the message names it."""


class World:
    """The processes of a job; by itself, one process, of which nothing here asks anything.

    Attributes:
        rank: of this process, 0…size−1.
        size: processes.
        store: torch's key-value store, in which they tell each other how they are; None where nobody joined them.
        independent: whether each scores samples of its own, and can keep its progress without the others.
    """

    independent = True

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.store = rank, size, store
        self._round = 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._asked = 0.0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    def share(self, batches: Sequence[Any]) -> list[Any]:
        """This process's batches: every `size`-th, so that long and short samples spread evenly."""
        return list(batches[self.rank :: self.size])

    def check(self) -> None:
        """Raise RankError when another process has failed, was stopped, or has given no sign of life for a while.

        Cheap enough to be called after every batch: it asks at most every half second.
        """
        if self.store is None or time.monotonic() - self._asked < PULSE_SECONDS:
            return
        self._asked = time.monotonic()
        if text := self._read("verdict"):
            raise RankError(text)
        for rank in self._others():
            if text := self._read(f"failed/{rank}"):
                self._condemn(f"rank {rank} failed ({text}); mend that and start the same job again: it continues")
        for rank, since in self._silent().items():
            if since > DEAD_SECONDS:
                self._condemn(f"rank {rank} died; start the same job again: every rank continues from its own progress")

    def _condemn(self, text: str) -> None:
        """Raise RankError, here and as soon as they look on the others: all name the rank that was first."""
        self.store.set("verdict", text)
        raise RankError(text)

    def casualty(self) -> int | None:
        """The first rank that died without a word, for a process that is being stopped itself; None without one.

        Waits a few seconds: one missed pulse is no death.
        """
        if self.store is None:
            return None
        start = time.monotonic()
        while time.monotonic() - start < GRACE_SECONDS:
            silent = {rank: since for rank, since in self._silent().items() if not self._read(f"failed/{rank}")}
            if dead := [rank for rank, since in silent.items() if since > 5 * PULSE_SECONDS]:
                return dead[0]
            time.sleep(PULSE_SECONDS / 2)
        return None

    def agree(self, *flags: int) -> list[int]:
        """What the processes do next, each by its own flags, or all by the largest where none goes on alone."""
        return list(flags)

    def named_failures(self) -> contextlib.AbstractContextManager[None]:
        """Around work that needs the other processes, where there is such work."""
        return contextlib.nullcontext()

    def explain(self, error: BaseException) -> None:
        """Raise RankError when another process's death or failure is behind an error; waits a few seconds."""
        if (dead := self.casualty()) is not None:
            raise RankError(f"rank {dead} died; start the same job again: it continues from what was kept") from error
        self.check()

    def gather(self, name: str, value: Any, stop: Callable[[], None] = lambda: None) -> list[Any]:
        """Every process's JSON-ready value, in rank order; waits until all have come this far.

        Args:
            name: what is gathered; every process calls in the same order.
            value: this process's.
            stop: called while waiting; raises to give up.

        Raises:
            RankError: a process failed or died before it came here.
        """
        if self.alone:
            return [value]
        self._round += 1
        keys = [f"{self._round}/{name}/{rank}" for rank in range(self.size)]
        with _lost_store():
            self.store.set(keys[self.rank], json.dumps(value))
            while not self.store.check(keys):
                stop()
                self.check()
                time.sleep(0.05)
            return [json.loads(self.store.get(key)) for key in keys]

    def same(self, name: str, value: Any) -> None:
        """Raise CulnigError, naming a rank, unless every process has the same value."""
        for rank, other in enumerate(self.gather(name, value)):
            if other != value:
                raise CulnigError(
                    f"rank {rank} has another {name} than rank {self.rank}; start every process with the same command"
                )

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Σ over the processes of a float64 tensor, added in rank order; the same bits on every process.

        Each process sends its part of every other's share and receives the sums back: about twice the tensor's size
        a process, however many there are.
        """
        if self.alone:
            return tensor
        if tensor.is_cuda:
            torch.cuda.empty_cache()  # the exchange takes memory beside torch's own
        flat = tensor.reshape(-1)
        total = torch.cat([self._sum_block(block) for block in flat.split(_BLOCK)]).view(tensor.shape)
        self._seen.clear()  # the pulse may have waited for the exchange
        return total

    def save(self, table: Any, path: str | Path, overwrite: bool = False) -> None:
        """Write a table once, by rank 0; its checkpoints go when it is on disk, every process's own.

        Raises:
            CulnigError: it cannot be written: on rank 0 why, on the others that rank 0 failed.
        """
        if self.rank == 0:
            table.save(path, overwrite)
        self.gather("saved", True)
        if self.rank != 0:
            table.discard_checkpoint()

    def fail(self, text: str) -> None:
        """Tell the others that this process gives up."""
        if self.store is not None:
            with contextlib.suppress(Exception):  # the store may be what failed
                self.store.set(f"failed/{self.rank}", text)

    def beat(self, count: int) -> None:
        """A sign of life."""
        self.store.set(f"alive/{self.rank}", str(count))

    def _sum_block(self, block: torch.Tensor) -> torch.Tensor:
        share = -(-len(block) // self.size)
        padded = block.new_zeros(share * self.size)
        padded[: len(block)] = block
        parts = torch.empty_like(padded)
        dist.all_to_all_single(parts, padded)
        own = parts[:share].clone()
        for rank in range(1, self.size):
            own += parts[rank * share : (rank + 1) * share]
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own)
        return torch.cat(gathered)[: len(block)]

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _read(self, key: str) -> str:
        with _lost_store():
            return self.store.get(key).decode() if self.store.check([key]) else ""

    def _silent(self) -> dict[int, float]:
        """Seconds since each other process's last new sign of life."""
        now, silent = time.monotonic(), {}
        for rank in self._others():
            value = self._read(f"alive/{rank}").encode()
            if rank not in self._seen or self._seen[rank][0] != value:
                self._seen[rank] = value, now
            silent[rank] = now - self._seen[rank][1]
        return silent


def rank_path(path: str | Path, world: World) -> Path:
    """Where this process keeps its progress.

    Raises:
        CulnigError: there is progress of a run on another number of processes.
    """
    path = Path(path)
    found = {1: path} if path.exists() else {}
    for other in sorted(path.parent.glob(f"{path.name}.rank*of*")):
        count = other.name.rpartition("of")[2]
        if count.isdigit():
            found[int(count)] = other
    own = world.size if world.independent else 1
    for processes, other in found.items():
        if processes != own:
            raise CulnigError(
                f"{other} is the progress of a run on {processes} processes, and this one has {own}; "
                f"start {processes} again, or delete it"
            )
    return path if own == 1 else path.with_name(f"{path.name}.rank{world.rank}of{world.size}")


@contextlib.contextmanager
def _lost_store() -> Iterator[None]:
    """Rank 0, or torchrun, holds the store; when it cannot be reached, that process is gone."""
    try:
        yield
    except CulnigError:
        raise
    except RuntimeError as error:
        raise RankError(
            "the process that the job was started by, or rank 0, is gone; start the same job again: it continues"
        ) from error
