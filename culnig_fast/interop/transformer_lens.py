"""TransformerLens models, scored under their hook names."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.modules.attributor import ModuleAttributor
from culnig_fast.modules.sites import ModuleSite

_BY_HEAD_FIRST = ("hook_pattern", "hook_attn_scores")
"""[batch, head, query, key]: no neurons at token positions."""


def hooked_attributor(
    model: Any, hooks: str | tuple[str, Any] | Iterable[str | tuple[str, Any]], **options: Any
) -> ModuleAttributor:
    """A `ModuleAttributor` on hook points of a TransformerLens model.

        with hooked_attributor(bridge, ["blocks.*.mlp.hook_post", ("q", 0)], reduction="max") as attributor:
            attributor.backward(bridge(tokens)[:, -1].log_softmax(-1)[:, 5])
        attributor.by_path()["blocks.0.attn.hook_q"]        # [groups, heads · d_head]

    Hooks of the library's own stay and run first: what they change is what is scored.

    Args:
        model: a `TransformerBridge`, or a `HookedTransformer` of TransformerLens 3 and older.
        hooks: names of `model.hook_dict`, aliases among them, also with `*`; (name, column slice) pairs; or
            TransformerLens' short forms, a name and a layer: `("pre", 3)`. Everything after [batch, position] counts
            neurons: heads × columns are flattened.
        **options: of `ModuleAttributor`.

    Raises:
        CulnigError: the model has no hook points, or none of that name; or attention patterns, which are no neurons.
    """
    points = getattr(model, "hook_dict", None)
    if not isinstance(points, dict):
        raise CulnigError(f"{type(model).__name__} has no hook_dict; give a TransformerBridge, or use ModuleAttributor")
    given = [hooks] if isinstance(hooks, (str, tuple)) else list(hooks)
    sites = [site for one in given for site in _sites(one, list(points))]
    return ModuleAttributor(model, sites, modules=points, **options)


def _sites(one: str | tuple[str, Any], names: list[str]) -> list[ModuleSite]:
    """What one entry stands for, in the model's order."""
    name, detail = one if isinstance(one, tuple) else (one, None)
    columns = detail if isinstance(detail, slice) else slice(None)
    if detail is not None and not isinstance(detail, slice):
        name = _long_form(name, detail)
    # A name that nothing matches stays one, and is refused with the names that are like it.
    found = [known for known in names if fnmatchcase(known, name)] or [name]
    for known in found:
        if known.endswith(_BY_HEAD_FIRST):
            raise CulnigError(f"{known} is [batch, head, query, key] and holds no neurons; name another hook")
    return [ModuleSite(known, columns, dim=None) for known in found]


def _long_form(name: str, layer: Any) -> str:
    for home in ("transformer_lens.utilities", "transformer_lens.utils"):  # since version 4, and before
        try:
            return str(importlib.import_module(home).get_act_name(name, layer))
        except ModuleNotFoundError:
            continue
    raise CulnigError(
        f"({name!r}, {layer!r}) is a short form of TransformerLens, which is not installed; give the name"
    )
