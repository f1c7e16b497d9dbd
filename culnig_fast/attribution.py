"""attribute(): questions in, ScoreTable out."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

from culnig_fast.attributor import Attributor
from culnig_fast.batching import Batch, default_batch_tokens, make_batch, plan_batches
from culnig_fast.checkpoint import Checkpoint, Progress
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import NeuronLayout
from culnig_fast.questions import EncodedQuestions, Question, encode_questions
from culnig_fast.scores import ScoreTable
from culnig_fast.version import __version__


def attribute(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    sites: Iterable[str] | None = None,
    control: bool = False,
    clamp_control: bool = True,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    padding: str = "exclude",
    reduction: str = "max",
    backend: str = "auto",
    path: str = "auto",
    recompute: bool = False,
    on_unusable: str = "error",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> ScoreTable:
    """Score every neuron on a dataset: Σ_q P_q · max_i n·∂P_q/∂n, per group (CULNIG, sections 2 and 3).

    log P is back-propagated in place of P, which is well scaled in bf16, and its scores are multiplied by P
    afterwards: ∂P = P·∂log P, and P ≥ 0 commutes with the maximum.

    Args:
        model: a Hugging Face decoder in float32, bfloat16, float16 or float64, on a CPU or GPU; left as it was.
        tokenizer: its tokenizer.
        questions: what to score; groups become the rows of the table in the order of their first question.
        sites: module names to score; None means q, k, v, gate and up, where the model has them.
        control: the questions are a control set.
        clamp_control: in a control set, replace negative weighted scores by 0 before they are summed.
        batch_tokens: padded tokens a batch; None means a default for the device.
        batch_size: batches of this many questions in the order given instead, as the published program forms them.
        padding: `exclude`, or `zero` for parity with the published program (a score then depends on its batch).
        reduction: over positions, `max` (the method's) or `sum` (first-order effect of zeroing the neuron).
        backend: see `backend.resolve`.
        path: `auto`, `fused` or `taps`; see `Attributor`.
        recompute: run each layer again in backward to save memory; the totals keep their bits.
        on_unusable: `error` or `skip` for a question whose answer is not one token of the vocabulary; skipped ones
            are counted and named in the metadata.
        checkpoint: a file for progress, written every `checkpoint_seconds` and on an interrupt, and removed at the
            end. A later call with the same model, questions and options continues from it, with the same result to
            the last bit.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: no questions, a repeated id, an answer that is not one token, an unresolved architecture,
            non-finite scores, an unknown option, or a checkpoint of another run.
    """
    questions = list(questions)
    encoded = encode_questions(tokenizer, questions, on_unusable)
    kept = encoded.questions
    groups = tuple(dict.fromkeys(question.group for question in kept))
    group_of = np.array([groups.index(question.group) for question in kept], dtype=np.int64)
    attributor = Attributor(
        model,
        sites=sites,
        n_groups=len(groups),
        reduction=reduction,
        padding=padding,
        backend=backend,
        path=path,
        recompute=recompute,
    )
    device = attributor.architecture.embedding.weight.device
    batch_tokens = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    batches = plan_batches([len(tokens) for tokens in encoded.token_ids], batch_tokens, batch_size)
    clamp = control and clamp_control
    saved = None
    if checkpoint is not None:
        options = {
            "clamp": clamp,
            "padding": padding,
            "reduction": reduction,
            "path": path,
            "batches": [len(b) for b in batches],
        }
        run = {
            "model": _fingerprint(attributor),
            "layout": attributor.layout.to_dict(),
            "questions": [encoded.token_ids, encoded.answers, group_of.tolist(), groups],
            "options": options,
            "version": __version__,
        }
        saved = Checkpoint(checkpoint, run, checkpoint_seconds)
    samples = _Samples(encoded.token_ids, torch.tensor(encoded.answers), torch.from_numpy(group_of), batches)
    probabilities = _run(attributor, samples, clamp, saved, progress)
    table = make_table(
        attributor,
        encoded,
        group_of,
        groups,
        probabilities,
        {
            "device": device.type,
            "control": control,
            "clamped": clamp,
            "batch_tokens": None if batch_size else batch_tokens,
            "batch_size": batch_size,
            "recomputed": recompute,
        },
    )
    if saved is not None:
        saved.remove()
    return table


def make_table(
    attributor: Attributor,
    encoded: EncodedQuestions,
    group_of: np.ndarray,
    groups: tuple[str, ...],
    probabilities: np.ndarray,
    metadata: Mapping[str, Any],
) -> ScoreTable:
    """The table of a finished run.

    Args:
        attributor: holds the totals.
        encoded: the questions.
        group_of: int64 [samples] row of each.
        groups: names of the rows.
        probabilities: float64 [samples], P of each.
        metadata: what the table says of its run, beside what the attributor knows.

    Raises:
        CulnigError: a probability or a total is not finite.
    """
    kept, model = encoded.questions, attributor.architecture.model
    _check_probabilities(probabilities, kept)
    totals = attributor.totals.cpu().numpy()
    check_finite(totals, attributor.layout)
    return ScoreTable(
        totals=totals,
        groups=groups,
        counts=np.bincount(group_of, minlength=len(groups)),
        probability=np.bincount(group_of, weights=probabilities, minlength=len(groups)),
        ids=tuple(question.id for question in kept),
        layout=attributor.layout,
        metadata={
            "model": str(getattr(model.config, "_name_or_path", "")),
            "model_class": type(model).__name__,
            "dtype": str(attributor.architecture.embedding.weight.dtype).removeprefix("torch."),
            "attention": str(getattr(model.config, "_attn_implementation", "unknown")),
            "reduction": attributor.reduction,
            "padding": attributor.padding,
            "fusion": attributor.fusion.describe(),
            "unusable": list(encoded.unusable),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **metadata,
        },
    )


class _Samples(NamedTuple):
    """The samples of a run and the batches that they are scored in."""

    token_ids: Sequence[Sequence[int]]
    answers: torch.Tensor
    groups: torch.Tensor
    batches: Sequence[np.ndarray]


def _run(
    attributor: Attributor, samples: _Samples, clamp: bool, checkpoint: Checkpoint | None, progress: bool
) -> np.ndarray:
    """Score all batches that are not done yet; returns P of each sample, float64 [samples]."""
    device = attributor.architecture.embedding.weight.device
    earlier = checkpoint.load() if checkpoint is not None else None
    done = 0
    seen: list[torch.Tensor] = []
    if earlier is not None:
        done, seen = earlier.batches, [torch.from_numpy(earlier.probability).to(device)]
        attributor.restore(torch.from_numpy(earlier.totals))
    initial = sum(len(index) for index in samples.batches[:done])
    total = len(samples.token_ids)
    bar = tqdm(total=total, initial=initial, unit="question", desc="scoring", disable=not progress, smoothing=0.1)
    # Whole columns travel once and are indexed where they are: nothing in the loop waits for the device.
    answers, groups = samples.answers.to(device), samples.groups.to(device)
    with attributor, bar:
        try:
            for index in samples.batches[done:]:
                batch = make_batch(samples.token_ids, index, device)
                with _uninterrupted():
                    seen.append(_score_batch(attributor, batch, answers, groups, clamp))
                    done += 1
                bar.update(len(index))
                if checkpoint is not None and checkpoint.due():
                    checkpoint.save(_progress(attributor, done, seen))
        except KeyboardInterrupt:
            if checkpoint is not None and done:
                checkpoint.save(_progress(attributor, done, seen))
            raise
    probabilities = np.empty(total)
    probabilities[np.concatenate(samples.batches)] = torch.cat(seen).cpu().numpy()
    return probabilities


def _score_batch(
    attributor: Attributor, batch: Batch, answers: torch.Tensor, groups: torch.Tensor, clamp: bool
) -> torch.Tensor:
    """Add one batch to the attributor's totals; P of its samples, float64 [batch], still on the device.

    Nothing here waits for the device, so the host prepares the next batch while this one runs.
    """
    logits = attributor.forward(batch.input_ids, batch.lengths)
    gold = answers[batch.index].to(logits.device, non_blocking=True)
    log_p = torch.log_softmax(logits, dim=-1).gather(1, gold[:, None])[:, 0]
    p = log_p.detach().double().exp()
    attributor.backward(log_p, weight=p * p, group=groups[batch.index], clamp_below_zero=clamp)
    return p


def _progress(attributor: Attributor, done: int, seen: Sequence[torch.Tensor]) -> Progress:
    return Progress(done, attributor.totals.cpu().numpy(), torch.cat(list(seen)).cpu().numpy())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT back inside the block: a batch is added to the totals whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    earlier = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
    if caught:
        raise KeyboardInterrupt


def _fingerprint(attributor: Attributor) -> list[Any]:
    """What tells one model from another without reading all its weights."""
    model = attributor.architecture.model
    sums = [float(location.module.weight.detach()[:8].double().sum()) for location in attributor.locations]
    return [type(model).__name__, model.config.to_json_string(), str(model.dtype), sums]


def _check_probabilities(probabilities: np.ndarray, questions: Sequence[Question]) -> None:
    bad = np.flatnonzero(~np.isfinite(probabilities))
    if bad.size:
        raise CulnigError(
            f"the model's probability for question {questions[bad[0]].id!r} is {probabilities[bad[0]]} "
            f"({bad.size} such in all); its weights may hold NaN, or its dtype overflows: try bfloat16 or float32"
        )


def check_finite(totals: np.ndarray, layout: NeuronLayout) -> None:
    """Raise CulnigError, naming the first neuron, when a total is NaN or infinite."""
    for row in totals:
        bad = np.flatnonzero(~np.isfinite(row))
        if bad.size:
            names, layers, columns = layout.locate(bad[:1])
            raise CulnigError(
                f"the score of neuron {columns[0]} of {names[0]} in layer {layers[0]} is {row[bad[0]]} "
                f"({bad.size} such); the model's weights or activations hold NaN or overflow: try bfloat16 or float32"
            )
