"""Models without values: a configuration's model of fake tensors, and what its forward pass keeps.

Fake tensors have shapes and no memory, so a model of any size is built and run in a second or two.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from culnig_fast.architecture import SiteLocation, layer_kind
from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.last_position import LastPosition
from culnig_fast.mixtures.experts import FusedExperts, Routing
from culnig_fast.mixtures.probe import Mixture
from culnig_fast.models import EMBEDDED, embedded_folder
from culnig_fast.neurons import DENSE_MODULES, EXPERT_MODULES, NeuronSite
from culnig_fast.planning.shapes import OF_PRESET, SHAPES
from culnig_fast.probing.layer import lies_under, linear_shape
from culnig_fast.tap import attach_taps, no_score

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


@contextlib.contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """torch writes a traceback to its log where fake tensors do not fit; what that means is said here in a sentence."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


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


@dataclass(frozen=True)
class TapBytes:
    """Bytes a token that each layer on taps keeps, and what is kept beside the layers or by all of them together."""

    layers: tuple[int, ...]
    around: int


def taps_per_token(
    model: Any, layers: nn.ModuleList, mixtures: Sequence[Mixture | None], wanted: Iterable[str], length: int
) -> TapBytes | None:
    """What the layers' own code and the taps save, counted on fake tensors; None where they do not run.

    One layer of each kind is run, alone and twice in a row. Routed experts run as they do under taps, and all tokens go
    to the first: how they fall changes nothing of what is kept.

    Args:
        model: of fake tensors; it loses layers, so it comes last.
        layers: its decoder layers.
        mixtures: the routed experts of each.
        wanted: module names that are scored.
        length: tokens of a sample; attention that is not fused keeps more a token in a longer one.
    """
    kinds = [(*layer_kind(layer), mixture is None) for layer, mixture in zip(layers, mixtures, strict=True)]
    of_kind = {kind: index for index, kind in enumerate(kinds)}
    every, chosen = list(layers), sorted(of_kind.values())
    try:
        with contextlib.ExitStack() as stack:
            leaf = model.get_input_embeddings().register_forward_hook(
                lambda m, args, out: out.detach().requires_grad_()
            )
            stack.callback(leaf.remove)
            mode = next(model.parameters()).fake_mode
            stack.enter_context(mode)
            # Other layers keep what those of their kind do: nothing is learnt from running all of them.
            del layers[:]
            layers.extend([every[index] for index in chosen])
            run = [(every[index], _unasked(mixtures[index])) for index in chosen]
            for layer, experts in run:
                unmasked = layer.register_forward_pre_hook(_without_mask, with_kwargs=True)
                stack.callback(unmasked.remove)
                if experts is not None:
                    opened = experts.attach(experts.form.exit, "input", _unchanged)
                    stack.callback(opened.remove)
            places = _tapped(model, run, [mixtures[index] for index in chosen], set(wanted))
            for handle in attach_taps(places, no_score):
                stack.callback(handle.remove)
            once, twice = (
                {index: _kept_of(model, layers, [every[index]] * times, length) for index in chosen} for times in (1, 2)
            )
    except Exception:  # a family whose code looks at values cannot be run without any
        return None
    each = {index: twice[index] - once[index] for index in chosen}
    return TapBytes(tuple(each[of_kind[kind]] for kind in kinds), once[len(kinds) - 1] - each[len(kinds) - 1])


class _Unasked(FusedExperts):
    """Experts of which the first gets all rows, so that nothing is asked of values and one product is run."""

    def rows_of(self, chosen: torch.Tensor) -> list[int]:
        """See `FusedExperts`."""
        return [len(chosen)] + [0] * (self.count - 1)


def _unchanged(values: torch.Tensor, routing: Routing) -> torch.Tensor:
    return values


def _unasked(mixture: Mixture | None) -> _Unasked | None:
    """Raises where the layer's experts need values."""
    if mixture is None:
        return None
    if not isinstance(mixture.experts, FusedExperts):
        raise CulnigError("which rows a list's experts get is found by their values")
    return _Unasked(mixture.experts.module, mixture.experts.path, mixture.experts.form)


def _kept_of(model: Any, layers: nn.ModuleList, chosen: Sequence[nn.Module], length: int) -> int:
    """Bytes a token of a sample of `length` with these layers alone.

    A sample of T tokens keeps a + b·T + c·T², the last where attention keeps its probabilities; asked for is b + c·T.
    """
    del layers[:]
    layers.extend(chosen)
    one, two, three = (saved_bytes(model, times * length) for times in (1, 2, 3))
    return (3 * two - 2 * one - three) // length


def _without_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model that sees no values builds a mask; with values and right padding it needs none."""
    given, named = tuple(map(_unless_mask, args)), {name: _unless_mask(value) for name, value in kwargs.items()}
    return given, named


def _unless_mask(value: Any) -> Any:
    is_mask = isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]
    return None if is_mask else value


def _tapped(
    model: Any,
    layers: Sequence[tuple[nn.Module, FusedExperts | None]],
    mixtures: Sequence[Mixture | None],
    wanted: set[str],
) -> list[SiteLocation]:
    """Where taps would hold a tensor: projections' outputs and, for `mlp.act`, the input of the last.

    Those that read one tensor are followed by the one that reads what became of them: attention first, then the MLP.
    """
    calls: list[list[tuple[nn.Module, torch.Tensor]]] = [[] for _ in layers]
    with contextlib.ExitStack() as stack:
        for own, (layer, _), mixture in zip(calls, layers, mixtures, strict=True):
            skipped = () if mixture is None else mixture.skipped(layer)
            for path, module in layer.named_modules():
                if linear_shape(module) is not None and not any(lies_under(path, other) for other in skipped):
                    look = module.register_forward_pre_hook(lambda m, args, own=own: own.append((m, args[0])))
                    stack.callback(look.remove)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False)
    places: list[SiteLocation] = []
    for own, (_, experts) in zip(calls, layers, strict=True):
        position = block = 0
        while position < len(own):
            end = position + 1
            while end < len(own) and own[end][1] is own[position][1]:
                end += 1
            scored = {name for name in wanted if name.startswith("self_attn" if block == 0 else "mlp.")}
            scored -= set(EXPERT_MODULES) if experts is None else {*EXPERT_MODULES, *DENSE_MODULES}
            if any(not name.endswith(".act") for name in scored):
                places += [SiteLocation(_ANY, module, "", slice(0)) for module, _ in own[position:end]]
            if any(name.endswith(".act") for name in scored):
                places.append(SiteLocation(_ANY, own[end][0], "", slice(0), "input"))
            position, block = end + 1, block + 1
        if experts is not None:
            places += _tapped_experts(experts, wanted)
    return places


def _tapped_experts(experts: FusedExperts, wanted: set[str]) -> list[SiteLocation]:
    """The same of routed experts: what their first product puts out, and what their second takes in."""
    scored = {name for name in EXPERT_MODULES if name in wanted}
    places = []
    if any(not name.endswith(".act") for name in scored):
        places.append(SiteLocation(_ANY, experts.module, "", slice(0), "output", experts, experts.form.entry))
    if any(name.endswith(".act") for name in scored):
        places.append(SiteLocation(_ANY, experts.module, "", slice(0), "input", experts, experts.form.exit))
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
