"""Captum's calling convention: gradient × activation of layers, whole or reduced. Captum itself is not needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from culnig_fast import backend as backends
from culnig_fast.errors import CulnigError
from culnig_fast.interop.layer_taps import LayerTaps, Show
from culnig_fast.last_position import frozen_parameters
from culnig_fast.modules.attributor import overwrites
from culnig_fast.modules.reduction import checked_batch, reduced
from culnig_fast.modules.sites import ModuleSite
from culnig_fast.overwriting import OverwrittenError
from culnig_fast.positions import check_reduction
from culnig_fast.tap import was_overwritten
from culnig_fast.uncompiled import uncompiled
from culnig_fast.wrappers import module_of, named_by_torch, unwrapped

Product = torch.Tensor | tuple[torch.Tensor, ...]


class LayerActGrad:
    """Stands in for `captum.attr.LayerGradientXActivation`.

        LayerActGrad(model, [model.conv1, model.fc]).attribute(images, target=3)              # what Captum returns
        LayerActGrad(model, model.fc).attribute_reduced(tokens, target=3, reduction="max")    # [batch, neurons]

    The model runs in the mode that it is in, once a call; its parameters are frozen meanwhile, so nothing is kept for
    gradients of weights and no `grad` is touched. Hooks are gone after each call, also after an error.

    Args:
        model: a module, or a function that runs one, called with inputs and additional arguments.
        layers: modules of it, or their paths; one alone gives results that are no list.

    Raises:
        CulnigError: no layers, or a path that the model does not have.
    """

    def __init__(self, model: Callable[..., Any], layers: nn.Module | str | Sequence[nn.Module | str]) -> None:
        self.wrapper, self.model = model, unwrapped(model)
        self.alone = not isinstance(layers, (list, tuple))
        given: list[Any] = list(layers) if isinstance(layers, (list, tuple)) else [layers]
        if not given:
            raise CulnigError("no layer was given; name the modules to attribute to")
        self.layers = [self._module(layer) for layer in given]
        self.names = [self._name(layer, number) for number, layer in enumerate(self.layers)]
        # Whether the model writes over what its layers hand on; the first run tells where no module says so.
        self._copied = overwrites(self.model) if isinstance(self.model, nn.Module) else False
        self._looked = False

    def attribute(
        self,
        inputs: torch.Tensor | tuple[torch.Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Activation × gradient of every neuron at every position.

        Args:
            inputs: a tensor, or a tuple of tensors, of batch first.
            target: which output: an int, one a sample (list or tensor), a tuple for outputs of more dimensions, or
                one tuple a sample; None for one output a sample.
            additional_forward_args: further arguments of the model, one or a tuple.
            attribute_to_layer_input: score what the layers take in; its gradient is that of all who read it, as
                Captum's is, so that all layers' gradients are held until the last one is known.

        Returns:
            of each layer a tensor of its output's shape, or a tuple where the layer gives several; an entry
            that the output does not depend on is 0. Of a layer that runs several times, the last.

        Raises:
            CulnigError: the target does not fit the output, or no gradient came to a layer.
        """
        found: dict[int, dict[int, torch.Tensor]] = {}

        def multiply(layer: int, entry: int, act: torch.Tensor, grad: torch.Tensor) -> None:
            found.setdefault(layer, {})[entry] = act * grad

        seen = self._run(inputs, target, additional_forward_args, attribute_to_layer_input, multiply, copied=True)
        self._check_reached(found)
        results: list[Product] = []
        for number, shapes in enumerate(seen):
            parts = tuple(
                found[number][entry] if entry in found[number] else torch.zeros_like(shape)
                for entry, shape in shapes.items()
            )
            results.append(parts if len(parts) > 1 else parts[0])
        return results[0] if self.alone else results

    def attribute_reduced(
        self,
        inputs: torch.Tensor | tuple[torch.Tensor, ...],
        target: Any = None,
        reduction: str = "max",
        additional_forward_args: Any = None,
        *,
        attribute_to_layer_input: bool = False,
        dim: int | Sequence[int] = -1,
        lengths: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> torch.Tensor | list[torch.Tensor]:
        """One score a neuron and sample: what `attribute` returns, reduced over positions without ever being made.

        Args:
            inputs, target, additional_forward_args, attribute_to_layer_input: as for `attribute`.
            reduction: `max`, `sum`, `mean`, `absmax` or `last`.
            dim: the dimension that counts neurons, one for all layers or one each: -1, or 1 for convolutions.
            lengths: int64 [batch] real positions of each sample; None means all.
            positions: bool [batch, T], the positions that count; None means all real ones.
            backend: see `backend.resolve`.

        Returns:
            float32 [batch, neurons] of each layer (float64 in a float64 model), of the first tensor where a layer
            gives several.

        Raises:
            CulnigError: as `attribute`; also for a layer without [batch, ..., neurons].
        """
        check_reduction(reduction)
        dims = [dim] * len(self.layers) if isinstance(dim, int) else list(dim)
        if len(dims) != len(self.layers):
            raise CulnigError(f"{len(dims)} dims were given for {len(self.layers)} layers; give one, or one each")
        batch = checked_batch(len(inputs[0] if isinstance(inputs, tuple) else inputs), lengths, positions)
        sites = [ModuleSite(name, dim=one) for name, one in zip(self.names, dims, strict=True)]
        ops, found = backends.resolve(backend), dict[int, torch.Tensor]()

        def score(layer: int, entry: int, act: torch.Tensor, grad: torch.Tensor) -> None:
            found[layer] = reduced(sites[layer], act, grad, batch, ops, reduction)

        call = (inputs, target, additional_forward_args, attribute_to_layer_input, score)
        try:
            self._run(*call, copied=self._copied, guarded=not self._looked, first_alone=True)
        except (RuntimeError, OverwrittenError) as error:
            if not (isinstance(error, OverwrittenError) or was_overwritten(error)):
                raise
            self._copied = True
            self._run(*call, copied=True, first_alone=True)
        self._looked = True
        self._check_reached(found)
        return found[0] if self.alone else [found[number] for number in range(len(self.layers))]

    def _run(
        self,
        inputs: Any,
        target: Any,
        further: Any,
        of_input: bool,
        show: Show,
        *,
        copied: bool,
        guarded: bool = False,
        first_alone: bool = False,
    ) -> list[dict[int, torch.Tensor]]:
        """Forward and backward with taps on; of each layer, the tensors tapped."""
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        more = further if isinstance(further, tuple) else () if further is None else (further,)
        taps = LayerTaps(self.layers, show, of_input=of_input, copied=copied, guarded=guarded, first_alone=first_alone)
        with contextlib.ExitStack() as stack:
            if isinstance(self.model, nn.Module):
                stack.enter_context(frozen_parameters(self.model))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(uncompiled())
            stack.enter_context(taps)
            chosen = chosen_outputs(self.model(*given, *more), target)
            if not chosen.requires_grad:
                raise CulnigError(f"the output depends on none of {', '.join(self.names[:3])}; name layers that ran")
            taps.differentiate(chosen.sum())
        return taps.seen

    def _check_reached(self, found: dict[int, Any]) -> None:
        missing = [name for number, name in enumerate(self.names) if number not in found]
        if missing:
            raise CulnigError(f"no gradient came to {', '.join(missing[:3])}: the output does not depend on it")

    def _module(self, layer: nn.Module | str) -> nn.Module:
        layer = module_of(layer)
        if isinstance(layer, nn.Module):
            return layer
        modules: dict[str, nn.Module] = dict(self.model.named_modules()) if isinstance(self.model, nn.Module) else {}
        path, end = named_by_torch(self.wrapper, layer, modules)
        if end == "input":
            raise CulnigError(f"{layer!r} is what the layer takes in; name it alone, and attribute_to_layer_input=True")
        if path not in modules:
            raise CulnigError(f"the model has no module {layer!r}; named_modules() lists them")
        return modules[path]

    def _name(self, layer: nn.Module, number: int) -> str:
        """A layer's path, for messages."""
        named = self.model.named_modules() if isinstance(self.model, nn.Module) else ()
        return next((name for name, module in named if module is layer and name), f"layer {number}")


def chosen_outputs(output: torch.Tensor, target: Any) -> torch.Tensor:
    """[batch] the output that is asked for of each sample, by Captum's rules.

    Raises:
        CulnigError: the target does not fit.
    """
    samples = output.shape[0] if output.dim() else 0
    if target is None:
        if output.numel() != samples or not samples:
            raise CulnigError(f"the model returns {list(output.shape)}; give a target, which output is meant")
        return output.reshape(samples)
    if isinstance(target, torch.Tensor):
        target = target.item() if target.numel() == 1 else target.tolist()
    try:
        if isinstance(target, (int, tuple)):
            where = (slice(None), target) if isinstance(target, int) else (slice(None), *target)
            chosen = output[where]
        else:
            places = [(row, one) if isinstance(one, int) else (row, *one) for row, one in enumerate(target)]
            chosen = torch.stack([output[place] for place in places])
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CulnigError(f"the target {target!r:.60} does not fit an output of {list(output.shape)}") from error
    if chosen.shape != (samples,):
        raise CulnigError(f"the target {target!r:.60} leaves {list(chosen.shape)} of an output of {list(output.shape)}")
    return chosen
