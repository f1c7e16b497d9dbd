"""A training leaves nothing behind but the weights that it was to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextlib.contextmanager
def without_traces(model: Any) -> Iterator[None]:
    """After the block the model's attributes, hooks, gradients and configuration are as they were before.

    A Trainer switches the cache off in the configuration, turns checkpointing on in the layers and hooks the
    embedding for it, wraps `forward` for autocast, and drops every gradient. Weights are not looked at.
    """
    modules = list(model.modules())
    attributes = [(module, dict(vars(module))) for module in modules]
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    attributes += [(config, dict(vars(config))) for config in configs.values() if hasattr(config, "__dict__")]
    hooks = [(module, name, set(getattr(module, name))) for module in modules for name in _HOOKS]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for module, name, kept in hooks:
            held = getattr(module, name)
            for added in [key for key in held if key not in kept]:
                del held[added]
        for holder, values in attributes:
            vars(holder).clear()
            vars(holder).update(values)
        for parameter, flag, gradient in parameters:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
