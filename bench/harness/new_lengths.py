"""First and later steps on batches of many lengths."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing, write_json
from harness.batches import Batch, make_batch
from harness.clock import synchronize
from harness.environment import environment
from harness.methods import METHODS, NotAvailable, Session
from harness.options import chosen_device
from harness.rounds import Say
from harness.shapes import SHAPES, build

_SHORTEST, _STEP = 65, 3
"""Lengths are 65, 68, …: no two alike, none a multiple that a kernel would favour."""
_LATER = 3
"""Steps after the first, of which the median counts."""


def run(options: argparse.Namespace, say: Say) -> int:
    """See `lengths.py`.

    Raises:
        CulnigError: an option names something that is not there, or the output exists.
    """
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    device = chosen_device(options.device)
    shape = options.shape or ("tiny" if device.type == "cpu" else "llama-3.1-8b")
    tokens = options.tokens or (1024 if device.type == "cpu" else 8192)
    for name, known in ((shape, SHAPES), *((name, METHODS) for name in options.methods)):
        if name not in known:
            raise CulnigError(f"unknown {name!r}; choose from {', '.join(known)}")
    if options.count < 1 or tokens < 1:
        raise CulnigError("--count and --tokens are at least 1")
    model = build(SHAPES[shape], device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    lengths = [_SHORTEST + _STEP * i for i in range(options.count)]
    batches = [make_batch(max(1, tokens // one), one, model.config.vocab_size, device) for one in lengths]
    warm = make_batch(max(1, tokens // 64), 64, model.config.vocab_size, device)
    rows = []
    for name in options.methods:
        say(f"{name} …")
        try:
            with METHODS[name].open(model, warm.n_groups) as session:
                rows.append({"method": name, **_measure(session, warm, batches, device)})
        except NotAvailable as error:
            rows.append({"method": name, "note": str(error)})
    print(f"{shape}, {len(lengths)} lengths from {lengths[0]} to {lengths[-1]}, about {tokens} tokens a batch")
    print(_table(rows))
    if options.json is not None:
        document = {"environment": environment(device), "shape": shape, "tokens": tokens, "lengths": lengths}
        write_json(options.json, {**document, "rows": rows}, overwrite=True)  # what was there has been refused above
    return 0


def _measure(session: Session, warm: Batch, batches: list[Batch], device: torch.device) -> dict[str, Any]:
    """Seconds of each length's first step and of its later ones."""

    def seconds(batch: Batch) -> float:
        synchronize(device)
        start = time.perf_counter()
        session.step(batch)
        synchronize(device)
        return time.perf_counter() - start

    for _ in range(2):  # what is compiled once for all lengths
        seconds(warm)
    first, later = [], []
    for batch in batches:
        first.append(seconds(batch))
        later.append(statistics.median(seconds(batch) for _ in range(_LATER)))
    extra = [a - b for a, b in zip(first, later, strict=True)]
    return {
        "first_s": first,
        "later_s": later,
        "first_over_later": sum(first) / sum(later),
        "extra_ms_median": 1e3 * statistics.median(extra),
        "extra_ms_most": 1e3 * max(extra),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'method':10} {'first ÷ later':>14} {'more, median':>14} {'more, at most':>14}"]
    for row in rows:
        if "note" in row:
            lines.append(f"{row['method']:10} {row['note']}")
            continue
        lines.append(
            f"{row['method']:10} {row['first_over_later']:14.2f} {row['extra_ms_median']:11.1f} ms "
            f"{row['extra_ms_most']:11.1f} ms"
        )
    return "\n".join(lines)
