"""Finds the neurons of any Hugging Face decoder by its structure, and proves what it found.

No model family is known by name here. `probe` tells what each projection of a layer does; this module holds that
against the configuration (heads, key-value heads, head size, intermediate size) and insists that every weight matrix
of the layer is accounted for, so that a second MLP is refused and not half scored. `expert_probe` finds the routed
experts of a mixture; a shared expert is an MLP within the mixture's block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.expert_probe import Mixture, fused_mixture, listed_mixture
from culnig_fast.experts import Experts
from culnig_fast.listed_experts import ListedExperts, tells_tokens_apart
from culnig_fast.neurons import ATTENTION_MODULES, MLP_MODULES, NeuronLayout, NeuronSite, check_module_names
from culnig_fast.probe import Block, LayerProbe, Projection, lies_under, linear_shape, recorded_layers

PAPER_SITES = (*ATTENTION_MODULES, *(name for name in MLP_MODULES if not name.endswith(".act")))
"""What is scored unless asked otherwise: every neuron that the method scores (CULNIG, section 2)."""


@dataclass(frozen=True)
class SiteLocation:
    """Where one site's neurons live: columns of what a projection puts out or, for `mlp.act`, takes in.

    Routed experts have these columns each: `module` then holds all experts, and `experts` and `part` say how one
    projection of theirs is looked at.
    """

    site: NeuronSite
    module: Any
    module_path: str
    columns: slice
    tensor: Literal["output", "input"] = "output"
    experts: Experts | None = None
    part: str = ""


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
    """

    model: Any
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    embedding: Any
    head: nn.Module
    locations: tuple[SiteLocation, ...]

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
            columns = f"columns {first.columns.start}…{first.columns.stop - 1} of its {first.tensor}"
            if first.experts is not None:
                step = f" in steps of {first.columns.step}" if first.columns.step not in (None, 1) else ""
                columns = f"{first.part} of {first.site.experts} experts, {columns}{step}"
            sites.append(
                {
                    "module_name": name,
                    "width": first.site.width,
                    "total": sum(location.site.width for location in found),
                    "where": f"{first.module_path}, {columns}",
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


def discover(model: Any) -> Architecture:
    """Find every neuron site of a decoder.

    Runs the model on three tokens once, and one layer of each kind a dozen times. Nothing of the model is changed.

    Args:
        model: a Hugging Face model with an output embedding (as AutoModelForCausalLM gives), or a multimodal wrapper
            whose `get_decoder()` is the text decoder.

    Raises:
        CulnigError: the structure cannot be resolved; names the layer class, what was found and what is missing. Or a
            weight is divided among processes.
    """
    decoder, layers = find_layers(model)
    _refuse_divided(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise CulnigError(
            f"{type(model).__name__} has no output embedding, so no answer has a probability; "
            "load it with AutoModelForCausalLM"
        )
    config = model.config.get_text_config(decoder=True)
    paths = {id(module): path for path, module in model.named_modules()}
    locations: list[SiteLocation] = []
    kinds: dict[Any, _Roles] = {}
    with recorded_layers(model, list(layers), int(embedding.weight.shape[0])) as probes:
        for layer_idx, (layer, probe) in enumerate(zip(layers, probes, strict=True)):
            problem = f"layer {layer_idx} ({type(layer).__name__})"
            mixture = _mixture(probe, paths[id(layer)], problem)
            kind = (*layer_kind(layer), mixture and mixture.experts.form)
            if kind not in kinds:
                kinds[kind] = _roles(probe, config, problem, mixture)
            if mixture is not None:
                _prove_listed(mixture, kinds[kind], problem)
            locations += [_located(role, layer, layer_idx, mixture, paths) for role in kinds[kind]]
    layout = NeuronLayout(location.site for location in locations)
    rank = {site: i for i, site in enumerate(layout.sites)}
    locations.sort(key=lambda location: rank[location.site])
    return Architecture(model, decoder, tuple(layers), embedding, head, tuple(locations))


def refuse_experts(locations: Iterable[SiteLocation], what: str) -> None:
    """Raise CulnigError when a location is of routed experts, which `what` cannot work on."""
    names = dict.fromkeys(location.site.module_name for location in locations if location.experts is not None)
    if names:
        raise CulnigError(
            f"{what} cannot work on routed experts ({', '.join(names)}); name the other modules alone as its sites"
        )


def _located(
    role: _Role, layer: nn.Module, layer_idx: int, mixture: Mixture | None, paths: dict[int, str]
) -> SiteLocation:
    width = len(range(role.columns.start, role.columns.stop, role.columns.step or 1))
    if not role.routed or mixture is None:
        module = layer.get_submodule(role.path)
        site = NeuronSite(role.module_name, layer_idx, width)
        return SiteLocation(site, module, paths[id(module)], role.columns, role.tensor)
    experts = mixture.experts
    site = NeuronSite(role.module_name, layer_idx, width * experts.count, experts.count)
    path = paths[id(mixture.module)]
    return SiteLocation(site, mixture.module, path, role.columns, role.tensor, experts, role.path)


def _refuse_divided(model: Any) -> None:
    """Raise CulnigError when a weight is divided among processes: each would see some columns and take them for all."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements"):
            raise CulnigError(
                f"{name} is divided among processes (tensor parallel, FSDP), whose columns cannot be told apart here; "
                "load the whole model in each process and divide the samples with torchrun, or use device_map='auto'"
            )


def find_layers(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The text decoder and its list of layers; CulnigError when there is none."""
    if not hasattr(model, "get_decoder") or not hasattr(model, "config"):
        raise CulnigError(
            f"{type(model).__name__} is not a Hugging Face decoder (it has no get_decoder() or config); "
            "load one with AutoModelForCausalLM"
        )
    decoder = model.get_decoder() or model
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    lists = [module for module in lists if all(_linears(layer) for layer in module)]
    if not lists:
        raise CulnigError(
            f"{type(decoder).__name__} holds no list of {depth} layers with linear projections, "
            "so its neurons cannot be found; only decoders built of such layers are supported"
        )
    return decoder, max(lists, key=lambda module: sum(p.numel() for p in module.parameters()))


@dataclass(frozen=True)
class _Role:
    """One site within a layer: the projection's path there (of routed experts, their part) and its columns."""

    module_name: str
    path: str
    columns: slice
    tensor: Literal["output", "input"] = "output"
    routed: bool = False


_Roles = list[_Role]


def layer_kind(layer: nn.Module) -> tuple[Any, ...]:
    """Layers alike in this have the same structure, so one of them is proof for all."""
    linears = tuple((path, type(module), linear_shape(module)) for path, module in _linears(layer))
    matrices = tuple((path, tuple(p.shape)) for path, p in layer.named_parameters() if p.dim() >= 2)
    return type(layer), linears, matrices, tuple(type(module) for module in layer.modules())


def _linears(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in layer.named_modules() if linear_shape(module) is not None]


def _mixture(probe: LayerProbe, path: str, problem: str) -> Mixture | None:
    """The layer's routed experts, if it has any."""
    return fused_mixture(probe, path, problem) or listed_mixture(probe, path, problem)


def _roles(probe: LayerProbe, config: Any, problem: str, mixture: Mixture | None) -> _Roles:
    """Name the parts of one layer, or raise CulnigError saying what is missing."""
    blocks, loose = probe.blocks(() if mixture is None else mixture.skipped(probe.layer))
    found = "; ".join([block.describe() for block in blocks] + [f"{p.path} alone" for p in loose]) or "no projection"
    broken = [block for block in blocks if not probe.is_finite(block)]
    if broken:
        raise CulnigError(
            f"{problem}: activations at {broken[0].exit.path} are NaN or infinite; "
            "the checkpoint's weights are damaged, or its dtype overflows: try bfloat16 or float32"
        )
    attention = [block for block in blocks if probe.mixes_tokens(block)]
    mlps = [block for block in blocks if block not in attention]
    fits = len(mlps) == 1 if mixture is None else len(mlps) <= 1 and all(_is_within(m, mixture) for m in mlps)
    if len(attention) != 1 or not fits or loose:
        raise CulnigError(
            f"{problem}: expected one attention block (q, k, v → output) and one MLP (gate, up → down)"
            + ("" if mixture is None else f" or experts ({mixture.path}) with at most one shared MLP beside them")
            + f", found {len(attention)} and {len(mlps)}: {found}; {_unaccounted(probe.layer, blocks, mixture)}"
        )
    roles = _attention_roles(probe, attention[0], config, problem)
    if mixture is None:
        roles += _mlp_roles(probe, mlps[0], config, problem)
    else:
        shared = [role for mlp in mlps for role in _mlp_roles(probe, mlp, None, problem)]
        roles += [_renamed(role, "mlp.shared_expert") for role in shared] + _expert_roles(mixture, problem)
    leftover = _unaccounted(probe.layer, blocks, mixture)
    if leftover != "every weight is accounted for":
        raise CulnigError(f"{problem}: {leftover} (found {found}); such a layer would be scored only in part")
    return roles


def _expert_roles(mixture: Mixture, problem: str) -> _Roles:
    """What the parts of a routed expert do."""
    if mixture.sample is None:
        form = mixture.experts.form
        width = len(range(*form.gate))
        return [
            _Role("mlp.experts.gate_proj", form.entry, slice(*form.gate), routed=True),
            _Role("mlp.experts.up_proj", form.entry, slice(*form.up), routed=True),
            _Role("mlp.experts.act", form.exit, slice(0, width), "input", routed=True),
        ]
    problem = f"{problem}: expert 0 of {mixture.path}"
    blocks, loose = mixture.sample.blocks()
    leftover = _unaccounted(mixture.sample.layer, blocks)
    if len(blocks) != 1 or loose or leftover != "every weight is accounted for":
        raise CulnigError(f"{problem} is no single MLP (gate, up → down); {leftover}")
    if not mixture.sample.is_finite(blocks[0]):
        raise CulnigError(f"{problem}: activations are NaN or infinite; the checkpoint's weights are damaged")
    return [_renamed(role, "mlp.experts", True) for role in _mlp_roles(mixture.sample, blocks[0], None, problem)]


def _renamed(role: _Role, module: str, routed: bool = False) -> _Role:
    name = role.module_name.rpartition(".")[2]
    return _Role(f"{module}.{name}", role.path, role.columns, role.tensor, routed)


def _is_within(block: Block, mixture: Mixture) -> bool:
    return all(lies_under(projection.path, mixture.block) for projection in (*block.entries, block.exit))


def _prove_listed(mixture: Mixture, roles: _Roles, problem: str) -> None:
    """Raise CulnigError unless the tokens that an expert of a list sees can be told."""
    if mixture.sample is None or not isinstance(mixture.experts, ListedExperts):
        return
    exits = next(role.path for role in roles if role.routed and role.tensor == "input")
    if not tells_tokens_apart(mixture.experts, exits, mixture.sample.args[0]):
        raise CulnigError(
            f"{problem}: which tokens the experts of {mixture.path} see cannot be told from their rows; "
            "such a mixture is not supported"
        )


def _attention_roles(probe: LayerProbe, block: Block, config: Any, problem: str) -> _Roles:
    heads = config.num_attention_heads
    module = probe.layer.get_submodule(block.exit.path.rpartition(".")[0])
    head_dim = getattr(module, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    queries = block.exit.inputs
    if queries != heads * head_dim:
        raise CulnigError(
            f"{problem}: {block.exit.path} reads {queries} columns, but the configuration's {heads} heads × "
            f"{head_dim} make {heads * head_dim}"
        )
    groups = kv_heads(config)
    widths = [queries, groups * head_dim, groups * head_dim]
    parts = _slices(block.entries, widths, problem, "queries, keys, values", block)
    named: dict[str, tuple[Projection, slice]] = {}
    for entry, columns in parts:
        # Linearity first: under a saturated softmax a value may reach no later token, and would pass for a query.
        if probe.acts_linearly(block, entry, columns):
            name = "self_attn.v_proj"
        elif probe.acts_locally(block, entry, columns):
            name = "self_attn.q_proj"
        else:
            name = "self_attn.k_proj"
        if name in named:
            raise CulnigError(_undecided(problem, block, "queries, keys and values"))
        named[name] = (entry, columns)
    expected = dict(zip(ATTENTION_MODULES, widths, strict=True))
    roles = []
    for name, (entry, columns) in named.items():
        width = columns.stop - columns.start
        if width != expected[name]:
            raise CulnigError(
                f"{problem}: {entry.path} acts as {name} with {width} columns, but the configuration "
                f"({heads} heads, {groups} key-value heads × {head_dim}) makes {expected[name]}"
            )
        roles.append(_Role(name, entry.path, columns))
    return roles


def _mlp_roles(probe: LayerProbe, block: Block, config: Any, problem: str) -> _Roles:
    width = block.exit.inputs
    declared = getattr(config, "intermediate_size", None)
    if isinstance(declared, int) and declared != width:
        raise CulnigError(
            f"{problem}: {block.exit.path} reads {width} columns, but the configuration's intermediate_size "
            f"is {declared}"
        )
    act = _Role("mlp.act", block.exit.path, slice(0, width), "input")
    if len(block.entries) == 1 and block.entries[0].outputs == width:
        return [_Role("mlp.up_proj", block.entries[0].path, slice(0, width)), act]
    parts = _slices(block.entries, [width, width], problem, "gate and up", block)
    linear = [probe.acts_linearly(block, entry, columns) for entry, columns in parts]
    if sum(linear) != 1:
        raise CulnigError(_undecided(problem, block, "gate and up"))
    names = ["mlp.up_proj" if is_up else "mlp.gate_proj" for is_up in linear]
    return [_Role(name, entry.path, columns) for name, (entry, columns) in zip(names, parts, strict=True)] + [act]


def _slices(
    entries: list[Projection], widths: list[int], problem: str, what: str, block: Block
) -> list[tuple[Projection, slice]]:
    """Pair each of the parts with its columns: one projection each, or all in one, one behind the other."""
    if len(entries) == len(widths):
        return [(entry, slice(0, entry.outputs)) for entry in entries]
    if len(entries) == 1 and entries[0].outputs == sum(widths):
        starts = [sum(widths[:i]) for i in range(len(widths))]
        return [(entries[0], slice(start, start + w)) for start, w in zip(starts, widths, strict=True)]
    raise CulnigError(
        f"{problem}: {what} of {', '.join(map(str, widths))} columns were expected, separate or fused in this order, "
        f"found {block.describe()}"
    )


def kv_heads(config: Any) -> int:
    """Key-value heads that a configuration names, in whichever way."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return int(config.num_attention_heads)


def _undecided(problem: str, block: Block, what: str) -> str:
    return (
        f"{problem}: the columns of {block.describe()} do not behave as {what} in contiguous slices "
        "(interleaved heads, or weights that are all zero); such a layout is not supported"
    )


def _unaccounted(layer: nn.Module, blocks: list[Block], mixture: Mixture | None = None) -> str:
    known = [projection.path for block in blocks for projection in (*block.entries, block.exit)]
    left = [
        f"{path} {list(parameter.shape)}"
        for path, parameter in layer.named_parameters()
        if parameter.dim() >= 2
        and path.rpartition(".")[0] not in known
        and not (mixture is not None and mixture.covers(layer, path))
    ]
    if not left:
        return "every weight is accounted for"
    shown = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
    return f"weights that belong to neither: {shown}"
