"""torch's attention on a GPU: without plans for every new shape, and with gradients that are the same bits every time.

cuDNN's attention, which torch prefers on newer cards, takes tenths of a second to plan for a shape that it has not met,
and the batches of a benchmark have hundreds of shapes. The fused backward passes add what tiles of keys contribute to a
query's gradient in the order in which they are done, unless torch is told to be deterministic.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from culnig_fast.process_wide import ProcessWide


def without_cudnn() -> contextlib.AbstractContextManager[None]:
    """Inside the block attention goes to torch's other kernels."""
    return _others


def deterministic() -> contextlib.AbstractContextManager[None]:
    """Inside the block torch's operations are deterministic, or refuse; new memory is not filled for it."""
    return _in_order


@contextlib.contextmanager
def _cudnn_off() -> Iterator[None]:
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


@contextlib.contextmanager
def _determinism_on() -> Iterator[None]:
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        settings.fill_uninitialized_memory = fills


_others, _in_order = ProcessWide(_cudnn_off), ProcessWide(_determinism_on)


WORKSPACE, DETERMINISTIC_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""The variable, and its values, with which torch takes products by cuBLAS for deterministic."""


class SteadyAttention:
    """`scaled_dot_product_attention` and its gradients; on a GPU in one order of additions, where that is asked for.

    Determinism is a setting of the process. Without the variable that torch wants for it, a product that another thread
    asks for meanwhile would be refused; so the variable is what asks for it, and the commands set it.
    """

    def __init__(self) -> None:
        self._strict = os.environ.get(WORKSPACE) in DETERMINISTIC_WORKSPACES

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        """The attention; arguments as for torch's."""
        if query.device.type == "cuda" and self._strict:
            try:
                with deterministic():  # cuDNN's is none of these
                    return F.scaled_dot_product_attention(query, key, value, **options)
            except RuntimeError as error:
                if "determinis" not in str(error).lower():
                    raise
                self._strict = False  # no kernel fits that could be
        with without_cudnn():
            return F.scaled_dot_product_attention(query, key, value, **options)

    def gradients(
        self, attended: torch.Tensor, leaves: Sequence[torch.Tensor], gradient: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Of the leaves, from that of what was attended."""
        strict = gradient.device.type == "cuda" and self._strict
        with deterministic() if strict else contextlib.nullcontext():
            return torch.autograd.grad(attended, leaves, gradient)
