"""safetensors files that are the same bytes for the same content, and memory-mapped on reading.

The library's writer orders the metadata at random, so two equal tables would be different files. Ours writes the same
format with sorted keys, tensor by tensor; the library's reader checks every file that is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from culnig_fast.errors import CulnigError
from culnig_fast.files import atomic_write

_CODES = {np.dtype("<f8"): "F64", np.dtype("<i8"): "I64"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def save_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], overwrite: bool = False
) -> None:
    """Write float64 and int64 arrays, atomically.

    Raises:
        CulnigError: the file exists and `overwrite` is false, or it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, array in sorted(tensors.items()):
        code = _CODES[array.dtype.newbyteorder("<")]
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path, overwrite) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, array in sorted(tensors.items()):
            file.write(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file, whose header the library has checked against its size.

    Raises:
        CulnigError: the file is missing, cut off, or not safetensors.
    """
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CulnigError(f"cannot read {path} ({error}); is it a whole safetensors file?") from error


def map_tensor(path: str | Path, name: str) -> np.ndarray:
    """One array of a checked file, read-only and read from disk as it is used.

    Raises:
        CulnigError: the file has no such tensor, or one of another type.
    """
    with Path(path).open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes)).get(name)
    if entry is None or entry["dtype"] not in _DTYPES:
        found = "no tensor" if entry is None else entry["dtype"]
        raise CulnigError(f"{name}: {found} where float64 or int64 was expected")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=8 + header_bytes + entry["data_offsets"][0], shape=shape)
