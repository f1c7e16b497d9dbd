"""Finds the neurons of any Hugging Face decoder by its structure, and proves what it found.

No model family is known by name here. `probing` tells what each projection of a layer does; `roles` holds that against
the configuration (heads, key-value heads, head size, intermediate size) and insists that every weight matrix of the
layer is accounted for, so that a second MLP is refused and not half scored. `mixtures.probe` finds the routed
experts of a mixture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from culnig_fast.divided import Division, division_of, refuse_divided
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import Columns, Interleaved, places
from culnig_fast.mixtures.experts import Experts
from culnig_fast.mixtures.probe import Mixture, fused_holders, listed_holders
from culnig_fast.neurons import ATTENTION_MODULES, MLP_MODULES, NeuronLayout, NeuronSite, check_module_names
from culnig_fast.probing.layer import LayerProbe, linear_shape, one_process
from culnig_fast.probing.recording import recorded_layers
from culnig_fast.roles import Role, Roles, find_mixture, layer_roles, prove_listed
from culnig_fast.wrappers import decoder_of, refuse_adapters

PAPER_SITES = (*ATTENTION_MODULES, *(name for name in MLP_MODULES if not name.endswith(".act")))
"""What is scored unless asked otherwise: every neuron that the method scores (CULNIG, section 2)."""


@dataclass(frozen=True)
class SiteLocation:
    """Where one site's neurons live: columns of what a projection puts out or, for `mlp.act`, takes in.

    Routed experts have these columns each: `module` then holds all experts, and `experts` and `part` say how one
    projection of theirs is looked at. Where the projection is divided among processes, `held` are the site's columns
    that this one has, and `columns` where they are here.
    """

    site: NeuronSite
    module: Any
    module_path: str
    columns: Columns
    tensor: Literal["output", "input"] = "output"
    experts: Experts | None = None
    part: str = ""
    held: range | None = None

    @property
    def width(self) -> int:
        """Neurons of the site in this process."""
        return self.site.width if self.held is None else len(self.held)


@dataclass(frozen=True)
class Architecture:
    """A decoder as the engine sees it.

    Attributes:
        model: the model given.
        decoder: the text decoder in it.
        layers: its layers in order.
        embedding: the input embedding.
        head: the output embedding, whose input is the last hidden state.
        locations: every site found, in flat order.
        division: the processes among which the weights are divided; None when all are here.
    """

    model: Any
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    embedding: Any
    head: nn.Module
    locations: tuple[SiteLocation, ...]
    division: Division | None = None

    def select(self, module_names: Iterable[str] | None = None) -> tuple[SiteLocation, ...]:
        """The locations of the named modules in flat order; None means the paper's, where the model has them.

        Raises:
            CulnigError: the model has no such neurons.
        """
        present = {location.site.module_name for location in self.locations}
        if module_names is None:
            wanted: Sequence[str] = [name for name in PAPER_SITES if name in present]
        else:
            wanted = check_module_names(module_names)
        missing = [name for name in wanted if name not in present]
        if missing:
            raise CulnigError(
                f"{type(self.model).__name__} has no {', '.join(missing)}; its layers "
                f"({type(self.layers[0]).__name__}) have {', '.join(sorted(present))}"
            )
        return tuple(location for location in self.locations if location.site.module_name in wanted)

    def layout(self, module_names: Iterable[str] | None = None) -> NeuronLayout:
        """The flat layout of the named modules' neurons."""
        return NeuronLayout(location.site for location in self.select(module_names))

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts: classes, dtype, and for each module name its width and where it was found."""
        sites = []
        for name in dict.fromkeys(location.site.module_name for location in self.locations):
            found = [location for location in self.locations if location.site.module_name == name]
            first = found[0]
            if isinstance(first.columns, Interleaved):
                each = f"columns {first.columns.first}…{first.columns.last - 1} of every {first.columns.period}"
                columns = f"{each} of its {first.tensor}"
            else:
                columns = f"columns {first.columns.start}…{first.columns.stop - 1} of its {first.tensor}"
            if first.experts is not None and isinstance(first.columns, slice):
                step = f" in steps of {first.columns.step}" if first.columns.step not in (None, 1) else ""
                columns = f"{first.part} of {first.site.experts} experts, {columns}{step}"
            sites.append(
                {
                    "module_name": name,
                    "width": first.site.width,
                    "total": sum(location.site.width for location in found),
                    "where": f"{first.module_path}, {columns}",
                    **({"experts": first.site.experts} if first.experts is not None else {}),
                }
            )
        return {
            "model": type(self.model).__name__,
            "layer_class": type(self.layers[0]).__name__,
            "layers": len(self.layers),
            "dtype": str(self.embedding.weight.dtype).removeprefix("torch."),
            "neurons": self.layout().size,
            "sites": sites,
        }


def discover(model: Any, *, divided: bool = False) -> Architecture:
    """Find every neuron site of a decoder.

    Runs the model on three tokens once, and one layer of each kind a dozen times. Nothing of the model is changed.

    Args:
        model: a Hugging Face model with an output embedding (as AutoModelForCausalLM gives), a multimodal wrapper
            whose `get_decoder()` is the text decoder, or one that nnsight or TransformerLens holds.
        divided: take a model whose weights are divided among processes by transformers' tensor-parallel plan; every
            process calls this. The caller then minds each location's `held`.

    Raises:
        CulnigError: the structure cannot be resolved; names the layer class, what was found and what is missing. Or a
            weight is divided among processes, and that is not asked for or not understood.
    """
    return _discovered(model, alike=False, divided=divided)


def architecture_of(model: Any, *, divided: bool = False) -> Architecture:
    """What `discover` finds, or the `Architecture` that was found before; errors as for `discover`."""
    if not isinstance(model, Architecture):
        return discover(model, divided=divided)
    if not divided:
        refuse_divided(model.model)
    return model


def discover_alike(model: Any) -> Architecture:
    """As `discover`, for a model of which one layer of each kind can be run: the others are taken to be like it.

    `discover` proves the experts of every layer, in case somebody has changed the code of one; a model that was just
    built from its configuration has no such layer.
    """
    return _discovered(model, alike=True, divided=False)


def _discovered(model: Any, alike: bool, divided: bool) -> Architecture:
    model = decoder_of(model)
    decoder, layers = find_layers(model)
    if not divided:
        refuse_divided(model)
    division = division_of(model)
    if division is not None:
        _refuse_divided_experts(layers)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise CulnigError(
            f"{type(model).__name__} has no output embedding, so no answer has a probability; "
            "load it with AutoModelForCausalLM"
        )
    config = model.config.get_text_config(decoder=True)
    paths = {id(module): path for path, module in model.named_modules()}
    locations: list[SiteLocation] = []
    kinds: dict[Any, Roles] = {}
    proved: dict[Any, Mixture | None] = {}
    most = one_process if division is None else division.most
    runnable = contextlib.nullcontext() if division is None else division.runnable(model)
    with runnable, recorded_layers(model, list(layers), int(embedding.weight.shape[0]), most) as probes:
        for layer_idx, (layer, probe) in enumerate(zip(layers, probes, strict=True)):
            problem = f"layer {layer_idx} ({type(layer).__name__})"
            structure = layer_kind(layer)
            known = alike and structure in proved
            if known:
                first = proved[structure]
                mixture = None if first is None else first.like(layer, paths[id(layer)])
            else:
                mixture = proved[structure] = find_mixture(probe, paths[id(layer)], problem)
            kind = (*structure, mixture and mixture.experts.form)
            if kind not in kinds:
                kinds[kind] = layer_roles(probe, config, problem, mixture)
            if mixture is not None and not known:
                prove_listed(mixture, kinds[kind], problem)
            found = [_located(role, layer, layer_idx, mixture, paths) for role in kinds[kind]]
            locations += found if division is None else _held(found, kinds[kind], probe, division)
    _refuse_shared(locations)
    layout = NeuronLayout(location.site for location in locations)
    rank = {site: i for i, site in enumerate(layout.sites)}
    locations.sort(key=lambda location: rank[location.site])
    return Architecture(model, decoder, tuple(layers), embedding, head, tuple(locations), division)


def _located(
    role: Role, layer: nn.Module, layer_idx: int, mixture: Mixture | None, paths: dict[int, str]
) -> SiteLocation:
    width = len(places(role.columns))
    if not role.routed or mixture is None:
        module = layer.get_submodule(role.path)
        site = NeuronSite(role.module_name, layer_idx, width)
        return SiteLocation(site, module, paths[id(module)], role.columns, role.tensor)
    experts = mixture.experts
    site = NeuronSite(role.module_name, layer_idx, width * experts.count, experts.count)
    path = paths[id(mixture.module)]
    return SiteLocation(site, mixture.module, path, role.columns, role.tensor, experts, role.path)


def _held(locations: list[SiteLocation], roles: Roles, probe: LayerProbe, division: Division) -> list[SiteLocation]:
    """The locations of a layer whose projections are divided among processes, as this one has them."""
    result = []
    for location, role in zip(locations, roles, strict=True):
        seen = probe.width(role.path, role.tensor)
        held = division.held(location.module, role.tensor, seen, location.site.width)
        result.append(location if held is None else replace(location, columns=slice(0, len(held)), held=held))
    return result


def _refuse_shared(locations: Iterable[SiteLocation]) -> None:
    """Raise CulnigError when one module holds neurons of two layers: what one layer does could not be told."""
    layer_of: dict[nn.Module, int] = {}
    for location in locations:
        first = layer_of.setdefault(location.module, location.site.layer_idx)
        if first != location.site.layer_idx:
            raise CulnigError(
                f"layers {first} and {location.site.layer_idx} share {location.module_path}, so their neurons cannot "
                "be told apart; give each layer a copy of its own (copy.deepcopy)"
            )


def _refuse_divided_experts(layers: Iterable[nn.Module]) -> None:
    for layer_idx, layer in enumerate(layers):
        if fused_holders(layer) or listed_holders(layer):
            raise CulnigError(
                f"layer {layer_idx} ({type(layer).__name__}): routed experts cannot be scored where weights are "
                "divided among processes; load the whole model in each and divide the samples with torchrun, or use "
                "device_map='auto'"
            )


def find_layers(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The text decoder and its list of layers; CulnigError when there is none."""
    if not hasattr(model, "get_decoder") or not hasattr(model, "config"):
        raise CulnigError(
            f"{type(model).__name__} is not a Hugging Face decoder (it has no get_decoder() or config); "
            "load one with AutoModelForCausalLM"
        )
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    # A model may call its output embedding `decoder`, and get_decoder() then gives that; its body is the base model.
    found = model.get_decoder() or model
    decoder, lists = next(
        ((body, lists) for body in (found, getattr(model, "base_model", found)) if (lists := _lists(body, depth))),
        (found, []),
    )
    if not lists:
        raise CulnigError(
            f"{type(decoder).__name__} holds no list of {depth} layers with linear projections, "
            "so its neurons cannot be found; only decoders built of such layers are supported"
        )
    layers = max(lists, key=lambda module: sum(p.numel() for p in module.parameters()))
    refuse_adapters(layers)
    return decoder, layers


def _lists(decoder: nn.Module, depth: Any) -> list[nn.ModuleList]:
    """The lists of as many modules, all of which have projections."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    return [module for module in lists if all(_linears(layer) for layer in module)]


def layer_kind(layer: nn.Module) -> tuple[Any, ...]:
    """Layers alike in this have the same structure, so one of them is proof for all."""
    linears = tuple((path, type(module), linear_shape(module)) for path, module in _linears(layer))
    matrices = tuple((path, tuple(p.shape)) for path, p in layer.named_parameters() if p.dim() >= 2)
    return type(layer), linears, matrices, tuple(type(module) for module in layer.modules())


def _linears(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in layer.named_modules() if linear_shape(module) is not None]
