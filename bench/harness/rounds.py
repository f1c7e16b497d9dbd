"""Times methods against each other in interleaved rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.batches import Batch
from harness.check import Checker, Verdict
from harness.clock import synchronize
from harness.memory import peak_above
from harness.methods import Method, NotAvailable
from harness.roofs import ProductRoof
from harness.sites import find_sites

_LEAST_SECONDS = 0.1
"""A timing covers at least this much work; shorter steps are run several times."""

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What one method did.

    Attributes:
        method: its name.
        status: `timed`, `refused` (wrong scores), `not available`, `does not fit` or `failed`.
        note: the reason, or what was scaled.
        verdict: of the check, where there was one.
        seconds: of one step on the whole batch, by round; None in rounds that it sat out.
        peak: bytes above the weights.
        steps: steps in one timing.
        scale: what a timing is multiplied by, when it ran on part of the batch.
    """

    method: str
    status: str = "timed"
    note: str = ""
    verdict: Verdict | None = None
    seconds: list[float | None] = field(default_factory=list)
    peak: int | None = None
    steps: int = 1
    scale: float = 1.0


def check_all(methods: Sequence[Method], checker: Checker, say: Say) -> dict[str, Outcome]:
    """Hold every method to the truth; those that fail are not timed later."""
    outcomes = {}
    for method in methods:
        outcome = outcomes[method.name] = Outcome(method.name)
        say(f"checking {method.name}")
        with _Guard(outcome):
            outcome.verdict = checker.check(method)
            if outcome.verdict is not None and not outcome.verdict.passed:
                outcome.status = "refused"
                outcome.note = f"wrong, so not timed: {outcome.verdict.describe()}"
    return outcomes


def time_all(
    methods: Sequence[Method],
    outcomes: dict[str, Outcome],
    model: Any,
    batch: Batch,
    roof: ProductRoof,
    rounds: int,
    say: Say,
    after_round: Callable[[Sequence[float]], None] = lambda rates: None,
) -> list[float]:
    """Warm up and measure the memory of each method that passed, then time them in rounds, in turning order.

    A round holds one timing of every method, so that noise hits all alike and ratios lie within a round.
    Fills the outcomes; returns the product roof of each round, FLOP/s. `after_round` gets those so far, so that what a
    long run has found is kept when it is ended.
    """
    device = batch.input_ids.device
    for method in methods:
        outcome = outcomes[method.name]
        if outcome.status == "timed":
            say(f"warming up {method.name}")
            with _Guard(outcome):
                _warm_up(method, outcome, model, batch)
    rates = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        rates.append(roof.measure())
        turn = number % len(methods)
        for method in (*methods[turn:], *methods[:turn]):
            outcome = outcomes[method.name]
            skipped = outcome.status != "timed" or (method.most_rounds is not None and number >= method.most_rounds)
            outcome.seconds.append(None)
            if not skipped:
                with _Guard(outcome):
                    outcome.seconds[-1] = _time_once(method, outcome, model, batch, device)
        after_round(rates)
    return rates


def _part(method: Method, model: Any, batch: Batch) -> Batch:
    """As many samples as the method can take."""
    most = len(batch) if method.most_samples is None else method.most_samples
    if method.most_values is not None:
        neurons = sum(site.columns.stop - site.columns.start for site in find_sites(model))
        most = min(most, max(1, method.most_values // neurons))
    return batch if len(batch) <= most else batch.rows(0, most)


def _warm_up(method: Method, outcome: Outcome, model: Any, batch: Batch) -> None:
    """Run it once or twice untimed, record its memory, and see how many steps make a timing."""
    part = _part(method, model, batch)
    device = batch.input_ids.device
    if len(part) < len(batch):
        outcome.scale = batch.tokens / part.tokens
        outcome.note = f"timed on {len(part)} of {len(batch)} samples, scaled by tokens; memory not comparable"
    durations = []

    def once() -> None:
        with method.open(model, batch.n_groups) as session:
            start = time.perf_counter()
            session.step(part)
            synchronize(device)
            durations.append(time.perf_counter() - start)
            if durations[-1] < _LEAST_SECONDS:
                session.step(part)
                synchronize(device)
                durations.append(time.perf_counter() - start - durations[-1])

    if device.type == "cuda" or method.settles:
        once()
    base = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    outcome.peak = peak_above(once, device, base)
    outcome.steps = max(1, math.ceil(_LEAST_SECONDS / durations[-1]))


def _time_once(method: Method, outcome: Outcome, model: Any, batch: Batch, device: torch.device) -> float:
    part = _part(method, model, batch)
    with method.open(model, batch.n_groups) as session:
        if device.type == "cuda" or method.settles:
            session.step(part)  # refills the allocator's cache, which another method has shaped, or its own
        synchronize(device)
        start = time.perf_counter()
        for _ in range(outcome.steps):
            session.step(part)
        synchronize(device)
        return (time.perf_counter() - start) / outcome.steps * outcome.scale


class _Guard:
    """Turns what goes wrong inside its block into the outcome's status; Ctrl-C passes."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if isinstance(error, NotAvailable):
            self.outcome.status, self.outcome.note = "not available", str(error)
        elif isinstance(error, torch.OutOfMemoryError):
            self.outcome.status, self.outcome.note = "does not fit", "out of memory on this device"
        else:
            first = (str(error).strip().splitlines() or [""])[0]
            self.outcome.status, self.outcome.note = "failed", f"{type(error).__name__}: {first}"[:300]
        if torch.cuda.is_available():
            error.__traceback__ = None  # its frames hold the tensors
            torch.cuda.empty_cache()
        return True
