"""Files written whole or not at all, and JSON read with one clear sentence when it is broken."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError

_PART = ".part"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON escapes one half of a surrogate pair, or both halves."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How errors of safetensors and tokenizers end that were the system's."""

_PLAIN = frozenset(" _-.,'()&+")
_LONGEST_NAME = 150

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}
"""What file systems without hard links answer."""


@contextlib.contextmanager
def atomic_write(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends without an error.

    A killed process or a full disk leaves `path` as it was. The data is flushed to disk before the rename, so a
    power cut cannot leave an empty file under the final name either. A link is replaced and not followed: it may lead
    to a file that nobody named.

    Raises:
        CulnigError: `path` exists and `overwrite` is false, its folder is missing or cannot be written, or the
            disk fills up.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    with _temporary(path) as temporary:
        try:
            yield temporary
            _flush(temporary)
            # mkstemp creates files that only their owner reads; the result has what the umask grants any other file.
            temporary.chmod(0o666 & ~_umask())
            refuse_existing(path, overwrite)
            if overwrite:
                temporary.replace(path)
            else:
                _put_new(temporary, path)
        except Exception as error:
            _say_not_written(path, error)
            raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, renamed to it when the block ends without an error.

    Raises:
        CulnigError: `path` exists, it cannot be written, or the disk fills up.
    """
    path = Path(path)
    refuse_existing(path, overwrite=False)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_PART, dir=path.parent))
    except OSError as error:
        raise CulnigError(
            f"cannot write {path}: {error.strerror} in folder {path.parent}; create it or choose another output path"
        ) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        refuse_existing(path, overwrite=False)
        _put_new_folder(temporary, path)
    except Exception as error:
        _say_not_written(path, error)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _say_not_written(path: Path, error: Exception) -> None:
    """Raise CulnigError when the error is the system's; libraries in Rust have their own classes for those."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif isinstance(error, CulnigError) or (found := _OS_ERROR.search(str(error))) is None:
        return
    else:
        reason = os.strerror(int(found[1]))
    raise CulnigError(f"cannot write {path}: {reason}; free some space or choose another output path") from error


def file_name(text: str) -> str:
    """A name out of data (a country, a group) as one part of a path: unlike texts give unlike names.

    Letters of any script, digits, spaces and the usual punctuation stay; what could lead to another folder or that some
    system refuses (slashes, NUL, a leading dot, …) is written as %hex. A name too long for a file system is cut and
    ends in its hash.
    """
    plain = (c if (c.isalnum() and c.isprintable()) or c in _PLAIN else f"%{ord(c):02X}" for c in text)
    name = "".join(plain)
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if not name:
        return "%"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return _cut(name, text.encode(errors="surrogatepass"))


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Raise CulnigError when `path` exists and may not be replaced; called before long work, not only after it.

    A folder is never replaced.
    """
    if "\0" in str(path):
        raise CulnigError(f"the output path {str(path)!r} holds a NUL character; choose another")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)
    if os.path.isdir(path) and not os.path.islink(path):
        raise CulnigError(f"{path} is a folder, which no file replaces; choose another output path")


def check_output(path: str | Path, overwrite: bool) -> None:
    """Raise CulnigError when no file can be put at `path`, as it exists or its folder is missing; before long work."""
    refuse_existing(path, overwrite)
    check_writable(path)


def check_writable(path: str | Path) -> None:
    """Raise CulnigError when no file can be made in the folder of `path`; called before long work."""
    with _temporary(Path(path)):
        pass


def remove_leftovers(path: str | Path, older_than: float = 0.0) -> None:
    """Remove what killed writers of `path` left beside it, untouched for `older_than` seconds: none is at work then."""
    path, now = Path(path), time.time()
    for leftover in path.parent.glob(f"{glob.escape(_prefix(path))}*{_PART}"):
        with contextlib.suppress(OSError):
            if now - leftover.stat().st_mtime >= older_than:
                leftover.unlink()


def write_text(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, overwrite: bool = False) -> None:
    """Write `value` as indented JSON with a final newline, atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", overwrite)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        CulnigError: the file is missing, unreadable, not UTF-8 or not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CulnigError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise CulnigError(f"{path} is not a JSON file ({error}); was it cut off or is it another format?") from error
    return parse_json(text, f"{path} is not a JSON file", "was it cut off or is it another format?")


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def parse_json(text: str, problem: str, remedy: str = "was it altered?", **options: Any) -> Any:
    """A JSON text's value.

    Args:
        text: the text.
        problem: how a message begins, e.g. `x.json is not a JSON file`.
        remedy: how it ends.
        options: of `json.loads`.

    Raises:
        CulnigError: it is not JSON (NaN and Infinity are not), is nested too deep, holds a number of thousands of
            digits, or half a surrogate pair, which no file and no terminal takes.
    """
    try:
        value = json.loads(text, **{"parse_constant": _no_number, **options})
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "half a surrogate pair" if isinstance(error, UnicodeEncodeError) else str(error)
        raise CulnigError(f"{problem} ({reason:.200}); {remedy}") from error
    return value


def json_text(value: Any, what: str) -> str:
    """A value as JSON with sorted keys; CulnigError, which begins with `what`, for one that JSON cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
        text.encode()
    except (TypeError, ValueError) as error:
        raise CulnigError(f"{what} cannot be written as JSON ({error}); use texts, finite numbers and lists") from error
    return text


def json_digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold, whatever the order of its keys; what files carry as `content`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, gone after the block unless it was renamed; CulnigError when it cannot be made."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # refuses a name that is too long, which the temporary one is not
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_PART, dir=path.parent)
    except OSError as error:
        raise CulnigError(
            f"cannot write {path}: {error.strerror} in folder {path.parent}; create it or choose another output path"
        ) from error
    os.close(handle)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)


def _put_new(temporary: Path, path: Path) -> None:
    """Give the file its name unless that is taken, also by another process this very moment."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        refuse_existing(path, overwrite=False)
        temporary.replace(path)


def _put_new_folder(temporary: Path, path: Path) -> None:
    """The same for a folder, which takes the place of an empty one at most."""
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _exists(path) from error
        raise


def _exists(path: str | Path) -> CulnigError:
    return CulnigError(
        f"{path} exists already; choose another output path, or have it replaced where that can be asked for "
        "(--overwrite, in Python overwrite=True)"
    )


def _prefix(path: Path) -> str:
    """How the temporary names for a path begin; short enough for a file system where the path's own name is."""
    name = path.name
    return f".{name}." if len(os.fsencode(name)) <= _LONGEST_NAME else f".{_cut(name, os.fsencode(name))}."


def _cut(name: str, hashed: bytes) -> str:
    """A name that is too long, cut, with a hash at its end."""
    kept = name.encode(errors="ignore")[: _LONGEST_NAME - 17].decode(errors="ignore")
    return f"{kept}%{hashlib.sha256(hashed).hexdigest()[:16]}"


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
