"""The activations of gated MLPs, by name; free of Triton, so that any machine can ask what is supported."""

from __future__ import annotations

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2")
"""What the kernels compute: SiLU, GELU by tanh, exact GELU, ReLU, ReLU squared."""

_CONFIG_NAMES = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def activation_name(config_name: str) -> str | None:
    """The kernels' name of a configuration's `hidden_act`; None when there is no kernel for it."""
    name = _CONFIG_NAMES.get(config_name, config_name)
    return name if name in ACTIVATIONS else None
