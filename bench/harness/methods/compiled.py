"""torch.compile on the best plain form that compiles: one graph a layer, scores leaving as gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from harness.batches import Batch
from harness.methods.base import NotAvailable, Plain, Session
from harness.passes import add_scores, frozen_model, gold_log_p
from harness.sites import find_sites


class _Sink(torch.autograd.Function):
    """An identity on an activation [S, T, K]; its scores [S, K] come out as the gradient of `sink`.

    `retain_grad` cannot be traced, so the plain way breaks the graph at every projection. A gradient that is
    really a score needs no side effect: the compiler sees one function and fuses product and maximum.
    """

    @staticmethod
    def forward(ctx: Any, activation: torch.Tensor, sink: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(activation, padded)
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        activation, padded = ctx.saved_tensors
        work = torch.float64 if activation.dtype == torch.float64 else torch.float32
        product = activation.to(work) * grad.to(work)
        return grad, product.masked_fill(padded[:, :, None], -torch.inf).amax(1), None


class _Scored(nn.Module):
    """A projection whose output passes a sink."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sink: torch.Tensor
        self.padded: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _Sink.apply(self.inner(x), self.sink, self.padded)
        return output


class Compile(Plain):
    """Every decoder layer compiled by itself, so the graph is built once for layers that are alike."""

    name: ClassVar[str] = "compile"
    summary: ClassVar[str] = "the same under torch.compile, layer by layer"
    settles: ClassVar[bool] = True

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        sites = find_sites(model)
        work = torch.float64 if model.dtype == torch.float64 else torch.float32
        with frozen_model(model) as last_logits, contextlib.ExitStack() as stack:
            wrapped: dict[Any, _Scored] = {
                module: _Scored(module) for module in dict.fromkeys(site.module for site in sites)
            }
            for path, module in list(model.named_modules()):
                if module in wrapped:
                    parent, _, child = path.rpartition(".")
                    owner = model.get_submodule(parent)
                    setattr(owner, child, wrapped[module])
                    stack.callback(setattr, owner, child, module)
            for layer in model.model.layers:
                # A graph that breaks would run in part uncompiled under the name of compiled.
                layer.compile(dynamic=False, fullgraph=True)
                stack.callback(setattr, layer, "_compiled_call_impl", None)
            totals = [
                torch.zeros(n_groups, s.columns.stop - s.columns.start, dtype=torch.float64, device=model.device)
                for s in sites
            ]

            def step(batch: Batch) -> None:
                padded = torch.arange(batch.longest, device=model.device) >= batch.lengths[:, None]
                for inner, scored in wrapped.items():
                    width = inner.out_features
                    scored.sink = torch.zeros(len(batch), width, dtype=work, device=model.device, requires_grad=True)
                    scored.padded = padded
                log_p = gold_log_p(last_logits(batch), batch)
                try:
                    log_p.sum().backward()
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    raise _not_compiled(error) from error
                weight = (2 * log_p.detach().double()).exp()
                for site, total in zip(sites, totals, strict=True):
                    scores = wrapped[site.module].sink.grad
                    assert scores is not None
                    add_scores(total, scores[:, site.columns], weight, batch)

            yield Session(_catching(step), lambda: torch.cat(totals, dim=1))


def _catching(step: Any) -> Any:
    """The step, with a failure of the compiler told apart from a failure of the method."""

    def run(batch: Batch) -> None:
        try:
            step(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _not_compiled(error) from error

    return run


def _not_compiled(error: Exception) -> NotAvailable:
    lines = str(error).strip().splitlines()
    return NotAvailable(f"torch.compile failed: {type(error).__name__}: {lines[0] if lines else ''}"[:200])
