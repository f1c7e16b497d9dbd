"""The operations as operators of torch, which torch.compile, export and profilers see.

`torch.library.custom_op` would do the same for 12 to 40 µs a call on the host; a model's layer makes some ten, and a
small model's layer is done on a GPU in the time of a few. What it adds is not needed here: launchers refuse
gradients themselves, return new tensors and name what they write to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("culnig", "DEF")


def operator(mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function, `name_op`, whose annotations give the schema; in its place is `torch.ops.culnig.name`.

    Args:
        mutates: arguments that are written to; anything returned is new memory.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = function.__name__.removesuffix("_op")
        schema = torch.library.infer_schema(function, mutates_args=mutates)
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.culnig, name).default

    return register


def fake_of(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what an operator does to tensors without data: gives back ones of the right shapes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(operator, function, lib=_LIBRARY)
        return function

    return register
