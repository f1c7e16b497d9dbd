"""safetensors files that are the same bytes for the same content, and memory-mapped on reading.

The library's writer orders the metadata at random, so two equal tables would be different files. Ours writes the same
format with sorted keys, tensor by tensor; the library's reader checks every file that is read. The metadata holds a
SHA-256 of everything else in the file, so that a bit that flipped on a disk or on a wire is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from culnig_fast.errors import CulnigError
from culnig_fast.files import atomic_write, parse_json

CONTENT = "content"
"""Metadata key of the hash; files written before there was one lack it, and load unverified."""

_CODES = {np.dtype("<f8"): "F64", np.dtype("<i8"): "I64"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_CHUNK = 1 << 24
_HASH = re.compile("sha256:[0-9a-f]{64}")


def save_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], overwrite: bool = False
) -> None:
    """Write float64 and int64 arrays, atomically.

    Raises:
        CulnigError: the file exists and `overwrite` is false, or it cannot be written.
    """
    arrays = {name: _little_endian(tensors[name]) for name in sorted(tensors)}
    metadata = {key: value for key, value in metadata.items() if key != CONTENT}
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    content = _digest(header, (array.data for array in arrays.values() if array.size))
    header["__metadata__"] = dict(sorted({**metadata, CONTENT: content}.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path, overwrite) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays.values():
            file.write(array.data)


def read_metadata(path: str | Path, *, verify: bool = True) -> dict[str, str]:
    """The metadata of a file, whose header the library has checked against its size.

    Args:
        path: a file of `save_tensors`.
        verify: read it whole and hold it against its hash, where it has one: half a second for 500 MB, and the
            pages stay cached for what is read next. False reads the header alone.

    Raises:
        CulnigError: the file is missing, cut off, not safetensors, or its content is not what was written.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
        # By the value too: a file whose key `content` was altered must not pass for one without a hash.
        hashed = CONTENT in metadata or any(_HASH.fullmatch(value) for value in metadata.values())
        if verify and hashed and _file_digest(path) != metadata.get(CONTENT):
            raise CulnigError(
                f"{path} was altered after it was written (its content hash differs); restore it or make it anew"
            )
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CulnigError):
            raise
        raise CulnigError(f"cannot read {path} ({error}); is it a whole safetensors file?") from error
    return metadata


def read_texts(metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    """A list of texts that the metadata holds as JSON; CulnigError when it is something else."""
    value = read_value(metadata, name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CulnigError(f"its {name} are no list of texts")
    return tuple(value)


def read_value(metadata: Mapping[str, str], name: str) -> Any:
    """A value that the metadata holds as JSON; CulnigError when it is missing or no JSON."""
    if name not in metadata:
        raise CulnigError(f"it lacks {name}")
    return parse_json(metadata[name], f"its {name} cannot be read")


def read_facts(metadata: Mapping[str, str], name: str = "metadata") -> dict[str, Any]:
    """A mapping that the metadata holds as JSON; CulnigError when it is something else."""
    value = read_value(metadata, name)
    if not isinstance(value, dict):
        raise CulnigError(f"its {name} is no object")
    return value


def map_tensor(path: str | Path, name: str, dtype: Any = None) -> np.ndarray:
    """One array of a checked file, read-only and read from disk as it is used.

    Args:
        path: the file.
        name: of the tensor.
        dtype: what it must be, float64 or int64; None takes either.

    Raises:
        CulnigError: the file has no such tensor, or one of another type.
    """
    header, start = _header(path)
    entry = header.get(name)
    found = None if entry is None else _DTYPES.get(entry["dtype"])
    if entry is None or found is None or dtype not in (None, found):
        what = "no tensor" if entry is None else entry["dtype"]
        wanted = "float64 or int64" if dtype is None else np.dtype(dtype).name
        raise CulnigError(f"{name}: {what} where {wanted} was expected")
    shape = tuple(entry["shape"])
    if 0 in shape:
        return np.zeros(shape, found)
    return np.memmap(path, found, mode="r", offset=start + entry["data_offsets"][0], shape=shape)


def _little_endian(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def _header(path: str | Path) -> tuple[dict[str, Any], int]:
    """The header of a checked file, and where its tensors begin."""
    with Path(path).open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(header_bytes)), 8 + header_bytes


def _file_digest(path: str | Path) -> str:
    header, start = _header(path)
    header["__metadata__"].pop(CONTENT, None)
    with Path(path).open("rb") as file:
        file.seek(start)
        return _digest(header, iter(lambda: file.read(_CHUNK), b""))


def _digest(header: Mapping[str, Any], data: Iterable[bytes | memoryview]) -> str:
    """Hash of header facts and tensor bytes; the header without the hash itself."""
    hasher = hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode())
    for part in data:
        hasher.update(part)
    return f"sha256:{hasher.hexdigest()}"
