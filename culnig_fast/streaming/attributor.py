"""Scores blocks of batches, one layer of the model in memory at a time.

Forward keeps each layer's input; the head gives the gradient of the last one's output; then every layer, last to first,
runs again from its input with a graph, and its neurons are scored as its gradient passes. Batches are
added to a layer's totals in the order given, whatever block they fall into, so the block's size changes no bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.attributor import Attributor
from culnig_fast.batching import Batch
from culnig_fast.errors import CulnigError
from culnig_fast.fused.fusion import fuse_layer, join_layer, same_model
from culnig_fast.fused.joining import own_memory
from culnig_fast.fused.layer import FusedLayer
from culnig_fast.fused.parts import LayerParts
from culnig_fast.fused.trace import NotFusable
from culnig_fast.last_position import LastPosition
from culnig_fast.overwriting import overwritten
from culnig_fast.positions import counted
from culnig_fast.probing.layer import hidden_state
from culnig_fast.streaming.block import BlockBatch, States
from culnig_fast.streaming.calls import Call
from culnig_fast.streaming.model import StreamedModel
from culnig_fast.tap import attach_taps

Run = Callable[[torch.Tensor, Call], torch.Tensor]
"""A layer in memory: hidden state in, hidden state out."""


class Objective(NamedTuple):
    """What is differentiated: a scalar a sample [S], its weight [S], and its row of the totals [S]."""

    value: torch.Tensor
    weight: torch.Tensor | None
    group: torch.Tensor | None


class StreamedAttributor(Attributor):
    """`Attributor` for a model larger than the device; `run_block` takes the place of `forward` and `backward`.

        with StreamedAttributor(open_streamed(folder)) as attributor:
            attributor.run_block(batches, objective)
        attributor.totals

    Args:
        streamed: the model.
        options: as for `Attributor`, except `recompute`, which is what streaming does.

    Raises:
        CulnigError: an option is unknown.
    """

    def __init__(self, streamed: StreamedModel, **options: Any) -> None:
        super().__init__(streamed.architecture, **options)
        self.streamed = streamed
        self._parts: dict[int, LayerParts] = {}
        self._copied: dict[int, list[SiteLocation]] = {}
        self._tried = False
        self._layer_scoring = self._scorer.fused(self.locations)
        self._totals.device = streamed.device

    def __enter__(self) -> StreamedAttributor:
        if self._head is not None:
            raise CulnigError("this attributor is in use already; leave its block first or make another")
        self._head = LastPosition(self.architecture.model, self.architecture.head)
        self._stack.callback(self._head.remove)
        self._stack.callback(self.streamed.weights.close)
        try:
            if not self._tried:
                self.fusion.last_position = self._may_cut()
                self._tried = True
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, *, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Not for a streamed model, which runs layer by layer."""
        raise CulnigError("a streamed model runs in blocks of batches; call run_block")

    def run_block(
        self,
        batches: Sequence[Batch],
        objective: Callable[[int, torch.Tensor], Objective],
        *,
        clamp_below_zero: bool = False,
        positions: Sequence[torch.Tensor] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Score batches together, reading each layer's weights twice.

        Args:
            batches: right-padded, on the compute device.
            objective: takes a batch's number and its float32 logits [S, vocabulary] at each last real position.
            clamp_below_zero: replace negative weighted scores by 0 (control sets).
            positions: bool [S, T] of each batch; when given, scores are reduced over these real positions alone. From
                the first such block on, layers run on taps, and `fusion` says so.
            tick: called after each pass through a layer, `passes` times.

        Raises:
            CulnigError: called outside the `with` block, a weight cannot be read, path='fused' and no layer is, or
                positions mark no real token of a sample or come with path='fused' or padding='zero'.
        """
        if self._head is None:
            raise CulnigError("use the attributor inside its `with` block")
        weights, layers = self.streamed.weights, self.streamed.layers
        block = [BlockBatch(batch) for batch in batches]
        if positions is not None:
            self._mask()
            for one, marked in zip(block, positions, strict=True):
                one.keep = counted(marked, one.batch.lengths)
        states = States(block, self.streamed.device)
        with weights.loaded(self.streamed.embedding):
            weights.ahead(layers[0])
            for number, one in enumerate(block):
                hidden, one.calls = self.streamed.surroundings.before(one.batch.input_ids)
                states.put(0, number, hidden)
        for index in range(len(layers)):
            self._forward(index, block, states)
            tick()
        self._choice.check(self.architecture.model, bool(self._parts), self.fusion.reasons)
        self._turn(block, objective)
        for index in reversed(range(len(layers))):
            self._backward(index, block, states, clamp_below_zero)
            tick()

    @property
    def passes(self) -> int:
        """Passes through a layer that a block takes."""
        return 2 * len(self.streamed.layers)

    def _forward(self, index: int, block: Sequence[BlockBatch], states: States) -> None:
        layers = self.streamed.layers
        with self._resident(index) as run, torch.no_grad():
            self.streamed.weights.ahead(layers[index + 1] if index + 1 < len(layers) else self.streamed.head)
            for number, one in enumerate(block):
                self._begin(one.batch, one.keep)
                out = run(states.get(index, number), one.calls[index])
                if index + 1 < len(layers):
                    states.put(index + 1, number, out)
                else:
                    one.end = out

    def _turn(self, block: Sequence[BlockBatch], objective: Callable[[int, torch.Tensor], Objective]) -> None:
        """The head: from the last layer's outputs to their gradients."""
        with self.streamed.weights.loaded(self.streamed.head):
            self.streamed.weights.ahead(self.streamed.layers[-1])
            for number, one in enumerate(block):
                assert one.end is not None
                leaf = one.end.detach().requires_grad_(True)
                with torch.enable_grad():
                    value, one.weight, one.group = objective(number, self._logits(leaf, one.batch))
                    torch.autograd.backward(value.sum())
                one.end = leaf.grad

    def _backward(self, index: int, block: Sequence[BlockBatch], states: States, clamp_below_zero: bool) -> None:
        last = index == len(self.streamed.layers) - 1
        with self._resident(index) as run:
            if index:
                self.streamed.weights.ahead(self.streamed.layers[index - 1])
            for number, one in enumerate(block):
                self._begin(one.batch, one.keep)
                leaf = states.get(index, number).detach().requires_grad_(True)
                gradient = one.end if last else states.get(index + 1, number)
                with torch.enable_grad():
                    value = _Arriving.apply(run(leaf, one.calls[index]), gradient)
                self._go_back(value, one.weight, one.group, clamp_below_zero)
                if last:
                    one.end = None
                if index:
                    states.put(index, number, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        states.drop(index + 1)

    def _leave_fused(self) -> None:
        self.fusion.last_position = False  # nothing is in the model between layers

    def _begin(self, batch: Batch, keep: torch.Tensor | None = None) -> None:
        self._scorer.begin(batch.lengths, batch.input_ids.shape[1], keep)

    def _logits(self, state: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert self._head is not None
        logits: torch.Tensor = self.streamed.surroundings.after(state, batch.input_ids, batch.lengths, self._head)
        return logits

    @contextlib.contextmanager
    def _resident(self, index: int) -> Iterator[Run]:
        """A layer with its weights, fused where it can be and tapped where not."""
        # The stack is left after the weights: once those are gone, taking joined projections apart copies nothing.
        with contextlib.ExitStack() as stack, self.streamed.weights.loaded(self.streamed.layers[index]):
            yield self._running(index, stack)

    def _running(self, index: int, stack: contextlib.ExitStack) -> Run:
        layer = self.architecture.layers[index]
        stand_in = self._fused_layer(index, stack)
        if stand_in is None:
            on_taps = [location for location in self.locations if location.site.layer_idx == index]
            if index not in self._copied:
                self._copied[index] = overwritten(on_taps, lambda: self._there_and_back(index))
            for handle in attach_taps(on_taps, self._on_tap, copied=self._copied[index]):
                stack.callback(handle.remove)
        called: Callable[..., Any] = layer if stand_in is None else stand_in

        def run(hidden: torch.Tensor, call: Call) -> torch.Tensor:
            out: torch.Tensor = hidden_state(called(hidden, *call.args, **call.kwargs))
            return out

        if stand_in is not None and index == len(self.streamed.layers) - 1:
            stand_in.last_position = self.fusion.last_position
        return run

    def _there_and_back(self, index: int) -> None:
        """The layer's recorded call, and a gradient through it."""
        probe, _ = self.streamed.probes[index]
        hidden, *further = probe.args
        out = self.architecture.layers[index](hidden.detach().requires_grad_(True), *further, **probe.kwargs)
        torch.autograd.backward(hidden_state(out).sum())

    def _fused_layer(self, index: int, stack: contextlib.ExitStack) -> FusedLayer | None:
        """The layer's stand-in, proved when its weights are in memory for the first time; None where it has none."""
        scoring, first = self._layer_scoring, index == 0
        if (reason := self._choice.why_taps()) is not None:
            self._parts.pop(index, None)
            self.fusion.reasons[index], self.fusion.layers = reason, tuple(sorted(self._parts))
            return None
        if index in self._parts:
            with own_memory():
                return join_layer(self._parts[index], scoring, first, stack)
        if index in self.fusion.reasons:
            return None
        sites = [location for location in self.architecture.locations if location.site.layer_idx == index]
        try:
            with torch.no_grad(), own_memory():
                fused = fuse_layer(self.streamed.probes[index], sites, scoring, set(), first, stack)
        except NotFusable as error:
            self.fusion.reasons[index] = str(error)
            return None
        self._parts[index] = fused.parts
        self.fusion.layers = tuple(sorted(self._parts))
        return fused

    def _may_cut(self) -> bool:
        """Whether the last layer may leave out all positions but the last; tried on a short sample.

        Once, before a block's states take their memory: the head and a layer are in memory together.
        """
        last, (probe, _) = len(self.streamed.layers) - 1, self.streamed.probes[-1]
        weights = self.streamed.weights
        with (
            weights.loaded(self.streamed.head),
            contextlib.ExitStack() as stack,
            weights.loaded(self.streamed.layers[last]),
            torch.no_grad(),
        ):
            layer = self._fused_layer(last, stack)
            if layer is None:
                return False
            hidden = probe.args[0]
            ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=self.streamed.device)
            batch = Batch(ids, torch.tensor([hidden.shape[1] - 1], device=ids.device), torch.zeros(1))
            answers = []
            for cut in (False, True):
                layer.last_position = cut
                self._begin(batch)
                out = layer(*probe.args, **probe.kwargs)
                answers.append(self._logits(hidden_state(out), batch))
            return same_model(answers[1], answers[0], self.architecture.embedding.weight.dtype)


class _Arriving(torch.autograd.Function):
    """A zero a sample whose gradient with respect to `out` is a gradient that is known already."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return out.new_zeros(out.shape[0])

    @staticmethod
    def backward(ctx: Any, one: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None
