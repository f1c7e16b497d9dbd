"""The rows of the table, one file a way of scoring; `scores` is what its user writes."""

from __future__ import annotations

from harness.peers.methods import (
    captum_layers,
    lens_bridge,
    nnsight_trace,
    our_attributor,
    our_layers,
    our_modules,
    plain_hooks,
    tensor_hooks,
)

MODULES = (
    plain_hooks,
    tensor_hooks,
    captum_layers,
    nnsight_trace,
    lens_bridge,
    our_layers,
    our_modules,
    our_attributor,
)
"""In the table's order."""
