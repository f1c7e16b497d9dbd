"""Does a run: what is done is skipped, what changed is done again, what was interrupted is continued."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from culnig_fast.errors import CulnigError
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.digests import digest
from culnig_fast.pipeline.manifest import Manifest, locked, sweep
from culnig_fast.pipeline.stages import Stage, inputs_of, plan
from culnig_fast.pipeline.workbench import Workbench

LOG = "log.jsonl"
"""When each stage was done and how long it took; the one file of a run that another run of it does not repeat."""


@dataclass(frozen=True)
class Step:
    """What becomes of a stage: skipped when `why` is None, else done for that reason."""

    stage: Stage
    why: str | None


def run(config: RunConfig, *, compare: bool = False, progress: bool = True) -> list[Step]:
    """Do every stage of a run that is not done with the same inputs already.

    Killed at any moment and started again, it leaves the same bytes as a run that nobody disturbed, in every file but
    `log.jsonl`: outputs appear whole or not at all, each is noted in the manifest after it was written, and scoring
    continues from its checkpoint.

    Args:
        config: what to do.
        compare: also put the published figures beside the run's.
        progress: show progress bars on standard error.

    Returns:
        every stage with what became of it, in order.

    Raises:
        CulnigError: what any stage raises; or another process works in the folder, or it holds something else.
    """
    bench = Workbench(config, progress=progress)
    with locked(config.out):
        manifest = Manifest(config.out)
        sweep(config.out)
        manifest.begin()
        stages = _checked_plan(bench, compare)
        steps = []
        bar = tqdm(stages, unit="stage", disable=not progress)
        for stage in bar:
            bar.set_description(stage.name)
            inputs = inputs_of(stage, manifest)
            why = manifest.why(stage.name, inputs)
            steps.append(Step(stage, why))
            if why is not None:
                _do(stage, inputs, why, manifest)
        return steps


def outlook(bench: Workbench, *, compare: bool = False) -> Iterator[Step]:
    """What `run` would do, without doing or writing anything."""
    manifest = Manifest(bench.config.out)
    pending: set[str] = set()
    for stage in _checked_plan(bench, compare):
        waiting = [name for name in stage.needs if name in pending]
        why = f"after {waiting[0]}" if waiting else manifest.why(stage.name, inputs_of(stage, manifest))
        if why is not None:
            pending.add(stage.name)
        yield Step(stage, why)


def seconds_spent(folder: Path) -> float:
    """What all stages of a run took, by its log; a stage that was repeated counts each time."""
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    return float(sum(json.loads(line)["seconds"] for line in lines))


def _checked_plan(bench: Workbench, compare: bool) -> list[Stage]:
    """The plan, after everything that can be checked without the model was."""
    stages = plan(bench, compare)
    for stage in stages:
        if stage.size is not None and not bench.questions(*stage.size):
            raise CulnigError(f"{stage.name} has no questions")
        if stage.kind == "published":
            stage.inputs()
    return stages


def _do(stage: Stage, inputs: dict[str, str], why: str, manifest: Manifest) -> None:
    folder = manifest.folder
    partial = _partial(folder, stage.name, inputs)
    for path in stage.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    stage.make(partial)
    manifest.note(stage.name, inputs, list(stage.outputs))
    entry = {
        "stage": stage.name,
        "why": why,
        "seconds": round(time.perf_counter() - start, 3),
        "ended": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _partial(folder: Path, name: str, inputs: dict[str, Any]) -> Path:
    """Where a stage keeps unfinished work of these inputs; that of other inputs is of no use and is removed."""
    stem = f".{name.replace('/', '-')}."
    partial = folder / f"{stem}{digest(inputs)}.partial"
    for path in folder.glob(f"{stem}*.partial"):
        if path != partial:
            path.unlink()
    return partial
