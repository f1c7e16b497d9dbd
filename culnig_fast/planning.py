"""What attribution of a model takes, from its configuration alone: neurons, bytes, what fits on a card, time.

The model is built with fake tensors, which have shapes and no memory; its layers' projections are counted there and held
against the configuration, and what an ordinary forward pass keeps for the backward one is counted by running it. What
the fused layers keep follows from `fused.py`, whose list of saved tensors is written out in `_fused_per_token`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from culnig_fast.architecture import PAPER_SITES, SiteLocation, find_layers, kv_heads
from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.last_position import LastPosition
from culnig_fast.models import EMBEDDED, embedded_folder
from culnig_fast.neurons import NeuronSite, check_module_names
from culnig_fast.probe import linear_shape
from culnig_fast.shapes import OF_PRESET, SHAPES
from culnig_fast.tap import attach_taps

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MOST_LAYERS = 1000
_ANY = NeuronSite("mlp.up_proj", 0, 1)
"""Stands for a site where only its projection matters."""

_FREE = 0.9
"""Share of a card's memory that is planned for: the rest goes to the driver, fragments and kernels' work space."""


@dataclass(frozen=True)
class Widths:
    """Columns of a layer's parts; `norms` counts the norms of the hidden state."""

    hidden: int
    queries: int
    keys: int
    intermediate: int
    heads: int
    gated: bool
    norms: int

    def of(self, module_name: str) -> int:
        """Neurons of a module in one layer; 0 where the layer has none."""
        if module_name == "mlp.gate_proj" and not self.gated:
            return 0
        attention = {"self_attn.q_proj": self.queries, "self_attn.k_proj": self.keys, "self_attn.v_proj": self.keys}
        return attention.get(module_name, self.intermediate)


@dataclass(frozen=True)
class Activations:
    """Bytes kept between forward and backward for each token.

    Attributes:
        fused: with every layer fused, on a GPU, where attention is run again in backward.
        fused_cpu: the same on a CPU, which keeps the attention.
        taps: with every layer on taps; None where the family does not run on fake tensors.
        recomputed: with layers recomputed one at a time: each layer's input, and one fused layer.
        working: what one layer's backward needs beside that, estimated from the fused layer's gradients.
        logits: a sample, not a token: three float32 copies of the last position's logits.
    """

    fused: int
    fused_cpu: int
    taps: int | None
    recomputed: int
    working: int
    logits: int


@dataclass(frozen=True)
class Plan:
    """Everything that `plan` works out; sizes are in bytes.

    Attributes:
        model: class of the model.
        layers: decoder layers.
        parameters: all weights.
        layer_parameters: weights of all decoder layers: what every token passes.
        neurons: by module name.
        weights: bytes of all weights by dtype.
        layer_weights: bytes of one layer's weights in `dtype`.
        dtype: what activations and the fit are worked out for.
        activations: for each token, see there.
        totals: float64 sums, groups × scored neurons × 8.
        groups: rows of the totals.
        fit: None without a memory size, else what fits, see `fit`.
        time: None without a rate, else what it takes, see `seconds`.
    """

    model: str
    layers: int
    parameters: int
    layer_parameters: int
    neurons: dict[str, int]
    weights: dict[str, int]
    layer_weights: int
    dtype: str
    activations: Activations
    totals: int
    groups: int
    fit: dict[str, Any] | None = None
    time: dict[str, Any] | None = None

    @property
    def scored(self) -> int:
        """Neurons in all."""
        return sum(self.neurons.values())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "scored": self.scored}


def plan(
    source: str,
    *,
    sites: Iterable[str] | None = None,
    dtype: str = "bfloat16",
    groups: int = 16,
    memory: int | None = None,
    flops: float | None = None,
    tokens: float = 4.5e6,
    length: int = 128,
) -> Plan:
    """Plan the attribution of a model.

    Args:
        source: a checkpoint folder or its config.json, `demo`, a preset's model or a shape by name, or a hub id.
        sites: module names to score; None means q, k, v, gate and up, where the model has them.
        dtype: float32, bfloat16 or float16.
        groups: rows of the table, e.g. countries.
        memory: of the card, in bytes.
        flops: operations a second that the card sustains.
        tokens: to be scored in all.
        length: tokens of a sample.

    Raises:
        CulnigError: no such configuration, one that no causal decoder can be built of, or layers that are no attention
            and MLP of the sizes that it names.
    """
    if dtype not in BYTES:
        raise CulnigError(f"unknown dtype {dtype!r}; choose from {', '.join(BYTES)}")
    model = fake_model(read_config(source), dtype)
    decoder, layers = _layers(model)
    widths = _widths(model, layers)
    wanted = PAPER_SITES if sites is None else check_module_names(sites)
    neurons = {name: widths.of(name) * len(layers) for name in wanted if widths.of(name)}
    missing = [name for name in wanted if name not in neurons]
    if sites is not None and missing:
        raise CulnigError(f"{type(model).__name__} has no {', '.join(missing)}; its MLP is not gated")
    parameters = sum(p.numel() for p in model.parameters())
    inside = sum(p.numel() for p in layers.parameters())
    size = BYTES[dtype]
    made = Plan(
        model=type(model).__name__,
        layers=len(layers),
        parameters=parameters,
        layer_parameters=inside,
        neurons=neurons,
        weights={name: parameters * each for name, each in BYTES.items()},
        layer_weights=max(sum(p.numel() for p in layer.parameters()) for layer in layers) * size,
        dtype=dtype,
        activations=_activations(model, decoder, layers, widths, wanted, size),
        totals=groups * sum(neurons.values()) * 8,
        groups=groups,
    )
    head = model.get_output_embeddings().weight.numel()
    return Plan(
        **{
            **{name: getattr(made, name) for name in made.__dataclass_fields__},
            "fit": None if memory is None else fit(made, memory, widths, length),
            "time": None if flops is None else seconds(made, widths, head, flops, tokens, length),
        }
    )


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


def _layers(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    if model.get_output_embeddings() is None:
        raise CulnigError(f"{type(model).__name__} has no output embedding, so no answer has a probability")
    return find_layers(model)


def _widths(model: Any, layers: nn.ModuleList) -> Widths:
    """Sizes that the configuration names, which must account for every weight matrix of every layer."""
    config = model.config.get_text_config(decoder=True)
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * head_dim, kv_heads(config) * head_dim
    declared = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
    intermediate = next((value for value in declared if isinstance(value, int)), 4 * hidden)
    attention = hidden * (2 * queries + 2 * keys)
    for layer in layers:
        shapes = [shape for module in layer.modules() if (shape := linear_shape(module)) is not None]
        matrices = sum(p.numel() for p in layer.parameters() if p.dim() >= 2)
        parts = (matrices - attention) / (hidden * intermediate)
        if sum(inputs * outputs for inputs, outputs in shapes) != matrices or parts not in (2, 3):
            raise CulnigError(
                f"the layers of {type(model).__name__} ({type(layer).__name__}) are no attention of {queries} + 2 × "
                f"{keys} columns and one MLP of {intermediate}, so their neurons cannot be told from the configuration; "
                "`culnig-fast info` looks at the weights themselves"
            )
    norms = sum(list(p.shape) == [hidden] for m in layers[0].modules() for p in _norm_weights(m))
    return Widths(hidden, queries, keys, intermediate, heads, parts == 3, norms)


def _norm_weights(module: nn.Module) -> list[nn.Parameter]:
    if linear_shape(module) is not None:
        return []
    return [p for name, p in module.named_parameters(recurse=False) if p.dim() == 1 and name == "weight"]


def _fused_per_token(widths: Widths, size: int, last: bool, cpu: bool) -> int:
    """Bytes a token of one fused layer: what `fused._Layer.forward` saves, each storage once.

    x, q|k|v, z, gate|up, what the norms after attention and MLP read, and a float32 for each norm. On a CPU also
    rotated q and k, what attention puts out, and its float32 sums. The last layer keeps x, k|v and a norm; on a CPU also
    rotated k, k and v once more for each query head where heads share them, and the last position's mask.
    """
    if last:
        shared = 2 * widths.queries if widths.keys < widths.queries else 0
        attention = (widths.keys + shared) * size + size + 1 if cpu else 0
        return (widths.hidden + 2 * widths.keys) * size + 4 + attention
    kept = widths.hidden * widths.norms + widths.queries + 2 * widths.keys + 2 * widths.intermediate
    attention = (2 * widths.queries + widths.keys) * size + 4 * widths.heads if cpu else 0
    return kept * size + 4 * widths.norms + attention


def _activations(
    model: Any, decoder: nn.Module, layers: nn.ModuleList, widths: Widths, wanted: Iterable[str], size: int
) -> Activations:
    depth = len(layers)
    whole = [
        (depth - 1) * _fused_per_token(widths, size, False, cpu) + _fused_per_token(widths, size, True, cpu)
        for cpu in (False, True)
    ]
    gradients = 3 * widths.intermediate + 3 * widths.hidden + 2 * (widths.queries + 2 * widths.keys)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return Activations(
        fused=whole[0],
        fused_cpu=whole[1],
        taps=_taps_per_token(model, layers, wanted),
        recomputed=depth * widths.hidden * size + _fused_per_token(widths, size, False, False),
        working=gradients * size,
        logits=3 * 4 * vocabulary,
    )


def _taps_per_token(model: Any, layers: nn.ModuleList, wanted: Iterable[str]) -> int | None:
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


def fit(made: Plan, memory: int, widths: Widths, length: int) -> dict[str, Any]:
    """What a card of `memory` bytes holds.

    Returns:
        `in_memory`: tokens of a batch with fused layers, on taps and recomputed, where at least one sample fits; else
        `stream`: bytes on the card for two layers' weights, and on the host for each token of a block.
    """
    room = _FREE * memory - made.weights[made.dtype] - made.totals
    kept = made.activations
    each = {"fused": kept.fused, "taps": kept.taps, "recomputed": kept.recomputed}
    tokens = {
        name: max(0, int(room // (value + kept.working + kept.logits / length)))
        for name, value in each.items()
        if value is not None
    }
    found: dict[str, Any] = {"memory": memory, "room": int(room), "in_memory": None, "stream": None}
    if max(tokens.values()) >= length:
        found["in_memory"] = tokens
    else:
        found["stream"] = {
            "card": 2 * made.layer_weights + made.totals,
            "host_per_token": made.layers * widths.hidden * BYTES[made.dtype],
            "weights_read_per_block": 2 * made.layer_weights * made.layers,
        }
    return found


def seconds(made: Plan, widths: Widths, head: int, flops: float, tokens: float, length: int) -> dict[str, Any]:
    """Operations and time of scoring `tokens` in samples of `length`.

    Four operations a weight and token: two forward, two for the gradient of the input; weights get no gradient. The head
    runs at one position a sample. Attention: two products forward and four backward, over half of the positions on
    average as later ones are not seen.
    """
    weights = 4.0 * (made.layer_parameters * tokens + head * tokens / length)
    attention = 12.0 * made.layers * widths.queries * (length + 1) / 2 * tokens
    total = weights + attention
    return {
        "tokens": tokens,
        "length": length,
        "operations": total,
        "attention_share": attention / total,
        "flops": flops,
        "seconds": total / flops,
    }


def _names() -> str:
    return ", ".join([EMBEDDED, *OF_PRESET, *(name for name in SHAPES if name not in OF_PRESET)])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"
