"""Finds a layer's routed experts by structure, and proves that they can be looked at.

Two forms are known: a module with two 3-D parameters that is called with tokens, chosen experts and their weights, and
a list of modules that are alike. Nothing is taken on trust: a fused module's computation is repeated from its parts on
a recorded call and must give the module's own result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.mixtures.experts import Experts, FusedExperts, FusedForm, OpenForward, unchanged
from culnig_fast.mixtures.listed import ListedExperts
from culnig_fast.probing.layer import LayerProbe, lies_under, linear_shape, same_output


@dataclass(frozen=True)
class Mixture:
    """The part of a layer that routes tokens to experts.

    Attributes:
        experts: the routed ones.
        module: what holds them.
        path: where it is in the layer.
        block: path of the module around it, which holds the router too.
        hidden: width of a token.
        sample: one expert by itself with a call on three tokens, when experts are modules.
    """

    experts: Experts
    module: nn.Module
    path: str
    block: str
    hidden: int
    sample: LayerProbe | None = None

    def like(self, layer: nn.Module, prefix: str) -> Mixture:
        """The mixture of a layer of the same structure, `prefix` its path in the model."""
        module: Any = layer.get_submodule(self.path)
        path, form = f"{prefix}.{self.path}", self.experts.form
        experts: Experts
        if isinstance(self.experts, FusedExperts):
            experts = FusedExperts(module, path, form)
        else:
            experts = ListedExperts(layer.get_submodule(self.block), module, path, form)
        return replace(self, experts=experts, module=module)

    def covers(self, layer: nn.Module, parameter: str) -> bool:
        """Whether the parameter is the experts' or the router's.

        A router is a module right in the block, whose only matrix is [experts, hidden], with or without a correction
        [1, experts]; the gate of a shared expert has [1, hidden]. An MLP has another matrix as well.
        """
        if lies_under(parameter, self.path):
            return True
        prefix = f"{self.block}." if self.block else ""
        child, dot, _ = parameter.removeprefix(prefix).partition(".")
        if not dot or not parameter.startswith(prefix):
            return False
        shapes = [list(p.shape) for p in layer.get_submodule(prefix + child).parameters() if p.dim() >= 2]
        matrices = [shape for shape in shapes if shape != [1, self.experts.count]]
        return matrices in ([[self.experts.count, self.hidden]], [[1, self.hidden]])

    def skipped(self, layer: nn.Module) -> list[str]:
        """Paths of modules that are no part of attention or of a shared expert."""
        covered = [name for name, _ in layer.named_parameters() if self.covers(layer, name)]
        return [self.path, *{name.rpartition(".")[0] for name in covered}]


@dataclass
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def recorded_call(probe: LayerProbe, module: nn.Module) -> Call | None:
    """The only call of the module when the layer runs again; None when there is none or more."""
    calls: list[Call] = []
    hook = module.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(Call(args, kwargs, output)), with_kwargs=True
    )
    try:
        probe.run()
    finally:
        hook.remove()
    return calls[0] if len(calls) == 1 else None


def fused_holders(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of everything in the layer that holds several 3-D parameters."""
    return [
        (path, module)
        for path, module in layer.named_modules()
        if sum(parameter.dim() == 3 for parameter in module.parameters(recurse=False)) > 1
    ]


def listed_holders(layer: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Path and module of every list in the layer of several modules with projections."""
    return [
        (path, module)
        for path, module in layer.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and all(_linears(expert) for expert in module)
    ]


def fused_mixture(probe: LayerProbe, prefix: str, problem: str) -> Mixture | None:
    """The layer's experts when they are 3-D parameters of one module; None when it has no such module.

    Args:
        probe: the layer and a call of it.
        prefix: where the layer is in the model.
        problem: names the layer, for messages.

    Raises:
        CulnigError: there are such parameters, but how they are used is not understood.
    """
    holders = fused_holders(probe.layer)
    if not holders:
        return None
    path, module = holders[0]
    what = f"{problem}: {path} ({_shapes(module)})"
    if len(holders) > 1:
        raise CulnigError(
            f"{what} and {holders[1][0]} both hold weights of three dimensions; only one mixture of experts in a layer "
            "is understood, and nothing else that has such weights"
        )
    block = path.rpartition(".")[0]
    opened = vars(module).get("forward")
    call = recorded_call(probe, module)
    tensors = () if call is None else call.args
    if call is None or call.kwargs or len(tensors) != 3 or not all(isinstance(x, torch.Tensor) for x in tensors):
        raise CulnigError(
            f"{what} holds weights of three dimensions, but is not called as experts are, with tokens, chosen experts "
            "and their weights; such a form is not supported"
        )
    hidden = int(tensors[0].shape[-1])
    if isinstance(opened, OpenForward):  # somebody's changes are in it, and it was proved before they came
        return Mixture(opened.experts, module, path, block, hidden)
    if not isinstance(call.output, torch.Tensor) or not bool(call.output.isfinite().all()):
        raise CulnigError(f"{what} returns NaN, infinities or no tensor; the checkpoint's weights may be damaged")
    right = [
        experts
        for form in forms(module, hidden)
        if _equals(experts := FusedExperts(module, f"{prefix}.{path}", form), call)
    ]
    if len(right) != 1:
        raise CulnigError(
            f"{what} computes something else than down(gate and up) of each token's experts, weighted; "
            "if these are experts, they cannot be scored, or only in part"
        )
    return Mixture(right[0], module, path, block, hidden)


def _equals(experts: FusedExperts, call: Call) -> bool:
    with torch.no_grad():
        try:
            hidden, index, weights = call.args
            return same_output(experts.run(hidden, index, weights, unchanged), call.output)
        except (RuntimeError, IndexError, TypeError):  # shapes that do not fit: not this form
            return False


def forms(module: Any, hidden: int) -> list[FusedForm]:
    """The forms that the parameters' shapes allow, without a look at what they compute."""
    own = dict(module.named_parameters(recurse=False))
    cubes = [name for name, parameter in own.items() if parameter.dim() == 3]
    apply = getattr(module, "_apply_gate", None)
    if len(cubes) != 2 or apply is None or any(True for child in module.children() for _ in child.parameters()):
        return []
    forms = []
    for entry, leave in (cubes, cubes[::-1]):
        if set(own) - {entry, leave, f"{entry}_bias", f"{leave}_bias"} or own[entry].shape[0] != own[leave].shape[0]:
            continue
        for transposed in (False, True):
            outputs, inputs = own[entry].shape[1:] if not transposed else reversed(own[entry].shape[1:])
            back, width = own[leave].shape[1:] if not transposed else reversed(own[leave].shape[1:])
            if (inputs, back, outputs) != (hidden, hidden, 2 * width):
                continue
            parts = gate_and_up(apply, int(width), own[entry].device)
            if parts is not None:
                forms.append(FusedForm(entry, leave, transposed, *parts))
    return forms


@torch.no_grad()
def gate_and_up(
    apply: Callable[[torch.Tensor], torch.Tensor], width: int, device: torch.device
) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """(start, stop, step) of the gate's and of up's columns, told by what `apply` makes of them; None if it cannot be.

    Column j of the result must depend on column j of both parts alone, and be affine in up's but not in the gate's.
    """
    base = (torch.rand(1, 2 * width, generator=torch.Generator().manual_seed(0)) + 0.5).to(device)
    plain = apply(base)
    if plain.shape != (1, width):
        return None
    for parts in (((0, width, 1), (width, 2 * width, 1)), ((0, 2 * width, 2), (1, 2 * width, 2))):
        first, second = (slice(*part) for part in parts)
        if not all(_reaches_its_own(apply, base, part, plain) for part in (first, second)):
            continue
        affine = [_is_affine(apply, base, part) for part in (first, second)]
        if sum(affine) == 1:
            return parts if affine[1] else parts[::-1]
    return None


def _reaches_its_own(
    apply: Callable[[torch.Tensor], torch.Tensor], base: torch.Tensor, part: slice, plain: torch.Tensor
) -> bool:
    """Whether some of the part's columns change just the same columns of the result."""
    marked = torch.arange(plain.shape[1], device=base.device) % 4 < 2
    touched = base.clone()
    touched[:, part] += marked.float()
    return torch.equal((apply(touched) != plain)[0], marked)


def _is_affine(apply: Callable[[torch.Tensor], torch.Tensor], base: torch.Tensor, part: slice) -> bool:
    """Whether the second difference at a size at which activation functions bend is nothing."""
    high, low, middle = base.clone(), base.clone(), base.clone()
    high[:, part], low[:, part], middle[:, part] = 4.0, -4.0, 0.0
    above, below = apply(high), apply(low)
    bend = above + below - 2 * apply(middle)
    return float(bend.abs().max()) <= 1e-4 * float(above.abs().max() + below.abs().max())


def _shapes(module: nn.Module) -> str:
    shapes = [f"{name} {list(p.shape)}" for name, p in module.named_parameters(recurse=False)]
    return f"{type(module).__name__}: {', '.join(shapes)}"


def listed_mixture(probe: LayerProbe, prefix: str, problem: str) -> Mixture | None:
    """The layer's experts when they are modules alike in a list beside a router; None when there is no such list.

    Args, raises: as `fused_mixture`. What an expert is made of is for the caller to find, from `sample`.
    """
    lists = listed_holders(probe.layer)
    if not lists:
        return None
    path, module = lists[0]
    block_path = path.rpartition(".")[0]
    what = f"{problem}: the list {path} of {len(module)} {type(module[0]).__name__}"
    form = _linears(module[0])
    if any(_linears(expert) != form or type(expert) is not type(module[0]) for expert in module):
        raise CulnigError(f"{what}: its experts are not alike; such a mixture is not supported")
    block = probe.layer.get_submodule(block_path)
    call = recorded_call(probe, block)
    if call is None or not call.args or not isinstance(call.args[0], torch.Tensor):
        raise CulnigError(f"{what} belongs to no block that is called once with tokens; such a form is not supported")
    hidden = int(call.args[0].shape[-1])
    experts = ListedExperts(block, module, f"{prefix}.{path}", (type(module[0]), form))
    tokens = call.args[0].detach().reshape(-1, hidden)
    sample = LayerProbe(module[0], (tokens,), {}, name=f"{problem}: expert 0 of {path}")
    return Mixture(experts, module, path, block_path, hidden, sample)


def _linears(module: nn.Module) -> tuple[Any, ...]:
    return tuple((path, linear_shape(m)) for path, m in module.named_modules() if linear_shape(m) is not None)
