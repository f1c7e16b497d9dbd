"""A run that takes seconds: the embedded model on a few of its questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.reading import load_config


def values(**changes: Any) -> dict[str, Any]:
    """A config as its file holds it."""
    return {
        "model": {"name": "demo", "device": "cpu"},
        "out": "out",
        "tasks": {
            "blend": {"data": "demo", "limit": 3},
            "country_rc": {"data": "demo", "limit": 2},
            "pick": {"data": "demo", "limit": 12},
        },
        "seeds": 2,
        "countries": ["Iran", "US"],
        "batch_tokens": 1024,
        "checkpoint_seconds": 0,
        "bootstrap": {"resamples": 200},
        "analyses": {"figures": False},
        **changes,
    }


def write(folder: Path, **changes: Any) -> Path:
    """The file."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values(**changes), sort_keys=False))
    return path


def config(folder: Path, **changes: Any) -> RunConfig:
    """The same, checked."""
    return load_config(write(folder, **changes))


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run but the log of times and the lock."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("log.jsonl", ".lock", "report.html")
    }
