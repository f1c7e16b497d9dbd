"""Which tensors of the checkpoint each of a model's parameters is made of.

Checkpoints name the same tensor with and without the wrappers around it (`model.layers.0…`,
`language_model.model.layers.0…`, `model.language_model.layers.0…`), by which library version wrote them. Names are
taken as they are where they fit, else compared without the wrappers' own, else as the library's own table of
conversions has them (`pieces`); a match must be the only one and of the same shape. Whatever the library would compute,
rather than rename or join, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.streaming.pieces import Piece, Stored, is_converted, joined, library_sources
from culnig_fast.streaming.shards import Shards

_WRAPPERS = frozenset({"model", "language_model", "text_model", "transformer", "base_model"})


def match_names(model: Any, parameters: Mapping[str, tuple[int, ...]], shards: Shards) -> dict[str, Stored]:
    """Parameter name → its pieces in the checkpoint.

    Args:
        model: the skeleton whose parameters they are.
        parameters: name → shape of those that are needed; a tied one by the name of the tensor that it is tied to.
        shards: the checkpoint.

    Raises:
        CulnigError: the checkpoint has no such tensor, several, one of another shape, or one that the library
            converts when it loads it.
    """
    by_core = _by_core(shards.entries)
    sources = library_sources(model, list(shards.entries))
    converted = _by_core(sources)
    found: dict[str, Stored] = {}
    for parameter, shape in parameters.items():
        names = [parameter] if parameter in shards.entries else by_core.get(_core(parameter), [])
        made = [parameter] if parameter in sources else converted.get(_core(parameter), [])
        if not names and len(made) == 1:
            found[parameter] = joined(sources[made[0]], shape, parameter, shards)
        elif len(names) == 1:
            found[parameter] = (Piece(names[0]),)
            if is_converted(model, names[0]):
                raise CulnigError(
                    f"{names[0]} in {shards.folder} is converted when transformers loads it, which streaming cannot "
                    "do; load the model whole, or save it anew in the library's own layout"
                )
        else:
            problem = f"holds {' and '.join(names)}, either of which may be" if names else "has no tensor for"
            raise CulnigError(
                f"the checkpoint {shards.folder} {problem} {parameter} of {type(model).__name__}; "
                "load the model whole and save it anew with save_pretrained, then stream that"
            )
        first = found[parameter][0]
        if not first.ranges and shards.entries[first.tensor].shape != shape:
            raise CulnigError(
                f"{first.tensor} in {shards.folder} is {list(shards.entries[first.tensor].shape)}, but {parameter} of "
                f"{type(model).__name__} is {list(shape)}; do configuration and weights belong together?"
            )
    return found


def match_buffers(model: Any, buffers: Mapping[str, tuple[int, ...]], shards: Shards) -> dict[str, Stored]:
    """As `match_names`, of the buffers that the checkpoint holds; the others are what the constructor made them."""
    held = {**_by_core(shards.entries), **_by_core(library_sources(model, list(shards.entries)))}
    return match_names(model, {name: shape for name, shape in buffers.items() if _core(name) in held}, shards)


def _by_core(names: Any) -> dict[str, list[str]]:
    cores: dict[str, list[str]] = {}
    for name in names:
        cores.setdefault(_core(name), []).append(name)
    return cores


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
