"""One run: models of no width in two depths, methods in interleaved rounds, what a layer adds."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing, write_json
from harness.batches import Batch, make_batch
from harness.environment import environment
from harness.front import say
from harness.host.launches import counted, to_nowhere
from harness.methods import METHODS, NotAvailable, Session
from harness.methods.ours import Kernels
from harness.shapes import SHAPES, Shape, build

_NARROW = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
}
_SAMPLES, _LENGTH = 2, 8
_WARM_UP = 3
"""Steps before the first timing: Triton finds its kernels in them."""


@dataclass
class Case:
    """A method on a shape.

    Attributes:
        method: its name.
        sessions: made ready on the shallow model and on the deep one; none where it cannot run.
        note: why not.
        launches: Triton kernels a step, of each.
        seconds: of each, step by step.
    """

    method: str
    sessions: list[Session] = field(default_factory=list)
    note: str = ""
    launches: list[int] = field(default_factory=list)
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def run(options: argparse.Namespace) -> int:
    """See `host_time.py`."""
    shallow, deep = options.depths
    if not 1 <= shallow < deep or options.repeats < 1:
        raise CulnigError("--depths takes two numbers of layers, the smaller one first; --repeats is at least 1")
    for asked, known in ((options.shapes, SHAPES), (options.methods, METHODS)):
        for name in asked:
            if name not in known:
                raise CulnigError(f"unknown {name!r}; choose from {', '.join(known)}")
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.shapes:
        say(f"{name} …")
        rows += measure(SHAPES[name], options.methods, (shallow, deep), options.repeats, device)
    print(format_rows(rows))
    if options.json is not None:
        document = {
            "environment": environment(device),
            "depths": [shallow, deep],
            "repeats": options.repeats,
            "launched": device.type == "cuda",
            "rows": rows,
        }
        write_json(options.json, document, overwrite=options.overwrite)
    return 0


def measure(
    shape: Shape, methods: Sequence[str], depths: tuple[int, int], repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row a method, `bare` first."""
    narrow = Shape(shape.name, shape.model_type, shape.settings | _NARROW | {"num_hidden_layers": depths[1]})
    batch = make_batch(_SAMPLES, _LENGTH, _NARROW["vocab_size"], device, shortest=3)
    cases = [Case(name) for name in dict.fromkeys(("bare", *methods))]
    with contextlib.ExitStack() as stack:
        switch = None
        if device.type == "cpu":
            switch = stack.enter_context(to_nowhere())
            stack.enter_context(mock.patch.object(Kernels, "missing", lambda method, model: ""))
        for case in cases:
            try:
                for layers in depths:
                    model = build(narrow, device, torch.float32, layers)
                    case.sessions.append(stack.enter_context(METHODS[case.method].open(model, batch.n_groups)))
            except NotAvailable as error:
                case.note, case.sessions = str(error), []
        if switch is not None:
            switch.on = True
        able = [case for case in cases if case.sessions]
        for case in able:
            for session in case.sessions:
                for _ in range(_WARM_UP):
                    session.step(batch)
                with counted() as found:
                    session.step(batch)
                case.launches.append(found.total())
        for _ in range(repeats):
            for case in able:
                for session, seconds in zip(case.sessions, case.seconds, strict=True):
                    seconds.append(_seconds(session, batch))
    return _rows(shape.name, cases, depths)


def _seconds(session: Session, batch: Batch) -> float:
    """How long the host takes to ask for a step; what it asked for is waited for before and after."""
    _wait(batch)
    began = time.perf_counter()
    session.step(batch)
    seconds = time.perf_counter() - began
    _wait(batch)
    return seconds


def _wait(batch: Batch) -> None:
    if batch.input_ids.is_cuda:
        torch.cuda.synchronize(batch.input_ids.device)


def _rows(shape: str, cases: Sequence[Case], depths: tuple[int, int]) -> list[dict[str, Any]]:
    """JSON-ready; a layer's figures are the difference of the two depths over the layers between them.

    Of times the least is taken: a step waits for nothing, and what disturbs the host only adds.
    """
    between, bare, rows = depths[1] - depths[0], None, []
    for case in cases:
        row: dict[str, Any] = {"shape": shape, "method": case.method, "note": case.note}
        row |= {"host_us_per_layer": None, "over_bare": None, "launches_per_layer": None}
        if case.sessions:
            few, many = map(min, case.seconds)
            host = (many - few) / between * 1e6
            bare = host if bare is None else bare
            row |= {
                "host_us_per_layer": host,
                "over_bare": host / bare,
                "launches_per_layer": (case.launches[1] - case.launches[0]) / between,
                "least_step_seconds": [few, many],
            }
        rows.append(row)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [f"{'shape':14} {'method':8} {'host µs a layer':>16} {'÷ bare':>8} {'Triton launches':>16}"]
    for row in rows:
        if row["host_us_per_layer"] is None:
            lines.append(f"{row['shape']:14} {row['method']:8} {row['note']}")
            continue
        figures = f"{row['host_us_per_layer']:16.0f} {row['over_bare']:8.2f} {row['launches_per_layer']:16.1f}"
        lines.append(f"{row['shape']:14} {row['method']:8} {figures}")
    return "\n".join(lines)
