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
    """The Hugging Face model inside a wrapper of nnsight, a bridge of TransformerLens or what torch.compile returns;
    anything else as it is.

    Raises:
        CulnigError: its weights are not loaded yet, or are no longer those of the Hugging Face model; or PEFT puts
            virtual tokens before the prompt's.
    """
    module = unwrapped(model)
    if type(module).__name__ == "OptimizedModule" and _comes_from(module, "torch"):
        module = module._orig_mod
    adapter = getattr(module, "active_peft_config", None) if _comes_from(module, "peft") else None
    if getattr(adapter, "is_prompt_learning", False):
        raise CulnigError(
            f"{type(module).__name__} puts virtual tokens before every prompt ({type(adapter).__name__}), and "
            "positions are those of the prompt; give the model under it (get_base_model()), or merge adapters that "
            "can be"
        )
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


def input_device(model: Any) -> Any:
    """Where a model takes its tokens: where its embedding is; CulnigError when that is fetched only while it runs."""
    weight = model.get_input_embeddings().weight
    if weight.is_meta:
        raise CulnigError(
            f"the embedding of {type(model).__name__} is offloaded, so that its weights are on no device between two "
            "runs; load the model with a device_map that keeps the embedding on the CPU or on a GPU"
        )
    return weight.device


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
