"""culnig_fast itself, in the steps by which it gets faster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, ClassVar

from culnig_fast.architecture import discover
from culnig_fast.attributor import Attributor
from culnig_fast.errors import CulnigError
from harness.batches import Batch
from harness.methods.base import NotAvailable, Plain, Session
from harness.passes import gold_log_p


class Taps(Plain):
    """Autograd taps that score inside the backward pass, numerics in plain torch, on a CPU in compiled code."""

    name: ClassVar[str] = "taps"
    summary: ClassVar[str] = "ours, step 1: taps that score inside the backward, no Triton"
    backend: ClassVar[str] = "reference"
    path: ClassVar[str] = "taps"

    def missing(self, model: Any) -> str:
        """Why this cannot run, or nothing."""
        return ""

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        reason = self.missing(model)
        if reason:
            raise NotAvailable(reason)
        architecture = discover(model)
        # The compiled kernels are what users get on a CPU; on a GPU the first row is the step before the kernels.
        backend = "auto" if architecture.embedding.weight.device.type == "cpu" else self.backend
        try:
            attributor = Attributor(architecture, n_groups=n_groups, backend=backend, path=self.path)
            with contextlib.ExitStack() as stack:
                stack.enter_context(attributor)
                opened = stack.pop_all()
        except CulnigError as error:
            raise NotAvailable(str(error)) from error
        with opened:

            def step(batch: Batch) -> None:
                log_p = gold_log_p(attributor.forward(batch.input_ids, batch.lengths), batch)
                weight = (2 * log_p.detach().double()).exp()
                attributor.backward(log_p, weight=weight, group=batch.groups)

            yield Session(step, lambda: attributor.totals)


class Kernels(Taps):
    """The same taps, numerics in Triton kernels."""

    name: ClassVar[str] = "kernels"
    summary: ClassVar[str] = "ours, step 2: the same taps with Triton kernels"
    backend: ClassVar[str] = "triton"

    def missing(self, model: Any) -> str:
        """See `Taps.missing`."""
        if find_spec("triton") is None:
            return "triton is not installed"
        return "" if model.device.type == "cuda" else "needs a CUDA device"


class Fused(Taps):
    """Fused layers swapped in for the pass; on a GPU with Triton kernels."""

    name: ClassVar[str] = "fused"
    summary: ClassVar[str] = "ours, step 3: whole layers fused, the last one cut to the last position"
    backend: ClassVar[str] = "auto"
    path: ClassVar[str] = "fused"
    settles: ClassVar[bool] = True
