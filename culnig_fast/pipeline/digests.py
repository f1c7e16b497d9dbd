"""Content hashes: of files, of checkpoints, and of the code that a stage runs."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError

_MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".py")
_CHUNK = 1 << 22


def digest(value: Any) -> str:
    """Of a JSON-ready value, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Of a file's bytes, 16 hex digits; CulnigError when it cannot be read."""
    hasher = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise CulnigError(f"cannot read {path}: {error.strerror}; check the path") from error
    return hasher.hexdigest()[:16]


def model_digest(folder: str | Path) -> str:
    """Of every weight, configuration and tokenizer file of a checkpoint folder.

    Read whole: a weight file that was replaced by one of the same size is another model. 24 GB take well under a
    minute where the disk keeps up, which is nothing beside what is spared by knowing.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in _MODEL_FILES and path.is_file())
    if not files:
        raise CulnigError(f"{folder} holds no checkpoint files; give a whole safetensors checkpoint")
    return digest([[path.name, file_digest(path)] for path in files])


@functools.cache
def code_digest(*modules: str) -> str:
    """Of the source of these modules of ours and of everything of ours that they import, at any depth.

    A stage whose code changed is done again without anybody having to raise a version number.
    """
    return digest([[name, file_digest(path)] for name, path in sorted(code_files(*modules).items())])


def code_files(*modules: str) -> dict[str, Path]:
    """Source file of each module that `code_digest` covers."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name.split(".")[0] == "culnig_kernels":  # which kernel runs is decided by name and device, not by import
            found |= _all_kernels()
            continue
        path = _source(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting += _imports(path)
    return found


def _source(name: str) -> Path | None:
    """Where a module's source is; None for a name that is no module of ours (e.g. a function of one)."""
    package, *parts = name.split(".")
    # The package's own __init__ only forwards names, lazily, to modules that are imported by their own names.
    if package != "culnig_fast" or not parts:
        return None
    root = Path(str(resources.files(package)))
    candidates = (root.joinpath(*parts).with_suffix(".py"), root.joinpath(*parts, "__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _all_kernels() -> dict[str, Path]:
    root = Path(str(resources.files("culnig_kernels")))
    return {f"culnig_kernels/{path.relative_to(root).as_posix()}": path for path in sorted(root.rglob("*.py"))}


def _imports(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
