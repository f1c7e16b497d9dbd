"""The modules that may be trained: each layer's MLP (gate, up and down projection) and attention (q, k, v and output).

In a layer with routed experts the MLP is all experts together, a shared one too, without the router: a neuron is what
it is however tokens are sent, and a trained router would send them otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from culnig_fast.neurons import ATTENTION_MODULES

if TYPE_CHECKING:
    from culnig_fast.architecture import SiteLocation

Kind = Literal["attention", "mlp"]
KINDS: tuple[Kind, Kind] = ("attention", "mlp")
"""In the order of the flat index within a layer, which breaks ties."""


@dataclass(frozen=True)
class Module:
    """One layer's MLP or attention in a model.

    Attributes:
        kind, layer_idx: which.
        names: full names of its projections in the model, each once, fused ones too: q, k, v, o or gate, up, down. Of
            experts in 3-D parameters it is the module that holds them.
        parameters: weights and biases of these projections.
    """

    kind: Kind
    layer_idx: int
    names: tuple[str, ...]
    parameters: int


def find_modules(model: Any) -> tuple[Module, ...]:
    """Attention and MLP of every layer, in layer order, attention first.

    Args:
        model: a Hugging Face decoder, or the `Architecture` found in it.

    Raises:
        CulnigError: its structure cannot be resolved.
    """
    from culnig_fast.architecture import architecture_of
    from culnig_fast.probing.layer import lies_under, linear_shape

    architecture = architecture_of(model)
    paths = {id(module): path for path, module in architecture.model.named_modules()}
    found = []
    for layer_idx, layer in enumerate(architecture.layers):
        parts: dict[Kind, dict[str, Any]] = {kind: {} for kind in KINDS}
        blocks = []
        for location in architecture.locations:
            if location.site.layer_idx == layer_idx:
                parts[kind_of(location.site.module_name)] |= _projections(location)
                if location.experts is not None:
                    blocks.append(location.module_path.rpartition(".")[0])
        # Discovery has accounted for every projection of the layer: what is neither entry of the attention block
        # nor part of the MLP is the block's exit or, in a block of experts, its router.
        known = {id(module) for modules in parts.values() for module in modules.values()}
        for module in layer.modules():
            path = paths[id(module)]
            routes = any(lies_under(path, block) for block in blocks)
            if linear_shape(module) is not None and id(module) not in known and not routes:
                parts["attention"][path] = module
        found += [Module(kind, layer_idx, tuple(parts[kind]), _parameters(parts[kind].values())) for kind in KINDS]
    return tuple(found)


def _projections(location: SiteLocation) -> dict[str, Any]:
    """Full name and module of what holds a site's weights."""
    from culnig_fast.probing.layer import linear_shape

    if location.experts is None:
        return {location.module_path: location.module}
    listed = {f"{location.module_path}.{path}": m for path, m in location.module.named_modules() if linear_shape(m)}
    return listed or {location.module_path: location.module}


def kind_of(module_name: str) -> Kind:
    """Of which kind of module a neuron's projection is part."""
    return "attention" if module_name in ATTENTION_MODULES else "mlp"


def _parameters(projections: Iterable[Any]) -> int:
    return sum(parameter.numel() for projection in projections for parameter in projection.parameters())
