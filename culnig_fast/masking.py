"""Suppress or enhance neurons: for the length of a block by hooks, for good in the weights (CULNIG, section 7)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from culnig_fast.architecture import Architecture, SiteLocation, architecture_of, discover
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import places
from culnig_fast.mixtures.experts import Change
from culnig_fast.modules.columns import scaled_columns
from culnig_fast.modules.neurons import ModuleNeurons
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.probing.layer import linear_shape
from culnig_fast.quantised import device_of, why_not_plain
from culnig_fast.tap import hook_tensor
from culnig_fast.uncompiled import uncompiled
from culnig_fast.wrappers import check_storable, decoder_of


@contextlib.contextmanager
def scaled(model: Any, neurons: NeuronSet | ModuleNeurons, factor: float) -> Iterator[Any]:
    """Multiply the neurons' outputs by `factor` at every position inside the block; yields the model.

    Inside the block `torch.compile` is without effect in this process, for compiled code looks at no hook.

    Args:
        model: a Hugging Face decoder, or the `Architecture` found in it; any module, with `ModuleNeurons`.
        neurons: any set; its neurons are checked against the model before anything is hooked, but columns of
            `ModuleNeurons`, whose number is known when the model runs.
        factor: 0 suppresses, also what is infinite or NaN; 2 enhances.

    Raises:
        CulnigError: the model has no such module, layer or column, or its structure cannot be resolved.
    """
    if isinstance(neurons, ModuleNeurons):
        given = model.model if isinstance(model, Architecture) else model
        with scaled_columns(given, neurons, factor) as same:
            yield same
        return
    architecture = architecture_of(model, divided=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(uncompiled())
        for location, columns in _columns_by_site(architecture, neurons):
            if location.experts is not None:
                handle = location.experts.attach(
                    location.part, location.tensor, _expert_scale(location, columns, factor)
                )
                stack.callback(handle.remove)
                continue
            change = _change(_scale(location, columns, factor), factor)
            handle = hook_tensor(location.module, location.tensor, change)
            stack.callback(handle.remove)
        yield architecture.model


def suppress(model: Any, neurons: NeuronSet | ModuleNeurons) -> contextlib.AbstractContextManager[Any]:
    """Neurons are 0 inside the block; arguments and errors as for `scaled`."""
    return scaled(model, neurons, 0.0)


def enhance(model: Any, neurons: NeuronSet | ModuleNeurons) -> contextlib.AbstractContextManager[Any]:
    """Neurons are doubled inside the block; arguments and errors as for `scaled`."""
    return scaled(model, neurons, 2.0)


def bake(model: Any, neurons: NeuronSet, factor: float = 0.0, *, in_place: bool = False) -> Any:
    """Write an intervention into the weights; `save_pretrained` of the result is an ordinary checkpoint.

    A neuron is an output column of a projection, so its weight row and bias are multiplied (`mlp.act`: the column of
    the projection that reads it). With a factor of 0 or a power of two this equals the hook to the last bit, but for
    routed experts held in 3-D parameters, which run other products while they are hooked: there to rounding.

    Args:
        model: a Hugging Face decoder.
        neurons: any set.
        factor: 0 suppresses, 2 enhances.
        in_place: change `model` itself rather than a copy, which spares the copy's memory.

    Returns:
        the edited model.

    Raises:
        CulnigError: as `scaled`; or weights that are quantised, offloaded or shared between modules, or a model inside
            a bridge.
    """
    given: Any = neurons
    if isinstance(given, ModuleNeurons):
        raise CulnigError("bake writes a NeuronSet into a decoder; change ModuleNeurons by suppress() or scaled()")
    model = decoder_of(model)
    check_storable(model)
    edits = _columns_by_site(discover(model), neurons)
    shared = _shared_parameters(model)
    for location, _ in edits:
        kind = None if location.experts is not None else why_not_plain(location.module)
        if kind is not None:
            raise CulnigError(
                f"{location.module_path} is quantised ({kind}) and cannot be edited; load the model unquantised, or "
                "use suppress() or enhance()"
            )
        if any(weight.is_meta for weight in _weights(location)):
            raise CulnigError(
                f"{location.module_path} is offloaded, so an edit of its weights would be lost; load the model without "
                "device_map, or use suppress() or enhance()"
            )
        if any(id(weight) in shared for weight in _weights(location)):
            raise CulnigError(
                f"{location.module_path} shares its weight with another module, so an edit would change both; "
                "use suppress() instead"
            )
    result = model if in_place else copy.deepcopy(model)
    with torch.no_grad():
        for location, columns in edits:
            if location.experts is not None:
                edits_of = _expert_columns(location, columns)
                location.experts.scale(result, location.part, location.tensor, edits_of, factor)
                continue
            module: Any = result.get_submodule(location.module_path)
            index = torch.tensor(places(location.columns), device=module.weight.device)[columns]
            rows_are_outputs = not isinstance(module, Conv1D)
            along = 0 if rows_are_outputs == (location.tensor == "output") else 1
            _multiply(module.weight, along, index, factor)
            if location.tensor == "output" and module.bias is not None:
                _multiply(module.bias, 0, index, factor)
    return result


def _columns_by_site(architecture: Architecture, neurons: NeuronSet) -> list[tuple[SiteLocation, list[int]]]:
    """The sites that hold neurons of the set, each with its columns; every neuron is checked first."""
    layout = architecture.layout(sorted({location.site.module_name for location in architecture.locations}))
    neurons.flat(layout)
    columns: dict[tuple[str, int], list[int]] = {}
    for neuron in neurons:
        columns.setdefault((neuron.module_name, neuron.layer_idx), []).append(neuron.neuron_idx)
    return [
        (location, columns[location.site.module_name, location.site.layer_idx])
        for location in architecture.locations
        if (location.site.module_name, location.site.layer_idx) in columns
    ]


def _scale(location: SiteLocation, columns: list[int], factor: float) -> torch.Tensor:
    """Factors for the whole tensor, 1 where nothing changes; on the module's device from the start."""
    device = _device(location)
    shape = linear_shape(location.module)
    if shape is None:
        raise CulnigError(f"{location.module_path} is no linear projection")
    width = shape[0] if location.tensor == "input" else shape[1]
    if (held := location.held) is not None:  # what other processes have is theirs to scale
        width, columns = len(held), [column - held.start for column in columns if column in held]
    scale = torch.ones(width, device=device)
    scale[torch.tensor(places(location.columns), device=device)[columns]] = factor
    return scale


def _device(location: SiteLocation) -> torch.device:
    device = device_of(location.module)
    # Weights that are fetched when their layer runs are on no device until then.
    return torch.device("cpu") if device.type == "meta" else device


def _change(scale: torch.Tensor, factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Multiplies a tensor [..., K] by `scale` [K]."""
    if factor != 0:
        return lambda value: value * scale.to(value)
    silent = (scale == 0).nonzero().flatten()  # times 0, what is infinite or NaN is NaN
    return lambda value: value.index_fill(-1, silent.to(value.device), 0.0)


def _weights(location: SiteLocation) -> list[nn.Parameter]:
    if location.experts is not None:
        return location.experts.weights(location.part)
    return [location.module.weight]


def _expert_columns(location: SiteLocation, columns: list[int]) -> list[tuple[int, int]]:
    """(expert, column of its projection's tensor) of each of the site's neurons."""
    each = places(location.columns)
    return [(column // len(each), each[column % len(each)]) for column in columns]


def _expert_scale(location: SiteLocation, columns: list[int], factor: float) -> Change:
    """Multiplies the neurons of whichever expert a row is of."""
    if location.experts is None:
        raise CulnigError(f"{location.module_path} holds no routed experts")
    scale = torch.ones(location.experts.count, location.experts.columns(location.part, location.tensor))
    experts, column = torch.tensor(_expert_columns(location, columns)).T
    scale[experts, column] = factor
    scale = scale.to(_device(location))
    if factor != 0:
        return lambda values, routing: values * scale.to(values)[routing.experts]
    silent = scale == 0
    return lambda values, routing: values.masked_fill(silent.to(values.device)[routing.experts], 0.0)


def _multiply(tensor: nn.Parameter, along: int, index: torch.Tensor, factor: float) -> None:
    if factor == 0:
        tensor.index_fill_(along, index, 0.0)  # also what is infinite or NaN
    else:
        tensor.index_copy_(along, index, tensor.index_select(along, index) * factor)


def _shared_parameters(model: Any) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
