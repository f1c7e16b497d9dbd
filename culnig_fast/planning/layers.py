"""What each decoder layer of a configuration is made of; every weight matrix must be accounted for.

Sizes are those that the configuration names, held against the shapes of the model's parameters; of a mixture the
experts' form is read from their parameters, and how many experts see a token from a call of them without values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.mixtures.experts import FusedExperts
from culnig_fast.mixtures.listed import ListedExperts
from culnig_fast.mixtures.probe import Mixture, forms, fused_holders, listed_holders
from culnig_fast.neurons import ATTENTION_MODULES, EXPERT_MODULES, SHARED_MODULES
from culnig_fast.probing.layer import lies_under, linear_shape
from culnig_fast.roles import kv_heads


@dataclass(frozen=True)
class LayerShape:
    """Columns of one layer's attention and MLP; a layer has either a dense MLP or experts.

    Attributes:
        queries, keys: columns of q, and of k and of v.
        heads: of q.
        intermediate: of the dense MLP; 0 where there are experts.
        gated: whether the dense MLP is.
        experts: routed experts, 0 where there are none.
        width: columns of each.
        active: experts that see a token.
        shared: columns of the expert that every token passes, 0 without one.
        idle: weights that a token does not pass: those of the experts that it is not routed to.
    """

    queries: int
    keys: int
    heads: int
    intermediate: int = 0
    gated: bool = True
    experts: int = 0
    width: int = 0
    active: int = 0
    shared: int = 0
    idle: int = 0

    def of(self, module_name: str) -> int:
        """Neurons of a module; 0 where the layer has none."""
        if module_name in ATTENTION_MODULES:
            return self.queries if module_name == "self_attn.q_proj" else self.keys
        if module_name in SHARED_MODULES:
            return self.shared
        if module_name in EXPERT_MODULES:
            return self.experts * self.width
        return 0 if module_name == "mlp.gate_proj" and not self.gated else self.intermediate

    @property
    def columns(self) -> int:
        """MLP columns that a token passes."""
        return self.intermediate + self.shared + self.active * self.width


@dataclass(frozen=True)
class Widths:
    """Columns of the layers' parts; `norms` counts a layer's norms of the hidden state."""

    hidden: int
    norms: int
    layers: tuple[LayerShape, ...]

    def of(self, module_name: str) -> int:
        """Neurons of a module in all layers; 0 where the model has none."""
        return sum(layer.of(module_name) for layer in self.layers)


def widths_of(model: Any, layers: nn.ModuleList, mixtures: Sequence[Mixture | None]) -> Widths:
    """Sizes of a model's layers.

    Args:
        model: with fake or real parameters.
        layers: its decoder layers.
        mixtures: what `mixtures_of` found in each.

    Raises:
        CulnigError: a weight matrix of a layer belongs to no part that is known.
    """
    config = model.config.get_text_config(decoder=True)
    hidden = config.hidden_size
    active = _active(model, config, mixtures)
    shapes = []
    for index, (layer, mixture) in enumerate(zip(layers, mixtures, strict=True)):
        named = _of_layer(config, index)
        heads = named.num_attention_heads
        head_dim = getattr(named, "head_dim", None) or hidden // heads
        attention = LayerShape(heads * head_dim, kv_heads(named) * head_dim, heads)
        shape: LayerShape | None
        if mixture is None:
            declared = [getattr(named, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
            intermediate = next((value for value in declared if isinstance(value, int)), 4 * hidden)
            shape, what = _dense(layer, hidden, attention, intermediate), f"one MLP of {intermediate}"
        else:
            shape = _routed(layer, mixture, hidden, attention, active)
            what = f"experts ({mixture.path}) with at most one shared MLP beside them"
        if shape is None:
            raise CulnigError(
                f"the layers of {type(model).__name__} ({type(layer).__name__}) are no attention of "
                f"{attention.queries} + 2 × {attention.keys} columns and {what}, so their neurons cannot be told from "
                "the configuration; `culnig-fast info` looks at the weights themselves"
            )
        shapes.append(shape)
    norms = sum(list(p.shape) == [hidden] for m in layers[0].modules() for p in _norm_weights(m))
    return Widths(hidden, norms, tuple(shapes))


def _of_layer(config: Any, index: int) -> Any:
    """What a configuration names for one layer: some name heads or sizes layer by layer, and refuse to name one."""
    each = getattr(config, "per_layer_config", None)
    return config if each is None else each[index]


def mixtures_of(model: Any, layers: nn.ModuleList) -> list[Mixture | None]:
    """The routed experts of each layer, by the shapes of their parameters alone; None where a layer has none.

    Raises:
        CulnigError: experts of a form that attribution does not know.
    """
    hidden = model.config.get_text_config(decoder=True).hidden_size
    return [_mixture(layer, hidden) for layer in layers]


def _mixture(layer: nn.Module, hidden: int) -> Mixture | None:
    fused, listed = fused_holders(layer), listed_holders(layer)
    if not fused and not listed:
        return None
    path, module = (fused or listed)[0]
    block = path.rpartition(".")[0]
    if not fused:
        assert isinstance(module, nn.ModuleList)
        return Mixture(ListedExperts(layer.get_submodule(block), module, path, None), module, path, block, hidden)
    known = forms(module, hidden)
    if len(fused) > 1 or not known:
        raise CulnigError(
            f"the experts {path} ({type(module).__name__}) of {type(layer).__name__} are of no form that attribution "
            "knows, so there is nothing to plan"
        )
    return Mixture(FusedExperts(module, path, known[0]), module, path, block, hidden)


def _dense(layer: nn.Module, hidden: int, attention: LayerShape, intermediate: int) -> LayerShape | None:
    shapes = [shape for module in layer.modules() if (shape := linear_shape(module)) is not None]
    matrices = sum(p.numel() for p in layer.parameters() if p.dim() >= 2)
    parts = (matrices - _weights(attention, hidden)) / (hidden * intermediate)
    if sum(inputs * outputs for inputs, outputs in shapes) != matrices or parts not in (2, 3):
        return None
    return replace(attention, intermediate=intermediate, gated=parts == 3)


def _weights(attention: LayerShape, hidden: int) -> int:
    """Of q, k, v and o."""
    return hidden * (2 * attention.queries + 2 * attention.keys)


def _routed(layer: nn.Module, mixture: Mixture, hidden: int, attention: LayerShape, active: int) -> LayerShape | None:
    skipped = mixture.skipped(layer)
    linears = {path: shape for path, module in layer.named_modules() if (shape := linear_shape(module)) is not None}
    left = {path: shape for path, shape in linears.items() if not any(lies_under(path, other) for other in skipped)}
    beside = [shape for path, shape in left.items() if lies_under(path, mixture.block)]
    matrices = sum(
        p.numel() for name, p in layer.named_parameters() if p.dim() >= 2 and not mixture.covers(layer, name)
    )
    outside = sum(inputs * outputs for path, (inputs, outputs) in left.items() if not lies_under(path, mixture.block))
    shared = _gated(beside, hidden) if beside else 0
    width = _expert_width(mixture, hidden)
    fits = outside == _weights(attention, hidden) and outside + 3 * hidden * (shared or 0) == matrices
    if shared is None or width is None or not fits:
        return None
    held = sum(parameter.numel() for parameter in mixture.module.parameters())
    idle = held - held * active // mixture.experts.count
    return replace(attention, experts=mixture.experts.count, width=width, active=active, shared=shared, idle=idle)


def _expert_width(mixture: Mixture, hidden: int) -> int | None:
    if isinstance(mixture.experts, FusedExperts):
        return len(range(*mixture.experts.form.gate))
    shapes = [
        [s for m in expert.modules() if (s := linear_shape(m)) is not None] for expert in mixture.module.children()
    ]
    return _gated(shapes[0], hidden) if all(sorted(one) == sorted(shapes[0]) for one in shapes) else None


def _gated(shapes: Sequence[tuple[int, int]], hidden: int) -> int | None:
    """Columns of the gated MLP that projections of these shapes make; None when they make none."""
    for width in {inputs for inputs, outputs in shapes if outputs == hidden}:
        apart, fused = [(hidden, width), (hidden, width), (width, hidden)], [(hidden, 2 * width), (width, hidden)]
        if sorted(shapes) in (sorted(apart), sorted(fused)):
            return width
    return None


class _Called(Exception):
    """The experts were called; carries with what."""


def _active(model: Any, config: Any, mixtures: Sequence[Mixture | None]) -> int:
    """Experts that see a token: from a call without values, else by the configuration; 0 without a mixture.

    Raises:
        CulnigError: experts that are called otherwise, or neither says.
    """
    index, first = next(((i, mixture) for i, mixture in enumerate(mixtures) if mixture is not None), (0, None))
    if first is None:
        return 0
    declared = getattr(_of_layer(config, index), "num_experts_per_tok", None)
    seen: tuple[Any, ...] = ()
    if isinstance(first.experts, FusedExperts):
        seen = _call_of(model, first.module)
        shapes = [tuple(value.shape) for value in seen if isinstance(value, torch.Tensor)]
        if seen and not (len(shapes) == len(seen) == 3 and shapes[1] == shapes[2] and shapes[0][0] == shapes[1][0]):
            raise CulnigError(
                f"the experts {first.path} of {type(model).__name__} are not called with tokens, chosen experts and "
                "weights; attribution does not know such a form, so there is nothing to plan"
            )
    active = seen[1].shape[-1] if seen else declared
    if not isinstance(active, int) or not 1 <= active <= first.experts.count:
        raise CulnigError(
            f"the configuration of {type(model).__name__} does not say how many of {first.experts.count} experts see a "
            "token (num_experts_per_tok)"
        )
    return active


def _call_of(model: Any, module: nn.Module) -> tuple[Any, ...]:
    """What the module is called with when the model runs on fake tensors; nothing where it does not run so far."""

    def stop(called: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Called(args)

    mode = getattr(next(model.parameters()), "fake_mode", None)
    hook = module.register_forward_pre_hook(stop)
    try:
        with mode or contextlib.nullcontext(), torch.no_grad():
            model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False)
    except _Called as call:
        found: tuple[Any, ...] = call.args[0]
        return found
    except Exception:  # a family whose code looks at values cannot be run without any
        return ()
    finally:
        hook.remove()
    return ()


def _norm_weights(module: nn.Module) -> list[nn.Parameter]:
    if linear_shape(module) is not None:
        return []
    return [p for name, p in module.named_parameters(recurse=False) if p.dim() == 1 and name == "weight"]
