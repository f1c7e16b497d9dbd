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

_COUNTED = {"scores": "scoring", "activations": "evaluation", "results": "evaluation"}


def estimate(bench: Workbench, steps: Iterable[Step]) -> dict[str, float]:
    """Seconds of each kind of work that is still to be done, loading and tables left out.

    The fastest of a few runs of a kind's middle batch is taken, and multiplied by padded tokens. Counting
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
            if (key := (kind, label)) not in rates:
                rates[key] = _generation(bench, *stage.size)
            seconds[kind] += rates[key]
            continue
        if stage.size not in known:
            known[stage.size] = _prepared(bench, *stage.size)
        prepared = known[stage.size]
        if (key := (kind, "")) not in rates:
            rates[key] = (_scoring if kind == "scoring" else _evaluation)(bench, prepared)
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


def _middle(prepared: Prepared) -> Prepared:
    """Only the middle batch."""
    batch = prepared.batches[len(prepared.batches) // 2]
    encoded = prepared.encoded
    kept = EncodedQuestions(
        tuple(encoded.questions[i] for i in batch),
        tuple(encoded.token_ids[i] for i in batch),
        tuple(encoded.answers[i] for i in batch),
        (),
    )
    return Prepared(kept, (np.arange(len(batch)),))


def _evaluation(bench: Workbench, prepared: Prepared) -> float:
    """Seconds a padded token."""
    one = _middle(prepared)
    return _fastest(lambda: evaluate(bench.model, bench.tokenizer, one, progress=False)) / _tokens(one, one.batches[0])


def _scoring(bench: Workbench, prepared: Prepared) -> float:
    """Seconds a padded token."""
    from culnig_fast.attributor import Attributor
    from culnig_fast.batching import make_batch

    one = _middle(prepared)
    answers = torch.tensor(one.encoded.answers)
    with Attributor(bench.architecture, sites=bench.config.sites) as attributor:
        device = attributor.architecture.embedding.weight.device
        batch = make_batch(one.encoded.token_ids, one.batches[0], device)

        def step() -> Any:
            logits = attributor.forward(batch.input_ids, batch.lengths)
            log_p = torch.log_softmax(logits, dim=-1).gather(1, answers.to(logits.device)[:, None])[:, 0]
            attributor.backward(log_p)

        return _fastest(step) / _tokens(one, one.batches[0])


def _generation(bench: Workbench, label: str, split: str) -> float:
    """Seconds for all answers of a benchmark."""
    from culnig_fast.generation import generate

    questions, config = bench.questions(label, split), bench.config
    few = questions[:: max(1, len(questions) // 8)]
    options = {"max_new_tokens": config.max_new_tokens, "batch_tokens": config.batch_tokens, "progress": False}
    taken = _fastest(lambda: generate(bench.model, bench.tokenizer, few, **options))  # type: ignore[arg-type]
    return taken * len(questions) / len(few)


def _fastest(work: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the fastest of a few runs after one that loads, compiles and warms up."""
    work()
    taken = []
    for _ in range(times):
        _wait()
        start = time.perf_counter()
        work()
        _wait()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
