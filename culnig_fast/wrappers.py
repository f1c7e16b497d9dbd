"""Models and modules that other libraries have wrapped, told by where their classes come from; nothing is imported."""

from __future__ import annotations

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
    if getattr(module, "compatibility_mode", False):
        raise CulnigError(
            "enable_compatibility_mode() has rewritten the weights of this bridge; give the Hugging Face model as it "
            "was loaded, or score the bridge with culnig_fast.hooked_attributor"
        )
    return inside


def _comes_from(value: Any, package: str) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)
