"""How long a run will take: one batch of each kind of work is timed, the rest is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from culnig_fast.evaluation import Prepared, evaluate, prepare
from culnig_fast.pipeline.run import Step
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.questions import EncodedQuestions

_COUNTED = {"scores": "scoring", "instances": "scoring", "activations": "evaluation", "results": "evaluation"}

_BATCHES = 8
"""Batches that are timed: one alone would charge a call's own cost to its few tokens."""


def estimate(bench: Workbench, steps: Iterable[Step]) -> dict[str, float]:
    """Seconds of each kind of work that is still to be done, loading and tables left out.

    A few batches of a kind are run twice, the second time is taken, and it is multiplied by padded tokens. Counting
    activations is taken for an evaluation; answers that are generated are timed on their own benchmark.

    Returns:
        `scoring`, `evaluation`, `generation` and `total`, in seconds.
    """
    seconds = {"scoring": 0.0, "evaluation": 0.0, "generation": 0.0}
    rates: dict[tuple[str, str], float] = {}
    known: dict[tuple[str, str], Prepared] = {}
    for step in steps:
        stage = step.stage
        if step.why is None or stage.size is None:
            continue
        label, _ = stage.size
        kind = "generation" if bench.tasks[label].generates else _COUNTED[stage.kind]
        if kind == "generation":
            key = kind, label
            rates[key] = rates[key] if key in rates else _generation(bench, *stage.size)
            seconds[kind] += rates[key]
            continue
        if stage.size not in known:
            known[stage.size] = _prepared(bench, *stage.size)
        prepared = known[stage.size]
        measure = _scoring if kind == "scoring" else _evaluation
        key = kind, ""
        rates[key] = rates[key] if key in rates else measure(bench, prepared)
        seconds[kind] += rates[key] * sum(_tokens(prepared, batch) for batch in prepared.batches)
    return {**seconds, "total": sum(seconds.values())}


def _prepared(bench: Workbench, label: str, split: str) -> Prepared:
    config = bench.config
    return prepare(
        bench.model,
        bench.tokenizer,
        bench.questions(label, split),
        batch_tokens=config.batch_tokens,
        on_unusable=config.on_unusable,
    )


def _tokens(prepared: Prepared, batch: np.ndarray) -> int:
    return len(batch) * max(len(prepared.encoded.token_ids[i]) for i in batch)


def _some(prepared: Prepared) -> Prepared:
    """At most `_BATCHES` batches, evenly spread over the lengths."""
    chosen = prepared.batches[:: -(-len(prepared.batches) // _BATCHES)]
    kept, ends = np.concatenate(chosen), np.cumsum([len(batch) for batch in chosen])
    encoded = prepared.encoded
    some = EncodedQuestions(
        tuple(encoded.questions[i] for i in kept),
        tuple(encoded.token_ids[i] for i in kept),
        tuple(encoded.answers[i] for i in kept),
        (),
    )
    return Prepared(some, tuple(np.split(np.arange(len(kept)), ends[:-1])))


def _evaluation(bench: Workbench, prepared: Prepared) -> float:
    """Seconds a padded token."""
    some = _some(prepared)
    tokens = sum(_tokens(some, batch) for batch in some.batches)
    return _second(lambda: evaluate(bench.model, bench.tokenizer, some, progress=False)) / tokens


def _scoring(bench: Workbench, prepared: Prepared) -> float:
    """Seconds a padded token."""
    from culnig_fast.attributor import Attributor
    from culnig_fast.batching import make_batch

    some = _some(prepared)
    answers = torch.tensor(some.encoded.answers)
    scoring = bench.config.scoring
    # Chosen positions cost nothing by themselves, but keep layers on taps.
    path = "auto" if scoring.positions == "all" else "taps"
    with Attributor(bench.architecture, sites=bench.config.sites, reduction=scoring.reduction, path=path) as attributor:
        device = attributor.architecture.embedding.weight.device

        def step() -> Any:
            for index in some.batches:
                batch = make_batch(some.encoded.token_ids, index, device)
                logits = attributor.forward(batch.input_ids, batch.lengths)
                gold = answers[index].to(logits.device)[:, None]
                attributor.backward(torch.log_softmax(logits, dim=-1).gather(1, gold)[:, 0])

        return _second(step) / sum(_tokens(some, index) for index in some.batches)


def _generation(bench: Workbench, label: str, split: str) -> float:
    """Seconds for all answers of a benchmark."""
    from culnig_fast.generation import generate

    questions, config = bench.questions(label, split), bench.config
    few = questions[:: max(1, len(questions) // 8)]
    options = {"max_new_tokens": config.max_new_tokens, "batch_tokens": config.batch_tokens, "progress": False}
    taken = _second(lambda: generate(bench.model, bench.tokenizer, few, **options))  # type: ignore[arg-type]
    return taken * len(questions) / len(few)


def _second(work: Callable[[], Any]) -> float:
    """Seconds of the second of two runs: the first also loads, compiles and warms up."""
    work()
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
