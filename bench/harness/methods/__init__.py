"""The rows of the table, one file a method."""

from __future__ import annotations

from harness.methods.authors import Authors
from harness.methods.bare import Bare
from harness.methods.base import Method, NotAvailable, Session
from harness.methods.captum_layers import Captum
from harness.methods.captum_reduced import CaptumReduced
from harness.methods.compiled import Compile
from harness.methods.hooks import Hooks
from harness.methods.ours import Fused, Kernels, Taps

METHODS: dict[str, Method] = {
    method.name: method
    for method in (Bare(), Authors(), Hooks(), Compile(), Captum(), CaptumReduced(), Taps(), Kernels(), Fused())
}
"""Every method by name, in the table's order."""

__all__ = ["METHODS", "Method", "NotAvailable", "Session"]
