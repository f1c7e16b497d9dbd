"""TransformerLens models, scored under their hook names."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.modules.attributor import ModuleAttributor
from culnig_fast.modules.sites import ModuleSite

_BY_HEAD_FIRST = ("_pattern", "_attn_scores")
"""[batch, head, query, key]: no neurons at token positions."""
_NORMED_HEADS = re.compile(r"(hook_[qk]_normed|[.][qk]_norm[.]hook_\w+)$")
"""Heads before positions in many models, which points say since version 4."""


class HookedAttributor(ModuleAttributor):
    """A `ModuleAttributor` whose sites are hook points; `hooked_attributor` makes one."""

    def __enter__(self) -> HookedAttributor:
        with contextlib.ExitStack() as stack:
            for place in self._places:
                stack.enter_context(_announced(self.model, place.site.path, place.module))
            super().__enter__()
            self._announcements = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._announcements:
            super().__exit__(kind, error, trace)

    def _score(self, place: Any, act: torch.Tensor, grad: torch.Tensor) -> None:
        super()._score(place, _as_shown(place.module, act), _as_shown(place.module, grad))


def hooked_attributor(
    model: Any, hooks: str | tuple[str, Any] | Iterable[str | tuple[str, Any]], **options: Any
) -> ModuleAttributor:
    """A `ModuleAttributor` on hook points of a TransformerLens model.

        with hooked_attributor(bridge, ["blocks.*.mlp.hook_post", ("q", 0)], reduction="max") as attributor:
            attributor.backward(bridge(tokens)[:, -1].log_softmax(-1)[:, 5])
        attributor.by_path()["blocks.0.attn.hook_q"]        # [groups, heads · d_head]

    Hooks that the caller has set stay and run first: what they change is what is scored. A point is scored as the
    library's own hooks see it, forward and backward.

    Args:
        model: a `TransformerBridge`, or a `HookedTransformer` of TransformerLens 3 and older.
        hooks: names of `model.hook_dict`, aliases among them, also with `*`; (name, column slice) pairs; or
            TransformerLens' short forms, a name and a layer: `("pre", 3)`. Everything after [batch, position] counts
            neurons: heads × columns are flattened.
        **options: of `ModuleAttributor`.

    Raises:
        CulnigError: the model has no hook points, or none of that name; or attention patterns, which are no neurons;
            on entering the block, a point that the model's configuration switches off.
    """
    points = getattr(model, "hook_dict", None)
    if not isinstance(points, dict):
        raise CulnigError(f"{type(model).__name__} has no hook_dict; give a TransformerBridge, or use ModuleAttributor")
    given = [hooks] if isinstance(hooks, (str, tuple)) else list(hooks)
    sites = [site for one in given for site in _sites(one, points)]
    return HookedAttributor(model, sites, modules=points, **options)


def _sites(one: str | tuple[str, Any], points: Mapping[str, Any]) -> list[ModuleSite]:
    """What one entry stands for, in the model's order."""
    name, detail = one if isinstance(one, tuple) else (one, None)
    columns = detail if isinstance(detail, slice) else slice(None)
    if detail is not None and not isinstance(detail, slice):
        name = _long_form(name, detail)
    # A name that nothing matches stays one, and is refused with the names that are like it.
    found = [known for known in points if fnmatchcase(known, name)] or [name]
    for known in found:
        if known.endswith(_BY_HEAD_FIRST):
            raise CulnigError(f"{known} is [batch, head, query, key] and holds no neurons; name another hook")
        if known in points and _NORMED_HEADS.search(known) and not hasattr(points[known], "pos_dim"):
            raise CulnigError(f"{known} does not say which dimension counts positions; upgrade to TransformerLens 4")
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


@contextlib.contextmanager
def _announced(model: Any, name: str, point: Any) -> Iterator[None]:
    """The point counts as hooked for the library, forward and backward, by a hook that changes nothing.

    Some take part in the forward pass only then: a bridge's norms compute `hook_scale` and `hook_normalized` beside
    the way of the gradient otherwise, and scaled contributions to the residual stream do not pass a point at all
    (before version 4 not even with a forward hook, if that changes nothing).
    """
    try:
        # A permanent hook, so that the caller's reset_hooks() leaves it.
        model.add_hook(name, _nothing, is_permanent=True)
    except (AssertionError, ValueError) as error:  # before version 4, and since
        raise CulnigError(f"{name} cannot be scored: {error}") from error
    handle = point.fwd_hooks[-1]
    point.bwd_hooks.append(handle)
    try:
        yield
    finally:
        handle.hook.remove()
        for hooks in (point.fwd_hooks, point.bwd_hooks):
            hooks[:] = [one for one in hooks if one is not handle]


def _nothing(tensor: Any, hook: Any) -> None:
    """A hook that looks on."""


def _as_shown(point: Any, tensor: torch.Tensor) -> torch.Tensor:
    """[batch, position, ...] of what passes a point: as the library shows it to hooks, positions moved up front."""
    conversion = getattr(point, "hook_conversion", None)
    if conversion is not None:
        tensor = conversion.convert(tensor)
    position = getattr(point, "pos_dim", None)  # None: where it always is
    return tensor if position is None else tensor.movedim(position, 1)
