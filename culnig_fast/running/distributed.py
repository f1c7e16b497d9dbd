"""Joins the processes that torchrun started, and tells each its card."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Iterator

import torch
from torch import distributed as dist

from culnig_fast.errors import CulnigError, Interrupted
from culnig_fast.running.world import PULSE_SECONDS, RankError, World


@contextlib.contextmanager
def joined(backend: str | None = None) -> Iterator[World]:
    """The job's processes, as torchrun's variables name them; one process where there are none.

    Args:
        backend: of torch.distributed; None is gloo, and NCCL for tensors on a GPU.

    Raises:
        CulnigError: the variables are incomplete, or the processes do not find each other.
    """
    size = _variable("WORLD_SIZE", 1)
    if size == 1:
        yield World()
        return
    rank = _variable("RANK")
    if (card := local_device()) is not None:
        torch.cuda.set_device(torch.device(card))
        backend = backend or "cpu:gloo,cuda:nccl"
    limit = datetime.timedelta(minutes=10)
    try:
        found, rank, size = next(iter(dist.rendezvous("env://", timeout=limit)))
        world = World(rank, size, dist.PrefixStore("culnig_fast", found))
        world.beat(0)
        dist.init_process_group(
            backend or "gloo", store=dist.PrefixStore("group", found), rank=rank, world_size=size, timeout=limit
        )
    except (RuntimeError, ValueError, StopIteration) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CulnigError(
            f"rank {rank} of {size} cannot join the others ({reason[0][:200]}); "
            "start all of them with torchrun, and check MASTER_ADDR and MASTER_PORT"
        ) from error
    over = threading.Event()
    pulse = threading.Thread(target=_beat, args=(world, over), daemon=True)
    pulse.start()
    try:
        yield world
    except RankError:
        if rank == 0:  # it may hold the store, in which the others have yet to read why
            time.sleep(4 * PULSE_SECONDS)
        raise
    except BaseException as error:
        world.fail(_reason(error))
        raise
    finally:
        over.set()
        pulse.join(2 * PULSE_SECONDS)
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def local_device() -> str | None:
    """The card of this process, by torchrun's LOCAL_RANK; None outside such a job or without a GPU."""
    if _variable("WORLD_SIZE", 1) == 1 or not torch.cuda.is_available():
        return None
    local = _variable("LOCAL_RANK", _variable("RANK"))
    return f"cuda:{local % torch.cuda.device_count()}"


def _beat(world: World, over: threading.Event) -> None:
    count = 0
    while not over.wait(PULSE_SECONDS):
        count += 1
        try:
            world.beat(count)
        except RuntimeError:  # the store is gone, and with it its process; `check` says so
            return


def _variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, None if default is None else str(default))
    if text is None or not text.isdigit():
        raise CulnigError(f"WORLD_SIZE is set but {name} is {text!r}; start the processes with torchrun, or unset both")
    return int(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, Interrupted):
        return f"it was stopped by signal {error.number}"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:500]
