"""What a model calls its layers with: on a few tokens, and at the last positions that it is made for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.last_position import evaluation_mode
from culnig_fast.probing.layer import TOKENS, LayerProbe, Most, one_process, run_or_say
from culnig_fast.probing.rotations import rotation_limit
from culnig_fast.wrappers import input_device

FAR_TOKENS = 16
"""Of a second call, at the last positions that a model is made for: a layer may do something else there."""


@contextlib.contextmanager
def recorded_layers(
    model: nn.Module, layers: list[nn.Module], vocabulary: int, most: Most = one_process, far: bool = False
) -> Iterator[list[LayerProbe]]:
    """Run the model once on three tokens, in evaluation mode, and yield a probe for each of `layers`.

    The model's training flags are restored when the block ends. `most` is the probes'. With `far` there are
    `FAR_TOKENS` tokens, at the last positions that the model is made for.

    Raises:
        CulnigError: the model cannot be run on text alone, or does not run a layer then.
    """
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    device = input_device(model)
    inputs = far_inputs(model, vocabulary, device) if far else {"input_ids": few_tokens(TOKENS, vocabulary, device)}

    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[id(layer)] = (args, kwargs)

    with evaluation_mode(model):
        with contextlib.ExitStack() as stack, torch.no_grad():
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(record, with_kwargs=True).remove)
            run_or_say(model, (), {**inputs, "use_cache": False}, f"{type(model).__name__} cannot be run on text alone")
        unseen = [index for index, layer in enumerate(layers) if id(layer) not in calls]
        if unseen:
            raise CulnigError(
                f"layer {unseen[0]} ({type(layers[unseen[0]]).__name__}) is not run when {type(model).__name__} reads "
                "text alone, so its neurons cannot be found; only decoders that run every layer on text are supported"
            )
        names = [f"layer {index} ({type(layer).__name__})" for index, layer in enumerate(layers)]
        yield [LayerProbe(layer, *calls[id(layer)], most, name) for layer, name in zip(layers, names, strict=True)]


def far_inputs(model: Any, vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Tokens [1, FAR_TOKENS] at the last positions that the model is made for; fewer where it has fewer.

    Where rotations change with the longest position of a run, they stand before that.
    """
    text = model.config.get_text_config(decoder=True)
    limit = rotation_limit(text)
    end = getattr(text, "max_position_embeddings", None) or FAR_TOKENS if limit is None else limit.positions
    count = min(FAR_TOKENS, end)
    inputs = {"input_ids": few_tokens(count, vocabulary, device)}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(end - count, end, device=device)[None]
    return inputs


def few_tokens(count: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(3, 3 + count, device=device) % vocabulary)[None]
