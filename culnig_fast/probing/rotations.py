"""Rotary position embeddings whose frequencies depend on how long a run is."""

from __future__ import annotations

from typing import Any, NamedTuple


class RotationLimit(NamedTuple):
    """Up to how many positions a model's rotations are the same in every run, and of what kind they are."""

    positions: int
    kind: str


def rotation_limit(config: Any) -> RotationLimit | None:
    """The least one of a text configuration's rotations; None without a limit.

    `dynamic` and `longrope` choose their frequencies by the longest position of a run, pads included.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    for rotation in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = rotation.get("rope_type", rotation.get("type"))
        positions = rotation.get("original_max_position_embeddings")
        for name in ("original_max_position_embeddings", "max_position_embeddings"):
            positions = positions or getattr(config, name, None)
        if kind in ("dynamic", "longrope") and positions:
            found.append(RotationLimit(positions, kind))
    return min(found, default=None)
