"""What attribution of a model takes, from its configuration alone: neurons, bytes, what fits on a card, time.

The model is built with fake tensors; its layers' projections are counted there and held against the configuration
(`layers`), and what a forward pass keeps for the backward one is counted by running it (`kept`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from culnig_fast.architecture import PAPER_SITES, find_layers
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import check_module_names
from culnig_fast.planning.fake_model import fake_model, quiet_fake_tensors, read_config
from culnig_fast.planning.kept import Activations, kept_per_token
from culnig_fast.planning.layers import LayerShape, Widths, mixtures_of, widths_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FREE = 0.9
"""Share of a card's memory that is planned for: the rest goes to the driver, fragments and kernels' work space."""


@dataclass(frozen=True)
class Plan:
    """Everything that `plan` works out; sizes are in bytes.

    Attributes:
        model: class of the model.
        layers: decoder layers.
        parameters: all weights.
        layer_parameters: weights of all decoder layers.
        active_parameters: those of them that a token passes: of a mixture's routed experts, the ones it is sent to.
        neurons: by module name.
        weights: bytes of all weights by dtype.
        layer_weights: bytes of one layer's weights in `dtype`.
        dtype: what activations and the fit are worked out for.
        activations: for each token, see there.
        totals: float64 sums, groups × scored neurons × 8.
        groups: rows of the totals.
        mixture: None without routed experts, else their layers and experts, how many are active, columns of each and
            of the shared one.
        fit: None without a memory size, else what fits, see `fit`.
        time: None without a rate, else what it takes, see `seconds`.
    """

    model: str
    layers: int
    parameters: int
    layer_parameters: int
    active_parameters: int
    neurons: dict[str, int]
    weights: dict[str, int]
    layer_weights: int
    dtype: str
    activations: Activations
    totals: int
    groups: int
    mixture: dict[str, int] | None = None
    fit: dict[str, Any] | None = None
    time: dict[str, Any] | None = None

    @property
    def scored(self) -> int:
        """Neurons in all."""
        return sum(self.neurons.values())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "scored": self.scored}


@quiet_fake_tensors()
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
            and MLP of the sizes that it names, or experts of a form that attribution does not know.
    """
    if dtype not in BYTES:
        raise CulnigError(f"unknown dtype {dtype!r}; choose from {', '.join(BYTES)}")
    model = fake_model(read_config(source), dtype)
    layers = _layers(model)
    mixtures = mixtures_of(model, layers)
    widths = widths_of(model, layers, mixtures)
    wanted = PAPER_SITES if sites is None else check_module_names(sites)
    neurons = {name: widths.of(name) for name in wanted if widths.of(name)}
    missing = [name for name in wanted if name not in neurons]
    if sites is not None and missing:
        raise CulnigError(f"{type(model).__name__} has no {', '.join(missing)}; leave these sites out")
    parameters = sum(p.numel() for p in model.parameters())
    inside = sum(p.numel() for p in layers.parameters())
    size = BYTES[dtype]
    made = Plan(
        model=type(model).__name__,
        layers=len(layers),
        parameters=parameters,
        layer_parameters=inside,
        active_parameters=inside - sum(layer.idle for layer in widths.layers),
        neurons=neurons,
        weights={name: parameters * each for name, each in BYTES.items()},
        layer_weights=max(sum(p.numel() for p in layer.parameters()) for layer in layers) * size,
        dtype=dtype,
        activations=kept_per_token(model, layers, mixtures, widths, neurons, size, length),
        totals=groups * sum(neurons.values()) * 8,
        groups=groups,
        mixture=_mixture(widths.layers),
    )
    head = model.get_output_embeddings().weight.numel()
    return Plan(
        **{
            **{name: getattr(made, name) for name in made.__dataclass_fields__},
            "fit": None if memory is None else fit(made, memory, widths, length),
            "time": None if flops is None else seconds(made, widths, head, flops, tokens, length),
        }
    )


def _layers(model: Any) -> nn.ModuleList:
    if model.get_output_embeddings() is None:
        raise CulnigError(f"{type(model).__name__} has no output embedding, so no answer has a probability")
    return find_layers(model)[1]


def _mixture(layers: Sequence[LayerShape]) -> dict[str, int] | None:
    routed = [layer for layer in layers if layer.experts]
    if not routed:
        return None
    one = routed[0]
    return {
        "layers": len(routed),
        "experts": one.experts,
        "active": one.active,
        "width": one.width,
        "shared": one.shared,
    }


def fit(made: Plan, memory: int, widths: Widths, length: int) -> dict[str, Any]:
    """What a card of `memory` bytes holds.

    Returns:
        `in_memory`: tokens of a batch with fused layers, on taps and recomputed, where at least one sample fits; else
        `stream`: bytes on the card for two layers' weights, and on the host for each token of a block. Neither where
        it is not known what a token keeps.
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
    if not tokens:
        return found
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

    Four operations a weight and token: two forward, two for the gradient of the input; weights get no gradient, and a
    token passes no expert that it is not routed to. The head runs at one position a sample. Attention: two products
    forward and four backward, over half of the positions on average as later ones are not seen.
    """
    weights = 4.0 * (made.active_parameters * tokens + head * tokens / length)
    attention = 12.0 * sum(layer.queries for layer in widths.layers) * (length + 1) / 2 * tokens
    total = weights + attention
    return {
        "tokens": tokens,
        "length": length,
        "operations": total,
        "attention_share": attention / total,
        "flops": flops,
        "seconds": total / flops,
    }
