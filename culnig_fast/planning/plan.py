"""What attribution of a model takes, from its configuration alone: neurons, bytes, what fits on a card, time.

The model is built with fake tensors; its layers' projections are counted there and held against the configuration, and
what an ordinary forward pass keeps for the backward one is counted by running it. What the fused layers keep follows
from `fused.py`, whose list of saved tensors is written out in `_fused_per_token`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from culnig_fast.architecture import PAPER_SITES, find_layers
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import EXPERT_MODULES, SHARED_MODULES, check_module_names
from culnig_fast.planning.fake_model import fake_model, read_config, taps_per_token
from culnig_fast.probe import linear_shape
from culnig_fast.roles import kv_heads

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
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
        if module_name in SHARED_MODULES + EXPERT_MODULES:  # mixtures are not planned
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
                f"{keys} columns and one MLP of {intermediate}, so their neurons cannot be told from the "
                "configuration; `culnig-fast info` looks at the weights themselves"
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
    rotated q and k, what attention puts out, and its float32 sums. The last layer keeps x, k|v and a norm; on a CPU
    also rotated k, k and v once more for each query head where heads share them, and the last position's mask.
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
        taps=taps_per_token(model, layers, wanted),
        recomputed=depth * widths.hidden * size + _fused_per_token(widths, size, False, False),
        working=gradients * size,
        logits=3 * 4 * vocabulary,
    )


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

    Four operations a weight and token: two forward, two for the gradient of the input; weights get no gradient. The
    head runs at one position a sample. Attention: two products forward and four backward, over half of the positions on
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
