"""What of a run is done, with what inputs: the file by which stages are skipped, repeated or continued."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json, write_json
from culnig_fast.pipeline.digests import file_digest

NAME = "manifest.json"
FORMAT = "culnig_fast.run/1"


class Manifest:
    """`manifest.json` of a run's folder: the digests of every finished stage's inputs and outputs.

    It holds no times and no paths outside the folder, so the same run leaves the same bytes. A process that is killed
    between writing an output and noting it does that output again, to the same bytes.

    Args:
        folder: of the run; made when it is missing.

    Raises:
        CulnigError: the folder holds something else than a run, or a manifest that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self.stages: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            value = read_json(self.path)
            if not isinstance(value, dict) or value.get("format") != FORMAT:
                raise CulnigError(f"{self.path} is not the manifest of a run ({FORMAT}); choose another folder")
            stages = value.get("stages")
            if not isinstance(stages, dict) or not all(map(_is_entry, stages.values())):
                raise CulnigError(f"{self.path} is a damaged manifest; delete it and the run's folder to start afresh")
            self.stages = stages
        elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise CulnigError(f"{folder} holds files but no {NAME}; choose an empty folder, or one of an earlier run")

    def begin(self) -> None:
        """Make the folder a run's: the file is there before any output is, whenever the process is killed."""
        if not self.path.exists():
            self._write()

    def why(self, stage: str, inputs: Mapping[str, str]) -> str | None:
        """None when the stage is done with these inputs and its outputs are whole, else a phrase that says why not."""
        entry = self.stages.get(stage)
        if entry is None:
            return "not done yet"
        changed = sorted(key for key in {*inputs, *entry["inputs"]} if inputs.get(key) != entry["inputs"].get(key))
        if changed:
            return f"{', '.join(changed)} changed"
        for name, known in entry["outputs"].items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is gone"
            if file_digest(path) != known:
                return f"{name} was altered"
        return None

    def note(self, stage: str, inputs: Mapping[str, str], outputs: list[Path]) -> None:
        """Write down that a stage is done; atomic."""
        names = {path.relative_to(self.folder).as_posix(): file_digest(path) for path in outputs}
        self.stages[stage] = {"inputs": dict(inputs), "outputs": names}
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"format": FORMAT, "stages": dict(sorted(self.stages.items()))}, overwrite=True)

    def output(self, stage: str) -> str:
        """One digest for all outputs of a finished stage."""
        return json.dumps(self.stages[stage]["outputs"], sort_keys=True)


def _is_entry(value: Any) -> bool:
    """Whether a stage's entry holds inputs, and outputs that lie in the run's folder."""
    if not isinstance(value, dict):
        return False
    parts = [value.get("inputs"), value.get("outputs")]
    if not all(isinstance(part, dict) and all(isinstance(v, str) for v in part.values()) for part in parts):
        return False
    return all(_inside(name) for name in value["outputs"])


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    fits = all(len(part.encode()) <= 255 for part in path.parts)  # no file system holds a longer name
    return bool(name) and fits and "\0" not in name and not path.is_absolute() and ".." not in path.parts


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process works in a run's folder; the lock of a killed one is gone with it.

    Raises:
        CulnigError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two runs in one folder are up to their user there
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise CulnigError(f"cannot write to {folder} ({error.strerror}); choose another folder as out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CulnigError(f"another run is at work in {folder}; wait for it, or choose another folder") from error
        yield


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a run's folder; call it under `locked` only."""
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)
