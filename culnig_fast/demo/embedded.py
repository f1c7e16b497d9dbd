"""The embedded model's files and tasks."""

from __future__ import annotations

from pathlib import Path

from culnig_fast.errors import CulnigError
from culnig_fast.models import embedded_folder

_FILES: dict[str, tuple[str, dict[str, str]]] = {
    "blend": ("blend.jsonl", {"topics": "questions.csv"}),
    "country_rc": ("country_rc.json", {}),
    "plain": ("abilities.jsonl", {}),
    "pick": ("abilities.jsonl", {}),
    "membership": ("abilities.jsonl", {}),
    "equality": ("abilities.jsonl", {}),
    "membership_long": ("membership_long.jsonl", {}),
}


def task_files(task: str) -> tuple[str, dict[str, str | Path]]:
    """(file, further files) of the embedded data for a task; CulnigError when there is none."""
    if task not in _FILES:
        raise CulnigError(f"the embedded data has no task {task!r}; it has {', '.join(_FILES)}")
    folder = embedded_folder("data")
    main, further = _FILES[task]
    return str(folder / main), {name: folder / file for name, file in further.items()}
