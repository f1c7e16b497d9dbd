"""The tensors of a checkpoint's safetensors files, each read when asked for and never mapped.

A mapped page counts as resident once touched, for as long as the map lives. Reading into memory of our own keeps the
resident set at what is in use; the operating system's page cache, which is given up when memory is short, keeps the
rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 23


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, first byte there, dtype and shape."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize if self.dtype in _DTYPES else 0


class Shards:
    """All tensors of a checkpoint folder by name.

    Args:
        folder: holds `model.safetensors`, or shards and their index.

    Raises:
        CulnigError: there are no such files, or one is missing, cut off or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        listed = _listed(self.folder)
        for path in dict.fromkeys(listed.values()) or [self.folder / SINGLE]:
            self.entries |= _entries(path)
        lacking = [name for name in listed if name not in self.entries]
        if lacking:
            raise CulnigError(
                f"{self.folder / INDEX} names {lacking[0]}, which no shard holds; fetch the checkpoint anew"
            )

    def read_into(self, name: str, tensor: torch.Tensor) -> None:
        """Fill a contiguous CPU tensor of the stored shape; another dtype is converted to.

        Raises:
            CulnigError: what is stored is no plain float, or its file cannot be read.
        """
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise CulnigError(
                f"{name} in {entry.path} is stored as {entry.dtype}; quantised checkpoints cannot be streamed, "
                "load the model whole or use an unquantised checkpoint"
            )
        stored = (
            tensor if tensor.dtype == _DTYPES[entry.dtype] else torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        )
        if entry.nbytes:
            _read_into(entry, stored.view(-1).view(torch.uint8).numpy().data)
        if stored is not tensor:
            tensor.copy_(stored)

    def warm(self, names: list[str]) -> None:
        """Bring tensors from disk into the page cache, through a small buffer."""
        buffer = memoryview(bytearray(_CHUNK))
        for name in names:
            entry = self.entries[name]
            with entry.path.open("rb", buffering=0) as file:
                for start in range(0, entry.nbytes, _CHUNK):
                    os.preadv(file.fileno(), [buffer[: min(_CHUNK, entry.nbytes - start)]], entry.offset + start)

    def fingerprint(self, names: list[str]) -> str:
        """A digest of the named tensors' places, shapes and first bytes: tells checkpoints apart at little cost."""
        digest = hashlib.sha256()
        for name in sorted(names):
            entry = self.entries[name]
            digest.update(f"{name} {entry.path.name} {entry.offset} {entry.dtype} {entry.shape}\n".encode())
            with entry.path.open("rb") as file:
                file.seek(entry.offset)
                digest.update(file.read(min(4096, entry.nbytes)))
        return digest.hexdigest()


def _read_into(entry: Entry, view: memoryview) -> None:
    """Fill `view` from the entry's bytes."""
    done = 0
    try:
        with entry.path.open("rb", buffering=0) as file:
            while done < len(view):
                count = os.preadv(file.fileno(), [view[done : done + (1 << 28)]], entry.offset + done)
                if count <= 0:
                    raise CulnigError(f"{entry.path} ends early; fetch the checkpoint anew")
                done += count
    except OSError as error:
        raise CulnigError(f"cannot read {entry.path}: {error.strerror}; is the checkpoint still there?") from error


def _listed(folder: Path) -> dict[str, Path]:
    """Tensor name → shard, of a checkpoint in several files; empty for one in a single file."""
    if (folder / SINGLE).is_file():
        return {}
    if not (folder / INDEX).is_file():
        raise CulnigError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; streaming reads safetensors checkpoints only, "
            "save the model anew with save_pretrained"
        )
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CulnigError(f"{folder / INDEX} has no weight_map; fetch the checkpoint anew")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CulnigError(f"{folder / INDEX} places {name} in {file!r}, which is no file of the folder")
    return {name: folder / file for name, file in weight_map.items()}


def _entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file, whose header the library has checked against its size."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, SafetensorError, ValueError) as error:
        raise CulnigError(f"cannot read {path} ({error}); is it a whole safetensors file?") from error
    return {
        name: Entry(path, 8 + size + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
        if name in names
    }
