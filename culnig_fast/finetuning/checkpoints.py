"""Checkpoints of a training, each continued by the same training alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import json_digest, read_json, write_json
from culnig_fast.finetuning.data import TrainingSet
from culnig_fast.finetuning.options import TrainingOptions
from culnig_fast.probing.layer import lies_under
from culnig_fast.running.fingerprint import fingerprint

_FACTS = "training.json"


def training_facts(
    model: Any, data: TrainingSet, names: Sequence[str], options: TrainingOptions, seed: int
) -> dict[str, str]:
    """What makes two trainings the same one, a digest each by name.

    Of the model that is all that the training leaves alone: what it changes comes out of the checkpoint.
    """
    of_model = dict(fingerprint(model))
    changed = names if options.lora is None else ()
    of_model["weights"] = {
        name: sums
        for name, sums in of_model["weights"].items()
        if not any(lies_under(name, module) for module in changed)
    }
    facts = {
        "modules": sorted(names),
        "options": options.inputs(),
        "seed": seed,
        "data": [data.token_ids, data.answers],
        "model": of_model,
    }
    return {name: json_digest(value) for name, value in facts.items()}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the state is its last file."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def claim(folder: Path, facts: dict[str, str]) -> Path | None:
    """Note in the folder whose checkpoints it holds from now on; the one to continue from, None where there is none.

    Raises:
        CulnigError: the checkpoint that it holds is another training's; names what differs.
    """
    newest, noted = last_checkpoint(folder), folder / _FACTS
    if newest is not None:
        there = read_json(noted) if noted.exists() else None
        if not isinstance(there, dict):
            raise CulnigError(
                f"{newest} does not say of which training it is ({_FACTS} is missing beside it); delete it or choose "
                "another folder"
            )
        if different := sorted(name for name in {*there, *facts} if there.get(name) != facts.get(name)):
            raise CulnigError(
                f"{newest} is the checkpoint of another training (different: {', '.join(different)}); finish that "
                "training, delete its folder, or choose another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(noted, facts, overwrite=True)
    return newest


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished training would be continued from, and the note of whose it was."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / _FACTS).unlink(missing_ok=True)
