"""Activation and gradient of layers' outputs or inputs, in the meaning that Captum gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from culnig_fast.overwriting import remembered
from culnig_fast.tap import tapped

Show = Callable[[int, int, torch.Tensor, torch.Tensor], None]
"""Takes a layer's number, which tensor of a tuple, its activation and its gradient."""


class LayerTaps:
    """Inside the block the layers are hooked; `differentiate` then shows activations beside gradients.

    What a layer puts out goes on through a tap, which shows it as the gradient passes. What a layer takes in may have
    been read by others before, whose part of the gradient belongs to it: such tensors are differentiated by name.

    Args:
        layers: of one model.
        show: called once for each tensor of each layer's last run, where a gradient came.
        of_input: tap what the layers take in, by position, not what they put out.
        copied: hand copies of outputs on, for consumers that overwrite them; of inputs always.
        guarded: raise OverwrittenError where outputs that are handed on themselves are overwritten.
        first_alone: only the first floating tensor of a tuple.

    Attributes:
        seen: of each layer, the tensors of its last run, by their place in the tuple.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        show: Show,
        *,
        of_input: bool,
        copied: bool,
        guarded: bool,
        first_alone: bool,
    ) -> None:
        self.layers, self.show, self.of_input, self.copied = layers, show, of_input, copied
        self._guarded = guarded and not copied
        self.seen: list[dict[int, torch.Tensor]] = [{} for _ in layers]
        self._places = slice(1) if first_alone else slice(None)
        self._anchor = torch.zeros((), requires_grad=True)
        self._forward = True
        self._handles: list[Any] = []
        self._leaves: list[torch.Tensor] = []

    def __enter__(self) -> LayerTaps:
        for number, layer in enumerate(self.layers):
            if self.of_input:
                self._handles.append(layer.register_forward_pre_hook(partial(self._before, number)))
            else:
                self._handles.append(layer.register_forward_hook(partial(self._after, number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for leaf in self._leaves:
            leaf.requires_grad_(False)

    def differentiate(self, objective: torch.Tensor) -> None:
        """Run backward from a scalar, as far down as the layers lie; no `grad` is touched."""
        self._forward = False  # a layer that is run again in backward, to save memory, has no further run
        if not self.of_input:
            torch.autograd.grad(objective, self._anchor, allow_unused=True)
            return
        wanted = [(number, entry, x) for number, run in enumerate(self.seen) for entry, x in run.items()]
        gradients = torch.autograd.grad(objective, [x for *_, x in wanted], allow_unused=True) if wanted else ()
        with torch.no_grad():
            for (number, entry, x), gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    self.show(number, entry, x, gradient)

    def _before(self, number: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        run = self._run_of(number, args)
        for x in run.values():
            if not x.requires_grad:
                self._leaves.append(x.requires_grad_(True))
        return tuple(x.clone() if i in run else x for i, x in enumerate(args))

    def _after(self, number: int, module: nn.Module, args: Any, output: Any) -> Any:
        entries = output if isinstance(output, tuple) else (output,)
        run = self._run_of(number, entries)

        looks = {i: remembered(f"layer {number}", x) for i, x in run.items()} if self._guarded else {}

        def show(entry: int, act: torch.Tensor, grad: torch.Tensor) -> None:
            if entry in looks:
                looks[entry](act)
            if self.seen[number] is run:
                self.show(number, entry, act, grad)

        tap = partial(tapped, anchor=self._anchor, copied=self.copied)
        out = tuple(tap(x, partial(show, i)) if i in run else x for i, x in enumerate(entries))
        return out if isinstance(output, tuple) else out[0]

    def _run_of(self, number: int, entries: tuple[Any, ...]) -> dict[int, torch.Tensor]:
        floating = [i for i, x in enumerate(entries) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        run = {i: entries[i] if self.of_input else entries[i].detach() for i in floating[self._places]}
        if self._forward:
            self.seen[number] = run
        return run
