"""Which tensor of the checkpoint each of a model's parameters is.

Checkpoints name the same tensor with and without the wrappers around it (`model.layers.0…`,
`language_model.model.layers.0…`, `model.language_model.layers.0…`), by which library version wrote them. Names are
taken as they are where they fit, else compared without the wrappers' own; a match must be the only one and of the same
shape. Whatever the library would compute, rather than rename, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.streaming.shards import Shards

_WRAPPERS = frozenset({"model", "language_model", "text_model", "transformer", "base_model"})


def match_names(model: Any, parameters: Mapping[str, tuple[int, ...]], shards: Shards) -> dict[str, str]:
    """Parameter name → tensor name.

    Args:
        model: the skeleton whose parameters they are.
        parameters: name → shape of those that are needed; a tied one by the name of the tensor that it is tied to.
        shards: the checkpoint.

    Raises:
        CulnigError: the checkpoint has no such tensor, several, one of another shape, or one that the library
            converts when it loads it.
    """
    by_core: dict[str, list[str]] = {}
    for name in shards.entries:
        by_core.setdefault(_core(name), []).append(name)
    found: dict[str, str] = {}
    for parameter, shape in parameters.items():
        names = [parameter] if parameter in shards.entries else by_core.get(_core(parameter), [])
        if len(names) != 1:
            problem = f"holds {' and '.join(names)}, either of which may be" if names else "has no tensor for"
            raise CulnigError(
                f"the checkpoint {shards.folder} {problem} {parameter} of {type(model).__name__}; "
                "load the model whole and save it anew with save_pretrained, then stream that"
            )
        if shards.entries[names[0]].shape != shape:
            raise CulnigError(
                f"{names[0]} in {shards.folder} is {list(shards.entries[names[0]].shape)}, but {parameter} of "
                f"{type(model).__name__} is {list(shape)}; do configuration and weights belong together?"
            )
        found[parameter] = names[0]
    _refuse_converted(model, list(found.values()), shards)
    return found


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _refuse_converted(model: Any, names: Sequence[str], shards: Shards) -> None:
    """Raise CulnigError when transformers would merge, split or permute one of the tensors on loading."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # before version 5 it only renamed
        return
    for conversion in get_model_conversion_mapping(model):
        if not getattr(conversion, "operations", None):
            continue
        for name in names:
            if conversion.rename_source_key(name)[1] is not None:
                raise CulnigError(
                    f"{name} in {shards.folder} is converted when transformers loads it, which streaming cannot do; "
                    "load the model whole, or save it anew in the library's own layout"
                )
