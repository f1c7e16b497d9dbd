"""A parameter as the checkpoint holds it: one tensor, or the pieces that the library joins when it loads them.

Checkpoints of mixtures name each expert's projections; newer versions of the library hold them in one parameter
[experts, outputs, inputs]. What its own table of conversions says of a name is followed where it only renames, puts
tensors one behind the other, or both; whatever else it would compute is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.streaming.shards import Shards


@dataclass(frozen=True)
class Piece:
    """One tensor of the checkpoint and the range that it fills of each of the parameter's first dimensions."""

    tensor: str
    ranges: tuple[tuple[int, int], ...] = ()


Stored = tuple[Piece, ...]
"""The pieces of one parameter; one without ranges is the whole of it."""


def read_stored(shards: Shards, stored: Stored, parameter: torch.Tensor) -> None:
    """Fill a contiguous CPU tensor of the parameter's shape; raises as `Shards.read_into`."""
    for piece in stored:
        place = parameter[tuple(slice(*one) for one in piece.ranges)]
        shards.read_into(piece.tensor, place.view(shards.entries[piece.tensor].shape))


@dataclass
class Source:
    """What the library makes of the checkpoint's tensors for one name of its own.

    Attributes:
        conversion: the table's entry, None where it only renames.
        tensors: by the pattern of it that they fit, in the order in which the library takes them.
    """

    conversion: Any
    tensors: dict[str, list[str]] = field(default_factory=dict)


def library_sources(model: Any, names: Sequence[str]) -> dict[str, Source]:
    """The library's name → what it comes from, of a checkpoint's names; empty for versions that convert nothing."""
    conversions = _conversions(model)
    renaming = [entry for entry in conversions if not getattr(entry, "operations", None)]
    joining = [entry for entry in conversions if getattr(entry, "operations", None)]
    found: dict[str, Source] = {}
    for name in sorted(names, key=_in_order):
        target, pattern, conversion = name, "", None
        for entry in renaming:
            target, _ = entry.rename_source_key(target)
        for entry in joining:
            target, fits = entry.rename_source_key(target)
            if fits is not None:
                pattern, conversion = fits, entry
                break
        found.setdefault(target, Source(conversion)).tensors.setdefault(pattern, []).append(name)
    return found


def is_converted(model: Any, name: str) -> bool:
    """Whether the library computes something of this tensor on loading."""
    joining = (entry for entry in _conversions(model) if getattr(entry, "operations", None))
    return any(entry.rename_source_key(name)[1] is not None for entry in joining)


def joined(source: Source, shape: tuple[int, ...], parameter: str, shards: Shards) -> Stored:
    """The pieces of a parameter that the library would put together.

    Args:
        source: from `library_sources`.
        shape: of the parameter.
        parameter: its name, for messages.
        shards: the checkpoint.

    Raises:
        CulnigError: the library would compute something else, or tensors are missing or of another shape.
    """
    names = [name for each in source.tensors.values() for name in each]
    if source.conversion is None:
        if len(names) == 1:
            return (Piece(names[0]),)
        raise CulnigError(
            f"the checkpoint {shards.folder} holds {' and '.join(names[:3])}, either of which may be {parameter}"
        )
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in source.conversion.operations]
    if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        raise CulnigError(
            f"{names[0]} in {shards.folder} is converted when transformers loads it "
            f"({', '.join(name for name, _ in steps)}), which streaming cannot do; load the model whole, or save it "
            "anew in the library's own layout"
        )
    patterns = [pattern for pattern in source.conversion.source_patterns if pattern in source.tensors]
    pieces, start = [], 0
    for pattern in patterns:
        tensors = source.tensors[pattern]
        height = shards.entries[tensors[0]].shape[0] if shards.entries[tensors[0]].shape else 0
        wanted = (height, *shape[2:])
        wrong = next((name for name in tensors if shards.entries[name].shape != wanted), None)
        if len(tensors) != shape[0] or wrong is not None or len(shape) != 3:
            raise CulnigError(
                f"{parameter} is {list(shape)} and is made of {len(tensors)} tensors like {wrong or tensors[0]} "
                f"({list(shards.entries[wrong or tensors[0]].shape)}) in {shards.folder}; do configuration and weights "
                "belong together?"
            )
        pieces += [Piece(name, ((expert, expert + 1), (start, start + height))) for expert, name in enumerate(tensors)]
        start += height
    if start != shape[1] or len(patterns) != len(source.conversion.source_patterns):
        raise CulnigError(
            f"the checkpoint {shards.folder} fills {start} of the {shape[1]} rows of each expert of {parameter}; fetch "
            "it anew"
        )
    return tuple(pieces)


def tensor_names(stored: Sequence[Stored]) -> list[str]:
    """Names of all tensors of these parameters."""
    return [piece.tensor for one in stored for piece in one]


def _conversions(model: Any) -> Sequence[Any]:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before version 5 names were the model's own
        return ()
    found: Sequence[Any] = get_model_conversion_mapping(model)
    return found


def _in_order(name: str) -> list[tuple[int, int, str]]:
    """Numbers by size, so that expert 10 follows expert 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"\.", name)]
