"""The loop over batches: every sample added once and only once, whatever happens in between."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from culnig_fast.attributor import Attributor
from culnig_fast.batching import Batch
from culnig_fast.errors import CulnigError, Interrupted
from culnig_fast.neurons import NeuronSite
from culnig_fast.running.budget import Budget, is_out_of_memory
from culnig_fast.running.checkpoint import Checkpoint, Progress
from culnig_fast.running.diagnosis import NonFinite, describe_non_finite
from culnig_fast.running.interrupts import held_signals
from culnig_fast.running.samples import Samples
from culnig_fast.running.world import RankError, World

FINITE_SECONDS = 5.0
"""Most time between two looks at whether all is finite: each waits for the device."""


class Loop:
    """Scores samples in a fixed order, batch by batch.

    Args:
        attributor: inside its block.
        samples: all of them.
        order: int64, the samples of this process in the order in which they are scored.
        budget: of a batch; halved here when memory runs out.
        world: the other processes.
        checkpoint: where progress is kept.
        earlier: progress to continue from, of which the attributor holds the totals.
    """

    def __init__(
        self,
        attributor: Attributor,
        samples: Samples,
        order: np.ndarray,
        budget: Budget,
        world: World,
        checkpoint: Checkpoint | None = None,
        earlier: Progress | None = None,
    ) -> None:
        self.attributor, self.samples, self.order, self.budget = attributor, samples, order, budget
        self.world, self.checkpoint = world, checkpoint
        self._device = attributor.architecture.embedding.weight.device
        # Whole columns travel once and are indexed where they are: nothing in the loop waits for the device.
        self._answers, self._groups = samples.answers.to(self._device), samples.groups.to(self._device)
        self._seen: list[torch.Tensor] = []
        self._done = 0
        if earlier is not None:
            self._seen, self._done = [torch.from_numpy(earlier.probability).to(self._device)], len(earlier.probability)
        self._checked, self._checked_at = self._done, time.monotonic()
        self._pending: list[torch.Tensor] = []

    def run(self, progress: bool) -> np.ndarray:
        """Score what is left; P of each sample in the order of `order`, float64.

        Raises:
            Interrupted: SIGINT or SIGTERM came; progress was kept.
            RankError: another process failed; progress was kept.
            NonFinite: NaN or infinity, with the samples among which it is.
            CulnigError: a sample that does not fit in memory by itself, or progress that cannot be written.
        """
        bar = tqdm(
            total=len(self.order),
            initial=self._done,
            unit="question",
            desc="scoring" if self.world.alone else f"scoring (rank 0 of {self.world.size})",
            disable=not progress or self.world.rank > 0,
            smoothing=0.1,
        )
        with bar, held_signals() as caught, self.world.named_failures():
            try:
                for index in self._batches():
                    self._score_planned(index)
                    self._done += len(index)
                    bar.update(len(index))
                    waited = time.monotonic() - self._checked_at
                    look, due, stop = self.world.agree(
                        waited >= FINITE_SECONDS, self._due(), caught[0] if caught else 0
                    )
                    if look or due:
                        self._check_finite()
                    if due:
                        self._keep()
                    _stop(stop)
                    self.world.check()
                self._check_finite()
                self._keep()
                self.world.gather("scored", True, stop=lambda: _stop(caught[0] if caught else 0))
            except Interrupted as stop:
                self._check_finite()
                self._keep()
                raise self._stopped(stop.number) from None
            except RankError:
                if self.world.independent:
                    self._check_finite()
                    self._keep()
                raise
        return np.array(torch.cat(self._seen).cpu().numpy()) if self._seen else np.empty(0)

    def _batches(self) -> Iterator[np.ndarray]:
        """What is left, cut as the plan cuts it: a batch begins where the last one ended."""
        while self._done < len(self.order):
            if self.samples.batch_size is not None:
                rows = self.samples.batch_size
            else:
                assert self.budget.tokens is not None
                rows = max(1, self.budget.tokens // self._length(self.order[self._done]))
            yield self.order[self._done : self._done + rows]

    def _length(self, sample: int) -> int:
        return len(self.samples.token_ids[sample])

    def _score_planned(self, index: np.ndarray) -> None:
        """Score a batch of the plan."""
        # Where pads count as zeros a sample is padded as in its whole batch, however that is divided.
        width = self._width(index) if self.attributor.padding == "zero" else None
        for p in self._score_parts(index, width, set()):
            self._seen.append(p)
            self._pending.append(p)

    def _score_parts(self, index: np.ndarray, width: int | None, added: set[NeuronSite]) -> Iterator[torch.Tensor]:
        """Add samples to the totals, as many at once as memory has allowed so far.

        Args:
            index: the samples.
            width: pad to so many tokens; None is as many as needed.
            added: sites that have these samples' scores already: a backward that broke off had come so far.

        Yields:
            P of the samples, float64, still on the device, in order.
        """
        start = 0
        while start < len(index):
            rows = self.budget.rows(len(index) - start, width or self._width(index[start:]))
            part, already = index[start : start + rows], set(added)
            scored = self._score_part(part, width, already)
            if scored is not None:
                yield scored
            else:
                yield from self._score_parts(part, width, already)
            start += rows

    def _score_part(self, index: np.ndarray, width: int | None, added: set[NeuronSite]) -> torch.Tensor | None:
        """Score samples at once; None, and a smaller budget, when memory ran out."""
        try:
            batch = self.samples.batch(index, self._device, width)
            return _score_batch(self.attributor, batch, self._answers, self._groups, self.samples.clamp, added)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        # Outside the handler, whose error's frames hold the batch's tensors.
        width = width or self._width(index)
        if not self.world.independent:
            raise CulnigError(
                f"a batch of {width * len(index):,} tokens does not fit in memory ({reason}), and processes that hold "
                "one model together cannot repeat it; give a smaller batch_tokens"
            )
        if len(index) == 1:
            raise CulnigError(
                f"question {self.samples.ids[index[0]]!r} of {width:,} tokens does not fit in memory by itself "
                f"({reason}); shorten it, free memory, or load the model in bfloat16"
            )
        self.budget.halve(width * len(index))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _width(self, index: np.ndarray) -> int:
        return max(self._length(i) for i in index)

    def _check_finite(self) -> None:
        """Wait for the device; raise NonFinite when anything since the last look is NaN or infinite."""
        finite = self.attributor.is_finite()
        if finite and self._pending:  # the same in every process: so are the logits
            finite = bool(torch.isfinite(torch.cat(self._pending)).all())
        if not finite:
            raise NonFinite(self.order[self._checked : self._done])
        self._pending.clear()
        self._checked, self._checked_at = self._done, time.monotonic()

    @property
    def _keeps(self) -> bool:
        """Whether this process writes: its own progress, or that of all."""
        return self.world.independent or self.world.rank == 0

    def _due(self) -> bool:
        return self.checkpoint is not None and self._keeps and self.checkpoint.due()

    def _keep(self) -> None:
        if self.checkpoint is None or not self._seen:
            return
        totals, probability = self.attributor.totals_on("cpu").numpy(), torch.cat(self._seen).cpu().numpy()
        budget = self.budget
        if self._keeps:
            self.checkpoint.save(Progress(totals, probability, budget.tokens, budget.limit, budget.halvings))

    def _stopped(self, number: int) -> BaseException:
        """What a signal ends in: the death of another process, when that is what brought the signal."""
        dead = self.world.casualty() if number == signal.SIGTERM else None
        kept = "nothing was kept: give a checkpoint to continue from"
        if self.checkpoint is not None and self._seen:
            kept = f"progress is kept in {self.checkpoint.path}, and the same command continues from there"
        if dead is not None:
            return RankError(f"rank {dead} died; {kept}")
        name = signal.Signals(number).name
        return Interrupted(number, f"stopped by {name} after {self._done:,} of {len(self.order):,} samples; {kept}")


@contextlib.contextmanager
def non_finite_named(attributor: Attributor, samples: Samples, options: dict[str, Any]) -> Iterator[None]:
    """Around the attributor's block: NaN and infinity become a CulnigError that names question, layer and neuron.

    The suspects are run again by themselves, with the options of the attributor.
    """
    try:
        yield
    except NonFinite as error:
        parts = samples.token_ids, samples.answers, samples.ids
        raise CulnigError(describe_non_finite(attributor.architecture, *parts, error.suspects, options)) from None


def _stop(signal_number: int) -> None:
    if signal_number:
        raise Interrupted(signal_number)


def _score_batch(
    attributor: Attributor,
    batch: Batch,
    answers: torch.Tensor,
    groups: torch.Tensor,
    clamp: bool,
    added: set[NeuronSite],
) -> torch.Tensor:
    """Add one batch to the attributor's totals; P of its samples, float64 [batch], still on the device.

    Nothing here waits for the device, so the host prepares the next batch while this one runs; but where positions are
    chosen, which are checked.
    """
    logits = attributor.forward(batch.input_ids, batch.lengths, positions=batch.positions)
    gold = answers[batch.index].to(logits.device, non_blocking=True)
    log_p = torch.log_softmax(logits, dim=-1).gather(1, gold[:, None])[:, 0]
    p = log_p.detach().double().exp()
    rows = None if attributor.watched is None else batch.index
    attributor.backward(log_p, weight=p * p, group=groups[batch.index], clamp_below_zero=clamp, added=added, rows=rows)
    return p
