"""What a decoder layer's projections do, found by running the layer on three tokens.

Names lie and differ between families; behaviour does not. A layer is run once while every projection records its
input, which gives the blocks: the projections that read one tensor, followed by the one that reads what they made.
Then one projection at a time is disturbed and the input of its block's last projection is compared:

* a block that carries a disturbance to a later token is attention, one that does not is an MLP;
* queries act at their own position alone, keys and values at later ones too;
* values, and an MLP's up projection, act linearly: negating them negates the result; keys and gates do not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import Columns, cut, put

TOKENS = 3
DISTURBED = 1


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear projection, quantised or GPT-2's transposed one included; None for the rest."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # Quantisers bring classes of their own. A layer around another (an adapter) is not one: its parts are looked at.
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if type(inputs) is int and type(outputs) is int and not any(True for _ in module.children()):
        return inputs, outputs
    return None


@dataclass
class Projection:
    """One linear projection of a layer as it was called."""

    path: str
    module: nn.Module
    inputs: int
    outputs: int


@dataclass
class Block:
    """Projections that read one tensor, and the projection that reads what became of them."""

    entries: list[Projection]
    exit: Projection

    def describe(self) -> str:
        """E.g. `mlp.gate_proj [64→128], mlp.up_proj [64→128] → mlp.down_proj [128→64]`."""
        entries = ", ".join(_label(entry) for entry in self.entries)
        return f"{entries} → {_label(self.exit)}"


Most = Callable[[float], float]
"""The largest of the values that several processes have, where each sees some columns of a model."""


def one_process(value: float) -> float:
    """`Most` where there is one."""
    return value


class LayerProbe:
    """One decoder layer with the arguments of a recorded call, run again at will.

    Args:
        layer: the decoder layer.
        args, kwargs: what the model called it with on `TOKENS` tokens, batch 1.
        most: what decides where the layer's columns are divided among processes: all must run it equally often.
        name: what messages call it.

    Raises:
        CulnigError: from every method that runs it: it cannot be run by itself, or what it makes of the tokens cannot
            be told.
    """

    def __init__(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        most: Most = one_process,
        name: str = "",
    ) -> None:
        self.layer = layer
        self.name = name or type(layer).__name__
        self.args, self.kwargs = args, kwargs
        self._most = most

    def blocks(self, skip: Iterable[str] = ()) -> tuple[list[Block], list[Projection]]:
        """The blocks in calling order, and the projections that fit into none; what lies under a path of `skip` is not
        looked at.
        """
        skip = tuple(skip)
        calls = [call for call in self._trace() if not any(lies_under(call[0].path, path) for path in skip)]
        blocks: list[Block] = []
        loose: list[Projection] = []
        position = 0
        while position < len(calls):
            end = position + 1
            while end < len(calls) and same_tensor(calls[end][1], calls[position][1]):
                end += 1
            entries = [projection for projection, _ in calls[position:end]]
            if end == len(calls):
                loose += entries
                break
            blocks.append(Block(entries, calls[end][0]))
            position = end + 1
        return blocks, loose

    def is_finite(self, block: Block) -> bool:
        """Whether what the block's exit reads is free of NaN and infinities; no verdict holds where it is not."""
        return self._most(float(not self._exit_input(block, {}).isfinite().all())) == 0

    def mixes_tokens(self, block: Block) -> bool:
        """Whether disturbing the block's entries at one position reaches the exit at a later one."""
        return self._reaches(block, _whole(block), _AFTER)

    def looks_ahead(self, block: Block) -> bool:
        """Whether disturbing the block's entries at one position reaches the exit at an earlier one."""
        return self._reaches(block, _whole(block), _BEFORE)

    def acts_locally(self, block: Block, entry: Projection, columns: Columns) -> bool:
        """Whether these columns reach the exit at their own position and at no later one."""
        place: list[tuple[Projection, Columns]] = [(entry, columns)]
        return self._reaches(block, place, _THERE) and not self._reaches(block, place, _AFTER)

    def acts_linearly(self, block: Block, entry: Projection, columns: Columns) -> bool:
        """Whether negating these columns negates what the exit reads (and that is not zero).

        The columns are brought to a size at which an activation function bends: near 0 every one of them is linear.
        """
        plain = self._exit_input(block, {entry.path: _edit(columns, partial(_resized, size=16.0))})
        negated = self._exit_input(block, {entry.path: _edit(columns, partial(_resized, size=-16.0))})
        size = self._most(float(plain.abs().max()))
        return self._most(float((plain + negated).abs().max())) <= 0.02 * size and size > 0

    def _reaches(self, block: Block, places: list[tuple[Projection, Columns]], where: slice) -> bool:
        plain = self._exit_input(block, {})
        # Both signs: a softmax that is saturated at another token notices only the sign that raises a score.
        for sign in (1.0, -1.0):
            edits = {
                entry.path: _edit(columns, partial(_disturb, sign=sign, where=self._place(entry)))
                for entry, columns in places
            }
            if self._most(float(not torch.equal(plain[where], self._exit_input(block, edits)[where]))) > 0:
                return True
        return False

    def _exit_input(self, block: Block, edits: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with contextlib.ExitStack() as stack:
            for entry in block.entries:
                if entry.path in edits:
                    edit = edits[entry.path]
                    hook = entry.module.register_forward_hook(lambda m, i, output, edit=edit: edit(output))
                    stack.callback(hook.remove)
            hook = block.exit.module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
            stack.callback(hook.remove)
            self.run()
        if not seen:
            raise CulnigError(
                f"{self.name} does not always run its {block.exit.path}, so its structure cannot be resolved"
            )
        return _by_token(seen[0], self._place(block.exit)).float()

    def _place(self, projection: Projection) -> str:
        return f"{self.name}: {projection.path}"

    def _trace(self) -> list[tuple[Projection, torch.Tensor]]:
        calls: list[tuple[Projection, torch.Tensor]] = []
        with contextlib.ExitStack() as stack:
            for path, module in self.layer.named_modules():
                shape = linear_shape(module)
                if shape is None:
                    continue
                projection = Projection(path, module, *shape)
                hook = module.register_forward_pre_hook(
                    lambda m, inputs, projection=projection: calls.append((projection, inputs[0].detach()))
                )
                stack.callback(hook.remove)
            self.run()
        return calls

    def width(self, path: str, tensor: str) -> int:
        """Columns of what the projection at `path` puts out (`tensor` "output") or takes in ("input") here."""
        seen: list[int] = []

        def look(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            seen.append(int((output if tensor == "output" else inputs[0]).shape[-1]))

        hook = self.layer.get_submodule(path).register_forward_hook(look)
        try:
            self.run()
        finally:
            hook.remove()
        return seen[0]

    def run(self) -> Any:
        """What the layer returns for the recorded call."""
        with torch.no_grad():
            return run_or_say(self.layer, self.args, self.kwargs, f"{self.name} cannot be run by itself")


_BEFORE, _THERE, _AFTER = slice(0, DISTURBED), slice(DISTURBED, DISTURBED + 1), slice(DISTURBED + 1, None)


def _whole(block: Block) -> list[tuple[Projection, Columns]]:
    return [(entry, slice(0, entry.outputs)) for entry in block.entries]


def run_or_say(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], problem: str) -> Any:
    """What a module returns; CulnigError when it fails, except for want of memory."""
    try:
        return module(*args, **kwargs)
    except (CulnigError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model's own code raises
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CulnigError(
            f"{problem} ({type(error).__name__}: {reason:.200}), so its structure cannot be resolved"
        ) from error


def _edit(columns: Columns, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        put(output, columns, change(cut(output, columns)))
        return output

    return apply


def _by_token(value: torch.Tensor, where: str) -> torch.Tensor:
    """A tensor of `TOKENS` rows as a matrix; CulnigError when its rows are no tokens."""
    width = value.shape[-1]
    if value.numel() != TOKENS * width:
        raise CulnigError(
            f"{where} has {value.numel() // width} rows for {TOKENS} tokens, so which token a row belongs to, and with "
            "it the layer's structure, cannot be resolved"
        )
    return value.reshape(TOKENS, width)


def _disturb(value: torch.Tensor, sign: float, where: str) -> torch.Tensor:
    """Add to the disturbed position something unlike it, and so large that a softmax over it must notice."""
    value = value.clone(memory_format=torch.contiguous_format)
    tokens = _by_token(value, where)
    pattern = torch.linspace(-1, 1, tokens.shape[1], device=value.device, dtype=torch.float32)
    size = (64 * tokens.float().abs().amax()).clamp(min=1024.0)
    tokens[DISTURBED] += (sign * size * pattern).to(value.dtype)
    return value


def _resized(value: torch.Tensor, size: float) -> torch.Tensor:
    """The value scaled so that its largest element is |size|, with the sign of `size`."""
    largest = value.float().abs().amax()
    return (value.float() * (size / largest.clamp(min=torch.finfo(torch.float32).tiny))).to(value.dtype)


def hidden_state(output: Any) -> Any:
    """What a layer puts out for the next one: what it returns, or the first of a tuple or a list."""
    return output[0] if isinstance(output, (tuple, list)) else output


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both begin at one address and have as many elements."""
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def lies_under(path: str, parent: str) -> bool:
    """Whether a module's or parameter's path is `parent` or within it."""
    return path == parent or path.startswith(f"{parent}.")


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of what was expected; NaN is at infinity."""
    if got.shape != expected.shape:
        return math.inf
    got, expected = got.double(), expected.double()
    result = float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    return math.inf if math.isnan(result) else result


def same_output(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two ways to compute one layer or part of it agree, up to rounding of their dtype."""
    return distance(got, expected) <= 1e-5 + 8 * torch.finfo(expected.dtype).eps


def _label(projection: Projection) -> str:
    return f"{projection.path} [{projection.inputs}→{projection.outputs}]"
