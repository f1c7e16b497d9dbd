"""A checkpoint opened for streaming: its skeleton, where its weights are, and which neurons it has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from culnig_fast.architecture import Architecture, discover_alike, find_layers, layer_kind
from culnig_fast.errors import CulnigError
from culnig_fast.fused.fusion import replaced_forward
from culnig_fast.probing.layer import LayerProbe
from culnig_fast.probing.recording import far_inputs
from culnig_fast.streaming.calls import Surroundings
from culnig_fast.streaming.names import match_buffers, match_names
from culnig_fast.streaming.pieces import Stored, read_stored, tensor_names
from culnig_fast.streaming.shards import Shards
from culnig_fast.streaming.skeleton import build_skeleton
from culnig_fast.streaming.weights import Part, Slot, Weights, part_of


@dataclass(frozen=True)
class StreamedModel:
    """A model of which one layer is in memory at a time.

    Attributes:
        architecture: its neurons.
        surroundings: what it does before its first layer and after its last.
        probes: calls of each layer, on three tokens and at far positions.
        weights: loads and unloads.
        layers: the weights of each decoder layer.
        embedding, head: the weights of the two; one tensor in many models.
        fingerprint: tells this checkpoint from another.
    """

    architecture: Architecture
    surroundings: Surroundings
    probes: tuple[tuple[LayerProbe, LayerProbe], ...]
    weights: Weights
    layers: tuple[Part, ...]
    embedding: Part
    head: Part
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weights.device


def open_streamed(
    folder: str | Path, *, dtype: str = "auto", device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> StreamedModel:
    """Open a checkpoint without loading it.

    Reads one layer of each kind, the embedding and the head, to find the neurons; what is small and belongs to no layer
    (final norm, position embeddings, what the head is preceded by) stays loaded.

    Args:
        folder: configuration and safetensors files.
        dtype: to compute in; `auto` keeps the checkpoint's.
        device: where to compute.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        CulnigError: the checkpoint cannot be read or mapped, or its neurons cannot be found.
    """
    shards = Shards(folder)
    weights = Weights(shards, torch.device(device))
    model = build_skeleton(Path(folder), shards, dtype, weights.device, trust_remote_code)
    decoder, layers = find_layers(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise CulnigError(f"{type(model).__name__} has no output embedding, so no answer has a probability")
    needed = {id(p): p for module in (decoder, embedding, head) for p in module.parameters()}
    names = {id(p): name for name, p in model.named_parameters() if id(p) in needed}
    tensors = match_names(model, {names[key]: tuple(p.shape) for key, p in needed.items()}, shards)
    of = {key: tensors[name] for key, name in names.items()}
    _load_buffers(model, decoder, shards)
    parts = [part_of([layer], of) for layer in layers]
    ends = (part_of([embedding], of), part_of([head], of))
    coming = {(id(slot.module), slot.name) for part in (*parts, *ends) for slot in part}
    staying = tuple(slot for slot in part_of([decoder], of) if (id(slot.module), slot.name) not in coming)
    weights.keep(staying)
    with contextlib.ExitStack() as stack:
        stack.enter_context(weights.loaded(*ends))
        further = stack.enter_context(_arriving(model, set(needed), weights))
        scout = stack.enter_context(_scouting(list(layers), weights, parts))
        architecture = discover_alike(model)
        surroundings = Surroundings(model, list(layers), embedding, scout.tupled())
        probes = tuple(LayerProbe(layer, *scout.calls[index]) for index, layer in enumerate(layers))
    with weights.loaded(ends[0]):
        surroundings.check_chain(_few_tokens(embedding, weights.device))
        far = _far_calls(model, surroundings, list(layers), weights.device)
    fingerprint = shards.fingerprint(tensor_names([*of.values(), *further]))
    calls = tuple(zip(probes, far, strict=True))
    return StreamedModel(architecture, surroundings, calls, weights, tuple(parts), *ends, fingerprint)


@contextlib.contextmanager
def _arriving(model: Any, known: set[int], weights: Weights) -> Iterator[list[Stored]]:
    """Inside the block, what the model runs beside decoder and head is loaded when it is called first, and stays.

    A head may have layers of its own before the output embedding, as BERT's has; a tower for pictures is not run.

    Args:
        model: the skeleton.
        known: ids of the parameters that are brought in otherwise.
        weights: brings in the others.

    Yields:
        what was loaded.
    """
    found: list[Stored] = []

    def arrive(module: nn.Module, path: str, names: list[str]) -> None:
        paths = {name: f"{path}.{name}" if path else name for name in names if module.get_parameter(name).is_meta}
        shapes = {paths[name]: tuple(module.get_parameter(name).shape) for name in paths}
        tensors = match_names(model, shapes, weights.shards)
        weights.keep(tuple(Slot(module, name, tensors[paths[name]]) for name in paths))
        found.extend(tensors.values())

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            names = [name for name, p in module.named_parameters(recurse=False) if p.is_meta and id(p) not in known]
            if names:
                hook = module.register_forward_pre_hook(
                    lambda module, args, path=path, names=names: arrive(module, path, names)
                )
                stack.callback(hook.remove)
        yield found


def _load_buffers(model: Any, decoder: nn.Module, shards: Shards) -> None:
    """Give buffers the values that the checkpoint holds of them, as a router's correction of its scores."""
    saved = {
        id(buffer)
        for module in decoder.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set and buffer.is_floating_point()
    }
    buffers = {name: buffer for name, buffer in model.named_buffers() if id(buffer) in saved}
    stored = match_buffers(model, {name: tuple(buffer.shape) for name, buffer in buffers.items()}, shards)
    for name, pieces in stored.items():
        value = torch.empty(buffers[name].shape, dtype=buffers[name].dtype)
        read_stored(shards, pieces, value)
        buffers[name].copy_(value)


def _few_tokens(embedding: Any, device: torch.device) -> torch.Tensor:
    return (torch.arange(3, 9, device=device) % int(embedding.weight.shape[0])).view(2, 3)


def _far_calls(
    model: Any, surroundings: Surroundings, layers: list[nn.Module], device: torch.device
) -> list[LayerProbe]:
    """Calls of the layers at far positions, all on the embedding's output; the embedding must be loaded."""
    inputs = far_inputs(model, int(surroundings.embedding.weight.shape[0]), device)
    hidden, calls = surroundings.before(**inputs)
    return [LayerProbe(layer, (hidden, *call.args), call.kwargs) for layer, call in zip(layers, calls, strict=True)]


class _Scout:
    """Runs the first layer of each kind for real, its weights loaded when it is called, and lets the others pass."""

    def __init__(self, layers: list[nn.Module], weights: Weights, parts: list[Part]) -> None:
        self.layers, self.weights, self.parts = layers, weights, parts
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._first: dict[Any, int] = {}
        self._tupled: dict[Any, bool] = {}
        self._loaded: int | None = None
        self._stack = contextlib.ExitStack()
        self._forwards = [layer.forward for layer in layers]

    def run(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What layer `index` returns, or its input."""
        self.calls.setdefault(index, (args, kwargs))
        kind = layer_kind(self.layers[index])
        if self._first.setdefault(kind, index) != index:
            return (args[0],) if self._tupled[kind] else args[0]
        if self._loaded != index:
            self.unload()
            self._stack.enter_context(self.weights.loaded(self.parts[index]))
            self._loaded = index
        out = self._forwards[index](*args, **kwargs)
        self._tupled[kind] = isinstance(out, (tuple, list))
        return out

    def tupled(self) -> list[bool]:
        """For each layer, whether it returns a tuple or a list."""
        return [self._tupled[layer_kind(layer)] for layer in self.layers]

    def unload(self) -> None:
        """Let go of the layer that is loaded."""
        self._stack.close()
        self._loaded = None


@contextlib.contextmanager
def _scouting(layers: list[nn.Module], weights: Weights, parts: list[Part]) -> Iterator[_Scout]:
    scout = _Scout(layers, weights, parts)
    with contextlib.ExitStack() as stack:
        stack.callback(scout.unload)
        for index, layer in enumerate(layers):

            def forward(*args: Any, index: int = index, **kwargs: Any) -> Any:
                return scout.run(index, args, kwargs)

            stack.enter_context(replaced_forward(layer, forward))
        yield scout
