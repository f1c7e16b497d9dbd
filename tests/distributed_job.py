"""One process of a job, started by test_distributed.py with torchrun's variables set: what it sees, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import families
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.running import loop
from culnig_fast.running.distributed import joined
from culnig_fast.running.world import RankError, World

OPTIONS: dict[str, Any] = {"batch_tokens": 30, "progress": False, "path": "taps"}


def sums(world: World) -> list[float]:
    """A sum that every process must get alike, to the bit."""
    values = torch.tensor([[1e16, 1.0, 3.0, 0.1 * world.rank], [-1e16, 1.0, 1.0, 7.0]][world.rank % 2]).double()
    return list(world.sum(values).tolist())


def stopped_and_continued(world: World, folder: Path) -> tuple[int, Any]:
    """Stop every process before its fifth batch; how many batches the second attempt then scores, and its table."""
    model, questions = families.build("llama"), make_questions(60)
    path, original, calls = folder / "run.partial", loop._score_batch, [0]

    def score(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return original(*args)

    loop._score_batch = score
    try:
        cf.attribute(model, make_tokenizer(), questions, checkpoint=path, checkpoint_seconds=0, world=world, **OPTIONS)
    except KeyboardInterrupt:
        calls[0] = 5
    table = cf.attribute(model, make_tokenizer(), questions, checkpoint=path, world=world, **OPTIONS)
    return calls[0] - 5, table


def main() -> None:
    """Do everything in one job: starting the processes is what takes time."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    report: dict[str, Any] = {}
    try:
        with joined() as world:
            report["sums"] = sums(world)
            report["batches"], table = stopped_and_continued(world, folder)
            world.save(table, folder / "table.safetensors")
            report["digest"] = [float(table.totals.sum()), float(table.probability.sum())]
            report["left"] = sorted(path.name for path in folder.glob("*.partial*"))
            try:
                world.same("model", world.rank)
            except cf.CulnigError as error:
                report["same"] = str(error)
            if world.rank == 1:
                raise cf.CulnigError("its disk is full")
            world.gather("never", None)
    except RankError as error:
        report["other"] = str(error)
    except cf.CulnigError as error:
        report["own"] = str(error)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
