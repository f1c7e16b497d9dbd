"""Models without values: a configuration's model of fake tensors, and what its forward pass keeps.

Fake tensors have shapes and no memory, so a model of any size is built and run in a second or two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from culnig_fast.architecture import SiteLocation
from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.last_position import LastPosition
from culnig_fast.models import EMBEDDED, embedded_folder
from culnig_fast.neurons import NeuronSite
from culnig_fast.planning.shapes import OF_PRESET, SHAPES
from culnig_fast.probe import linear_shape
from culnig_fast.tap import attach_taps

_MOST_LAYERS = 1000
_ANY = NeuronSite("mlp.up_proj", 0, 1)
"""Stands for a site where only its projection matters."""


def read_config(source: str) -> Any:
    """The configuration that `plan` takes; CulnigError when there is none."""
    name = OF_PRESET.get(source, source)
    if name in SHAPES and not Path(source).exists():
        return SHAPES[name].config()
    if source == EMBEDDED:
        source = str(embedded_folder("model"))
    from transformers import AutoConfig

    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    if not path.exists() and (source.count("/") != 1 or source.startswith((".", "/"))):
        raise CulnigError(f"no configuration {source}; give a folder, a config.json, a hub id or {_names()}")
    try:
        if not path.exists():
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
        value = read_json(path)
        if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
            raise CulnigError(f"{path} names no model_type; is it a checkpoint's config.json?")
        return AutoConfig.for_model(**value)
    except CulnigError:
        raise
    except Exception as error:  # configurations are checked by classes of every family, each in its own way
        raise CulnigError(f"{source} is no configuration that transformers knows ({_reason(error)})") from error


def fake_model(config: Any, dtype: str = "bfloat16") -> Any:
    """The model of a configuration, made of fake tensors: no memory is used; CulnigError when it cannot be built.

    Of a multimodal configuration whose other parts cannot be made so it is the text decoder.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    try:
        text = config.get_text_config(decoder=True)
        depth = text.num_hidden_layers
    except Exception as error:
        raise CulnigError(f"{type(config).__name__} describes no decoder ({_reason(error)})") from error
    if type(depth) is not int or not 1 <= depth <= _MOST_LAYERS:
        raise CulnigError(f"the configuration names {depth!r:.40} layers; 1…{_MOST_LAYERS} can be planned for")
    reason = ""
    # Towers for images set their weights by values, which fake tensors have not; their decoder alone can be built.
    for part in (config, text):
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                model: Any = AutoModelForCausalLM.from_config(
                    part, dtype=getattr(torch, dtype), trust_remote_code=False
                )
            return model.eval().requires_grad_(False)
        except Exception as error:  # as above
            reason = _reason(error)
    raise CulnigError(f"no causal model can be built of the {type(config).__name__} ({reason})")


def taps_per_token(model: Any, layers: nn.ModuleList, wanted: Iterable[str]) -> int | None:
    """Bytes a token that the layers' own code and the taps save, counted on fake tensors; None where they do not run.

    The model loses all but its first layer: it comes last.
    """
    try:
        with contextlib.ExitStack() as stack:
            leaf = model.get_input_embeddings().register_forward_hook(
                lambda m, args, out: out.detach().requires_grad_()
            )
            stack.callback(leaf.remove)
            mode = next(model.parameters()).fake_mode
            stack.enter_context(mode)
            # Layers beside the second keep what the second does: nothing is learnt from running all of them.
            depth = len(layers)
            del layers[2:]
            for layer in layers:
                unmasked = layer.register_forward_pre_hook(_without_mask, with_kwargs=True)
                stack.callback(unmasked.remove)
            for handle in attach_taps(_tapped(model, layers, wanted), lambda location, act, grad: None):
                stack.callback(handle.remove)
            each = []
            for count in (2, 1):
                del layers[count:]
                first, second = (saved_bytes(model, length) for length in (64, 128))
                each.append((second - first) // 64)
    except Exception:  # a family whose code looks at values cannot be run without any
        return None
    return each[1] + (depth - 1) * (each[0] - each[1])


def _without_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model that sees no values builds a mask; with values and right padding it needs none."""
    given, named = tuple(map(_unless_mask, args)), {name: _unless_mask(value) for name, value in kwargs.items()}
    return given, named


def _unless_mask(value: Any) -> Any:
    is_mask = isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]
    return None if is_mask else value


def _tapped(model: Any, layers: nn.ModuleList, wanted: Iterable[str]) -> list[SiteLocation]:
    """Where taps would hold a tensor: projections' outputs and, for `mlp.act`, the input of the last.

    Those that read one tensor are followed by the one that reads what became of them: attention first, then the MLP.
    """
    names = set(wanted)
    calls: list[tuple[nn.Module, torch.Tensor]] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            for module in layer.modules():
                if linear_shape(module) is not None:
                    look = module.register_forward_pre_hook(lambda m, args: calls.append((m, args[0])))
                    stack.callback(look.remove)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False)
    places: list[SiteLocation] = []
    position = block = 0
    while position < len(calls):
        end = position + 1
        while end < len(calls) and calls[end][1] is calls[position][1]:
            end += 1
        attention = block % 2 == 0
        scored = {name for name in names if name.startswith("self_attn" if attention else "mlp.")}
        if scored - {"mlp.act"}:
            places += [SiteLocation(_ANY, module, "", slice(0)) for module, _ in calls[position:end]]
        if "mlp.act" in scored:
            places.append(SiteLocation(_ANY, calls[end][0], "", slice(0), "input"))
        position, block = end + 1, block + 1
    return places


def saved_bytes(model: Any, length: int) -> int:
    """Bytes that the forward pass of one sample keeps for the backward one, every storage once, weights left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its place
        return tensor

    head = LastPosition(model, model.get_output_embeddings())
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            head.logits(torch.zeros(1, length, dtype=torch.long), torch.full((1,), length))
    finally:
        head.remove()
    return sum(storage.nbytes() for storage in kept.values())


def _names() -> str:
    return ", ".join([EMBEDDED, *OF_PRESET, *(name for name in SHAPES if name not in OF_PRESET)])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"
