"""Everything of a model but its layers, as the model itself does it.

What a layer is called with (positions, rotations, masks of full and of sliding attention) is what the model calls it
with when it runs on the batch with stand-ins for its layers; so no family's masks are written anew here. What follows
the last layer is run the same way, with a stand-in that returns the last layer's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.fused.fusion import replaced_forward
from culnig_fast.last_position import LastPosition
from culnig_fast.one_sequence import one_sequence_a_row
from culnig_fast.probing.layer import same_tensor


class Call(NamedTuple):
    """What a layer is called with beside its hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Enough(Exception):
    """The last layer has been called; nothing after it is needed."""


StandIn = Callable[[int, torch.Tensor, Call], torch.Tensor]
"""Takes a layer's index, its hidden state and the rest of its call; returns the next hidden state."""


class Surroundings:
    """Embedding and head of a model whose layers run elsewhere.

    Args:
        model: the model.
        layers: its decoder layers.
        embedding: its input embedding.
        tupled: for each layer, whether it returns its hidden state in a tuple or a list.
    """

    def __init__(self, model: Any, layers: Sequence[nn.Module], embedding: Any, tupled: Sequence[bool]) -> None:
        self.model, self.layers, self.embedding = model, layers, embedding
        self.tupled = tuple(tupled)

    def before(self, input_ids: torch.Tensor, **further: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
        """Input of the first layer, and what each layer is called with; the embedding must be loaded.

        Args:
            input_ids: int64 [S, T], right-padded.
            further: inputs that the model is given beside these.

        Returns:
            [S, T, H], and a call a layer.
        """
        hidden: list[torch.Tensor] = []
        calls: list[Call] = []

        def keep(index: int, state: torch.Tensor, call: Call) -> torch.Tensor:
            hidden.append(state)
            calls.append(call)
            if index == len(self.layers) - 1:
                raise _Enough
            return state

        with torch.no_grad(), one_sequence_a_row(), self._standing_in(keep), contextlib.suppress(_Enough):
            self.model(input_ids=input_ids, use_cache=False, **further)
        return hidden[0], calls

    def after(self, state: torch.Tensor, input_ids: torch.Tensor, lengths: torch.Tensor, head: LastPosition) -> Any:
        """Logits [S, vocabulary] of each sample's last position from the last layer's output; the head must be loaded.

        Args:
            state: [S, T, H], or [S, 1, H] of the last positions.
            input_ids, lengths: the batch.
            head: picks the last position.
        """
        last = len(self.layers) - 1
        shape = (*input_ids.shape, self.embedding.weight.shape[1])
        blank = state.detach().new_zeros(shape)  # a tensor of its own: a model may scale its embeddings in place
        with (
            self._standing_in(lambda index, hidden, call: state if index == last else hidden),
            replaced_forward(self.embedding, lambda *args, **kwargs: blank),
        ):
            return head.logits(input_ids, lengths)

    def check_chain(self, input_ids: torch.Tensor) -> None:
        """Raise CulnigError unless each layer reads its predecessor's output, and nothing else depends on outputs."""
        runs: list[list[tuple[torch.Tensor, Call]]] = []
        for fill in (0.0, 1.0):
            seen: list[tuple[torch.Tensor, Call]] = []
            made: list[torch.Tensor] = []

            def fresh(
                index: int, state: torch.Tensor, call: Call, seen: Any = seen, made: Any = made, fill: float = fill
            ) -> torch.Tensor:
                seen.append((state, call))
                made.append(torch.full_like(state, fill + index))
                if index == len(self.layers) - 1:
                    raise _Enough
                return made[-1]

            with torch.no_grad(), self._standing_in(fresh), contextlib.suppress(_Enough):
                self.model(input_ids=input_ids, use_cache=False)
            runs.append(seen)
            chained = all(same_tensor(made[i], seen[i + 1][0]) for i in range(len(seen) - 1))
            if len(seen) != len(self.layers) or not chained:
                raise CulnigError(_unchained(self.model, "reads something else than the layer before it puts out"))
        for (_, one), (_, other) in zip(*runs, strict=True):
            pairs = zip(_tensors((one.args, one.kwargs)), _tensors((other.args, other.kwargs)), strict=True)
            if not all(torch.equal(a, b) for a, b in pairs):
                raise CulnigError(_unchained(self.model, "is called with what other layers computed"))

    @contextlib.contextmanager
    def _standing_in(self, stand_in: StandIn) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for index, layer in enumerate(self.layers):

                def forward(hidden: torch.Tensor, *args: Any, index: int = index, **kwargs: Any) -> Any:
                    out = stand_in(index, hidden, Call(args, kwargs))
                    return (out,) if self.tupled[index] else out

                stack.enter_context(replaced_forward(layer, forward))
            yield


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _unchained(model: Any, how: str) -> str:
    return f"a layer of {type(model).__name__} {how}; such a model cannot be streamed layer by layer, load it whole"
