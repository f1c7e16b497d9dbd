"""attribute_streamed(): a checkpoint folder and questions in, ScoreTable out."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from culnig_fast.backend import resolved
from culnig_fast.batching import default_batch_tokens, plan_batches
from culnig_fast.chosen_positions import PositionRule, choose_positions
from culnig_fast.errors import CulnigError, Interrupted
from culnig_fast.models import DTYPES, load_tokenizer, local_folder
from culnig_fast.neurons import named_modules
from culnig_fast.prompt_limits import check_encoded
from culnig_fast.questions import Question, encode_questions
from culnig_fast.resampling import table_rows
from culnig_fast.running.checkpoint import Checkpoint, Progress
from culnig_fast.running.diagnosis import NonFinite
from culnig_fast.running.fingerprint import implementations
from culnig_fast.running.finished import finished_table
from culnig_fast.running.interrupts import terminated
from culnig_fast.running.samples import Samples, run_facts
from culnig_fast.scores import ScoreTable
from culnig_fast.streaming.attributor import Objective, StreamedAttributor
from culnig_fast.streaming.block import default_stream_tokens, plan_blocks
from culnig_fast.streaming.diagnosis import describe_streamed
from culnig_fast.streaming.model import open_streamed


def attribute_streamed(
    name: str | Path,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    stream_tokens: int | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    sites: Iterable[str] | None = None,
    control: bool = False,
    clamp_control: bool = True,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    padding: str = "exclude",
    reduction: str = "max",
    positions: PositionRule = "all",
    backend: str = "auto",
    path: str = "auto",
    resamples: int = 0,
    seed: int = 0,
    on_unusable: str = "error",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> ScoreTable:
    """As `attribute`, for a model that does not fit: its weights stay on disk and pass through memory layer by layer.

    A block of batches goes through each layer before the next one is read, so the cost of reading is shared by the
    block's tokens. Resident are one layer (two on a GPU), the totals, and the block's hidden states at every layer, in
    host memory. The totals do not depend on the block's size, to the last bit.

    Args:
        name: a checkpoint folder with safetensors, a hub id, or `demo`.
        tokenizer: the model's tokenizer; None loads it.
        questions: what to score.
        stream_tokens: padded tokens a block, at least one batch; None means what half of the free memory holds.
        dtype: `auto` computes in the checkpoint's.
        device: where to compute; None means the first GPU, or the CPU where there is none.
        trust_remote_code: run code that comes with the checkpoint.
        checkpoint: as for `attribute`; progress is written between blocks, so an interrupt loses the block that runs.

    The other options are those of `attribute`.

    Raises:
        CulnigError: as `attribute`; also when the checkpoint cannot be read or its tensors cannot be told apart, it is
            quantised, or the model's layers do not follow one another.
    """
    if dtype not in DTYPES and dtype != "float64":
        raise CulnigError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    folder = local_folder(str(name), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code) if tokenizer is None else tokenizer
    encoded = encode_questions(tokenizer, questions, on_unusable)
    chosen = choose_positions(positions, tokenizer, encoded)
    groups, membership = table_rows([question.group for question in encoded.questions], resamples, seed)
    samples = Samples.of(encoded, membership, chosen, control and clamp_control, batch_size)
    streamed = open_streamed(folder, dtype=dtype, device=_device(device), trust_remote_code=trust_remote_code)
    check_encoded(streamed.architecture.model, encoded)
    options: dict[str, Any] = {
        "sites": named_modules(sites),
        "reduction": reduction,
        "padding": padding,
        "backend": backend,
        "path": path,
    }
    attributor = StreamedAttributor(streamed, n_groups=len(groups), **options)
    batch_tokens = default_batch_tokens(streamed.device) if batch_tokens is None else batch_tokens
    batches = plan_batches(samples.lengths, batch_tokens, batch_size)
    if stream_tokens is None:
        weight = streamed.architecture.embedding.weight
        width = streamed.probes[0][0].args[0].shape[-1]
        stream_tokens = default_stream_tokens(len(streamed.layers), width, weight.element_size(), streamed.device)
    saved = None
    if checkpoint is not None:
        weight = streamed.architecture.embedding.weight
        model = {
            "weights": streamed.fingerprint,
            "dtype": str(weight.dtype),
            **implementations(streamed.architecture.model),
        }
        runs = {"batches": [len(batch) for batch in batches], "backend": resolved(backend, weight)}
        facts = run_facts(model, attributor, samples, groups, positions=chosen.rule, **runs)
        saved = Checkpoint(checkpoint, facts, checkpoint_seconds)
    try:
        probabilities = _run(attributor, samples, batches, stream_tokens, saved, progress)
    except NonFinite as error:
        raise CulnigError(describe_streamed(streamed, samples, error, options)) from None
    metadata = {
        "device": streamed.device.type,
        "control": control,
        "clamped": samples.clamp,
        "batch_tokens": None if batch_size else batch_tokens,
        "batch_size": batch_size,
        "halvings": 0,
        "processes": 1,
        "recomputed": True,
        "streamed": True,
        "positions": chosen.rule,
        **({"resamples": resamples, "seed": seed} if resamples else {}),
    }
    return finished_table(
        attributor,
        encoded,
        (groups, membership),
        probabilities,
        attributor.totals_on("cpu").numpy(),
        metadata,
        checkpoint=None if saved is None else saved.path,
    )


def _run(
    attributor: StreamedAttributor,
    samples: Samples,
    batches: list[np.ndarray],
    stream_tokens: int,
    checkpoint: Checkpoint | None,
    progress: bool,
) -> np.ndarray:
    """Score all blocks that are not done yet; returns P of each sample, float64 [samples].

    Raises:
        NonFinite: NaN or infinity, with the samples of the block in which it is; what was kept before is finite.
        Interrupted: SIGINT or SIGTERM came.
    """
    device = attributor.streamed.device
    earlier = checkpoint.load() if checkpoint is not None else None
    done = 0
    seen: list[torch.Tensor] = []
    if earlier is not None:
        done = int(np.searchsorted(np.cumsum([len(batch) for batch in batches]), len(earlier.probability))) + 1
        seen = [torch.from_numpy(earlier.probability).to(device)]
        attributor.restore(torch.from_numpy(earlier.totals))
    blocks = plan_blocks(batches[done:], samples.lengths, stream_tokens)
    answers, groups = samples.answers.to(device), samples.groups.to(device)
    bar = tqdm(total=len(blocks) * attributor.passes, unit="layer", desc="scoring", disable=not progress, smoothing=0.1)
    kept = 0 if earlier is None else len(earlier.probability)

    def score(block: list[np.ndarray]) -> None:
        chosen = [samples.batch(index, device) for index in block]
        positions = [batch.positions for batch in chosen if batch.positions is not None]
        found: list[torch.Tensor] = []

        def log_probability(batch: int, logits: torch.Tensor) -> Objective:
            index = chosen[batch].index
            log_p = torch.log_softmax(logits, dim=-1).gather(1, answers[index][:, None])[:, 0]
            p = log_p.detach().double().exp()
            found.append(p)
            return Objective(log_p, p * p, groups[index])

        attributor.run_block(
            chosen, log_probability, clamp_below_zero=samples.clamp, positions=positions or None, tick=bar.update
        )
        if not attributor.is_finite() or not bool(torch.isfinite(torch.cat(found)).all()):
            raise NonFinite(np.concatenate(block))
        seen.extend(found)

    with attributor, bar, terminated():
        try:
            for number, block in enumerate(blocks, start=1):
                bar.set_postfix_str(f"block {number} of {len(blocks)}", refresh=False)
                score(block)
                if checkpoint is not None and checkpoint.due():
                    totals, probability = attributor.totals_on("cpu").numpy(), torch.cat(seen).cpu().numpy()
                    checkpoint.save(Progress(totals, probability, None, None, 0))
                    kept = len(probability)
        except KeyboardInterrupt as stop:
            raise _stopped(stop, kept, len(samples.ids), checkpoint) from None
    probabilities = np.empty(len(samples.ids))
    probabilities[np.concatenate(batches)] = torch.cat(seen).cpu().numpy()
    return probabilities


def _stopped(stop: KeyboardInterrupt, kept: int, count: int, checkpoint: Checkpoint | None) -> Interrupted:
    """What a signal ends in: which one, and how much is kept; the block that ran is lost."""
    number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
    remedy = "nothing was kept: give a checkpoint to continue from"
    if checkpoint is not None:
        remedy = (
            f"{kept:,} of {count:,} samples are kept in {checkpoint.path}, and the same command continues from there"
        )
        if not kept:
            remedy = "no block was finished yet, so nothing was kept; smaller blocks are kept sooner (stream_tokens)"
    return Interrupted(number, f"stopped by {signal.Signals(number).name}; {remedy}")


def _device(name: str | None) -> torch.device:
    """The device asked for, or the first GPU, or the CPU; CulnigError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CulnigError(f"cannot use device {name!r} ({str(error).splitlines()[0]}); try cpu") from error
    return device
