"""A way of scoring as a row of the benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from harness.methods.bare import Bare
from harness.methods.base import NotAvailable, Plain, Session
from harness.peers.lines import lines_of
from harness.peers.methods import MODULES


class Peer(Plain):
    """One file of `methods/`: what its user wrote, run once a step on a model made ready beforehand.

    Attributes:
        name, summary: see `Method`.
        library: the package it is written with.
        note: what a reader of its figures should know.
        lines: what its user writes.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.name: str = module.NAME
        self.summary: str = module.SUMMARY
        self.library: str = module.LIBRARY
        self.note: str = module.NOTE
        self.lines = lines_of(module.scores)
        self._backward: Callable[..., Any] | None = None

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`; its totals are one row, [1, neurons]."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with self._own_backward():
            try:
                prepared = self.module.ready(model)
            except ImportError as error:
                first = (str(error).splitlines() or [""])[0]
                raise NotAvailable(f"{self.library} cannot be imported: {first}") from error
            totals: list[torch.Tensor] = []

            def step(batch: Any) -> None:
                scores = self.module.scores(prepared, batch)[None]
                totals[:] = [totals[0] + scores if totals else scores]

            try:
                yield Session(step, lambda: totals[0])
            finally:
                for parameter in trainable:
                    parameter.requires_grad_(True)

    @contextlib.contextmanager
    def _own_backward(self) -> Iterator[None]:
        """`Tensor.backward` as this library wants it, and afterwards as it was: nnsight's import replaces it."""
        before = torch.Tensor.backward
        torch.Tensor.backward = self._backward or before  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            self._backward = torch.Tensor.backward
            torch.Tensor.backward = before  # type: ignore[method-assign]


PEERS: dict[str, Bare | Peer] = {"bare": Bare(), **{module.NAME: Peer(module) for module in MODULES}}
"""Every row by name, in the table's order."""
