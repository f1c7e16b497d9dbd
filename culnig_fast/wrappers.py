"""Models and modules that other libraries have wrapped, told by where their classes come from; nothing is imported."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from culnig_fast.errors import CulnigError


def module_of(value: Any) -> Any:
    """The `nn.Module` behind an envoy of nnsight; anything else as it is."""
    return value._module if _comes_from(value, "nnsight") and hasattr(value, "_module") else value


def unwrapped(model: Any) -> Any:
    """The `nn.Module` that nnsight has wrapped; anything else as it is.

    Raises:
        CulnigError: its weights are not loaded yet.
    """
    module = module_of(model)
    if module is not model and any(parameter.is_meta for parameter in module.parameters()):
        raise CulnigError(
            f"{type(model).__name__} has not loaded its weights yet; make it with dispatch=True, or call its dispatch()"
        )
    return module


def named_by_torch(model: Any, path: str, known: Container[str]) -> tuple[str, str]:
    """What torch calls the module that nnsight calls `path`, and which end of it is meant.

    nnsight's paths begin with the wrapper's own (`model.` by default) and may end in `.input` or `.output`. A name that
    torch knows is taken as torch's.

    Args:
        model: what the path is in; only where nnsight has wrapped it is there anything to translate.
        path: the name.
        known: names of the model's modules.

    Returns:
        the name, as given where no module has it in either way, and `input`, `output` or nothing.
    """
    if path in known or not _comes_from(model, "nnsight"):
        return path, ""
    root = str(getattr(model, "path", ""))
    inside = "" if path == root else path.removeprefix(f"{root}.")
    for name in (path, inside):
        stem, _, end = name.rpartition(".")
        if name in known:
            return name, ""
        if end in ("input", "output") and stem in known:
            return stem, end
    return path, ""


def decoder_of(model: Any) -> Any:
    """The Hugging Face model inside a wrapper of nnsight or a bridge of TransformerLens; anything else as it is.

    Raises:
        CulnigError: its weights are not loaded yet, or are no longer those of the Hugging Face model.
    """
    module = unwrapped(model)
    if not _comes_from(module, "transformer_lens"):
        return module
    inside = getattr(module, "original_model", None)
    if inside is None or not hasattr(inside, "config"):
        raise CulnigError(
            f"a {type(module).__name__} holds no Hugging Face model; score it with culnig_fast.hooked_attributor, "
            "under its hook names"
        )
    # Both enable_compatibility_mode() and process_weights() say so here; a version that does not is not trusted.
    if getattr(module, "_weights_processed", True):
        raise CulnigError(
            "enable_compatibility_mode() or process_weights() has rewritten the weights of this bridge; give the "
            "Hugging Face model as it was loaded, or score the bridge with culnig_fast.hooked_attributor"
        )
    return inside


def refuse_adapters(layers: Any) -> None:
    """CulnigError where PEFT has put adapters into some of the layers: a projection's columns are then sums of two."""
    for path, module in layers.named_modules():
        if _comes_from(module, "peft"):
            raise CulnigError(
                f"layer {path.partition('.')[0]}: PEFT has attached {type(module).__name__} to "
                f"{path.partition('.')[2] or 'it'}, and only merged adapters can be scored; merge them first "
                "(model = model.merge_and_unload())"
            )


def check_storable(model: Any) -> None:
    """CulnigError for a model whose layers a bridge has replaced by its own, which no checkpoint can hold."""
    if any(_comes_from(module, "transformer_lens") for module in model.modules()):
        raise CulnigError(
            "a bridge of TransformerLens has put its own layers into this model, which is no ordinary checkpoint any "
            "more; load the Hugging Face model anew and bake that, or use suppress() or enhance()"
        )


def _comes_from(value: Any, package: str) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)
