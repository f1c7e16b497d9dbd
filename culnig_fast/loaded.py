"""Whether a checkpoint gave its model every weight: what it does not give, transformers makes up at random."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from culnig_fast.errors import CulnigError, CulnigWarning

_NAMED = 3


def check_loaded(name: str, model: Any, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model of which some weights are not the checkpoint's; warn of tensors that it has no place for.

    Args:
        name: of the checkpoint, for messages.
        model: what was loaded.
        info: transformers' account of it (`output_loading_info`), in which weights that are tied to others and names
            that the model's class ignores do not stand.

    Raises:
        CulnigError: weights are missing, or of another shape; names the first few.
    """
    missing = sorted(map(str, info.get("missing_keys", ())))
    mismatched = [f"{key} {list(has)} for {list(needs)}" for key, has, needs in sorted(info.get("mismatched_keys", ()))]
    unexpected = sorted(map(str, info.get("unexpected_keys", ())))
    if missing or mismatched:
        faults = [f"lacks {_named(missing)}"] if missing else []
        faults += [f"holds in another shape {_named(mismatched)}"] if mismatched else []
        faults += [f"holds {_named(unexpected)} instead"] if unexpected and missing else []
        raise CulnigError(
            f"{name} is no whole checkpoint of {type(model).__name__}: it {', '.join(faults)}; what is missing would "
            "be random numbers, so save the whole model anew, or mend the tensors' names or its config.json"
        )
    if unexpected:
        warnings.warn(
            f"{name} holds {_named(unexpected)}, for which {type(model).__name__} has no place; the model runs without "
            "them",
            CulnigWarning,
            stacklevel=3,
        )


def _named(keys: list[str]) -> str:
    """The first few of some tensors, and how many there are."""
    more = f", … ({len(keys)} tensors)" if len(keys) > _NAMED else ""
    return f"{', '.join(keys[:_NAMED])}{more}"
