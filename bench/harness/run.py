"""One run of the benchmark, from options to table and JSON."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing, write_json
from harness.batches import make_batch
from harness.budget import default_tokens
from harness.check import Checker
from harness.environment import environment
from harness.kernel_speed import measure_kernels
from harness.memory import METHOD as MEMORY_METHOD
from harness.methods import METHODS, Method
from harness.options import check_numbers, chosen_device
from harness.report import format_kernel, format_table, growth, make_rows
from harness.roofs import ProductRoof
from harness.rounds import Outcome, Say, check_all, time_all
from harness.shapes import SHAPES, build, size_of

SIZES = {
    "cpu": ("tiny-narrow", "tiny", "tiny-wide"),
    "cuda": ("qwen3-0.6b", "llama-3.1-8b", "qwen3-14b", "gemma-3-27b"),
}
TOKEN_FACTORS = (0.25, 0.5, 1.0, 2.0)


def run(options: argparse.Namespace, say: Say) -> int:
    """Check, time, print, write; 1 when a method was refused or failed, else 0.

    Raises:
        CulnigError: an option names something that is not there, or the output exists.
    """
    if options.list:
        print("shapes: ", ", ".join(SHAPES))
        for method in METHODS.values():
            print(f"{method.name:8} {method.summary}")
        return 0
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    device, dtype = chosen_device(options.device), options.dtype
    dtype = getattr(torch, dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    shape = options.shape or ("tiny" if device.type == "cpu" else "llama-3.1-8b")
    _check_names(options, shape)
    shapes = {shape, *SIZES[device.type]} if options.sweep == "size" else {shape}
    tokens = options.tokens or default_tokens(shapes, device, dtype, options.length)
    check_numbers(options, tokens)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    methods = [method for name, method in METHODS.items() if not options.methods or name in {"bare", *options.methods}]
    bench = Bench(methods, device, dtype, options.length, options.repeats, say)
    document: dict[str, Any] = {"environment": environment(device), "rows": [], "kernels": []}
    document["environment"] |= {
        "dtype": str(dtype).removeprefix("torch."),
        "memory": MEMORY_METHOD[device.type],
    }
    swept: list[dict[str, Any]] = []

    def keep(rows: list[dict[str, Any]], main: bool) -> None:
        """What is known so far, on disk: a run that is ended leaves it."""
        if main:
            document["rows"] = rows
        if options.sweep:
            document["sweep"] = {"over": options.sweep, "rows": [*swept, *rows]}
        document["environment"]["product_tflops"] = bench.product_rate / 1e12
        if options.json is not None:
            write_json(options.json, document, overwrite=True)  # what was there has been refused above

    if options.kernels != "without":
        document["kernels"] = measure_kernels(device, dtype)
        for kernel in document["kernels"]:
            print(format_kernel(kernel), flush=True)
        keep([], False)
    for name, budget in () if options.kernels == "alone" else _points(options.sweep, shape, tokens, device):
        main = (name, budget) == (shape, tokens)
        rows = bench.table(name, budget, lambda rows, main=main: keep(rows, main))
        swept += rows
        print(f"\n{bench.title}\n{format_table(rows)}", flush=True)
    if options.sweep:
        by = "tokens" if options.sweep == "tokens" else "layer_parameters"
        document["sweep"] = {"over": options.sweep, "rows": swept, "growth_exponent": growth(swept, by)}
        print(f"\ntime grows as {by} to the power of (1 is linear):")
        for name, exponent in document["sweep"]["growth_exponent"].items():
            print(f"{name:8} {exponent:.2f}")
    if options.json is not None:
        write_json(options.json, document, overwrite=True)
    return int(any(row["status"] in ("refused", "failed") for row in swept))


class Bench:
    """Tables of one process: shapes are checked once, whatever they are timed on."""

    def __init__(
        self,
        methods: Sequence[Method],
        device: torch.device,
        dtype: torch.dtype,
        length: int,
        rounds: int,
        say: Say,
    ) -> None:
        self.methods, self.device, self.dtype = list(methods), device, dtype
        self.length, self.rounds, self.say = length, rounds, say
        self.roof = ProductRoof(device, dtype)
        self.product_rate = 0.0
        self.title = ""
        self._checked: dict[str, dict[str, Outcome]] = {}

    def table(self, shape: str, tokens: int, keep: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
        """JSON-ready rows of one shape and batch; `keep` gets them after every round."""
        if shape not in self._checked:
            self.say(f"{shape}: the truth in float64")
            checker = Checker(SHAPES[shape], self.device, self.dtype)
            self._checked[shape] = check_all(self.methods, checker, self.say)
            del checker
            self._free()
        outcomes = {
            name: Outcome(name, done.status, done.note, done.verdict) for name, done in self._checked[shape].items()
        }
        model = build(SHAPES[shape], self.device, self.dtype)
        size = size_of(model)
        batch = make_batch(max(1, tokens // self.length), self.length, model.config.vocab_size, self.device)

        def after_round(rates: Sequence[float]) -> None:
            self.product_rate = max(self.product_rate, *rates)
            keep(make_rows(shape, outcomes, batch, size, rates))

        rates = time_all(self.methods, outcomes, model, batch, self.roof, self.rounds, self.say, after_round)
        self.title = (
            f"{shape}: {size.total / 1e6:.4g}M parameters, {len(batch)} samples, {batch.tokens} tokens and "
            f"{len(batch) * self.length - batch.tokens} of padding, {str(self.dtype).removeprefix('torch.')} "
            f"on {self.device}, product roof {max(rates) / 1e12:.3g} TFLOP/s, {self.rounds} rounds"
        )
        del model
        self._free()
        return make_rows(shape, outcomes, batch, size, rates)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _check_names(options: argparse.Namespace, shape: str) -> None:
    if shape not in SHAPES:
        raise CulnigError(f"unknown --shape {shape!r}; choose from {', '.join(SHAPES)}")
    unknown = [name for name in options.methods or () if name not in METHODS]
    if unknown:
        raise CulnigError(f"unknown --methods {', '.join(unknown)}; choose from {', '.join(METHODS)}")


def _points(sweep: str | None, shape: str, tokens: int, device: torch.device) -> list[tuple[str, int]]:
    if sweep == "tokens":
        return [(shape, int(tokens * factor)) for factor in TOKEN_FACTORS]
    if sweep == "size":
        return [(name, tokens) for name in dict.fromkeys((*SIZES[device.type], shape))]
    return [(shape, tokens)]
