"""Tells the weight of a norm of several dimensions, [heads, head size] in some families, from a projection's matrix."""

from __future__ import annotations

import torch

from culnig_fast.mixtures.probe import recorded_call
from culnig_fast.probing.layer import LayerProbe


def is_norm_weight(probe: LayerProbe, parameter: str) -> bool:
    """Whether the parameter's module puts out [..., *its shape], each element of it reaching its own place alone.

    Args:
        probe: the layer; it is run once, and nothing of it is changed.
        parameter: its path in the layer.
    """
    path, _, name = parameter.rpartition(".")
    module, weight = probe.layer.get_submodule(path), probe.layer.get_parameter(parameter)
    call = recorded_call(probe, module)
    if call is None or not isinstance(call.output, torch.Tensor):
        return False
    if call.output.shape[call.output.dim() - weight.dim() :] != weight.shape:
        return False
    with torch.no_grad():
        for turn in (0, 1):
            marked = (torch.arange(weight.numel(), device=weight.device) % 2 == turn).view(weight.shape)
            changed = {name: torch.where(marked, weight + 1, weight)}
            output = torch.func.functional_call(module, changed, call.args, call.kwargs)
            if not torch.equal(output != call.output, marked.expand_as(output)):
                return False
    return True
