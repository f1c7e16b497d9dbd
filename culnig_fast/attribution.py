"""attribute(): questions in, ScoreTable out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from culnig_fast.attributor import Attributor
from culnig_fast.backend import resolved
from culnig_fast.batching import default_batch_tokens, plan_batches
from culnig_fast.chosen_positions import PositionRule, choose_positions
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import named_modules
from culnig_fast.prompt_limits import check_encoded
from culnig_fast.questions import Question, encode_questions
from culnig_fast.resampling import table_rows
from culnig_fast.running.budget import Budget, CudaMeter, Meter, measured_tokens
from culnig_fast.running.checkpoint import Checkpoint, Progress
from culnig_fast.running.fingerprint import fingerprint
from culnig_fast.running.finished import finished_table
from culnig_fast.running.loop import Loop, non_finite_named
from culnig_fast.running.samples import Samples, run_facts
from culnig_fast.running.together import Together, joint
from culnig_fast.running.world import World, rank_path
from culnig_fast.scores import ScoreTable


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
    memory_share: float = 0.8,
    padding: str = "exclude",
    reduction: str = "max",
    positions: PositionRule = "all",
    backend: str = "auto",
    path: str = "auto",
    recompute: bool = False,
    resamples: int = 0,
    seed: int = 0,
    on_unusable: str = "error",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    world: World | None = None,
    progress: bool = True,
) -> ScoreTable:
    """Score every neuron on a dataset: Σ_q P_q · max_i n·∂P_q/∂n, per group (CULNIG, sections 2 and 3).

    log P is back-propagated in place of P, which is well scaled in bf16, and its scores are multiplied by P
    afterwards: ∂P = P·∂log P, and P ≥ 0 commutes with the maximum.

    When memory runs out, the batch is repeated in halves and later ones are run in smaller parts; a site that had the
    batch's scores already is left out of the repetition, so each sample counts once.

    Args:
        model: a Hugging Face decoder in float32, bfloat16, float16 or float64, on a CPU or GPU; left as it was. Divided
            among processes by transformers' tensor-parallel plan, it is scored by all of them together: every one
            calls this and gets the whole table.
        tokenizer: its tokenizer.
        questions: what to score; groups become the rows of the table in the order of their first question.
        sites: module names to score, or one; None means q, k, v, gate and up, where the model has them.
        control: the questions are a control set.
        clamp_control: in a control set, replace negative weighted scores by 0 before they are summed.
        batch_tokens: padded tokens a batch; None measures on a GPU what fits, and is 2,048 on a CPU.
        batch_size: batches of this many questions in the order given instead, as the published program forms them.
        memory_share: how much of a GPU's free memory a measured budget may use.
        padding: `exclude`, or `zero` for parity with the published program (a score then depends on its batch).
        reduction: over positions, `max` (the method's), `sum` (first-order effect of zeroing the neuron), `mean`,
            `absmax` or `last`; see `Attributor`.
        positions: the tokens that the reduction goes over: `all`, `last`, `content` (those of the user's message,
            without chat template and answer prefix), or a function that takes a `Question` and its `PromptTokens` and
            gives one bool a token, or the positions that count. With any but `all` every layer runs on taps.
        backend: see `backend.resolve`.
        path: `auto`, `fused` or `taps`; see `Attributor`.
        recompute: run each layer again in backward to save memory; the totals keep their bits.
        resamples: when not 0, the table's rows are not groups but that many bootstrap resamples of the questions
            ("0", "1", …), drawn within each group (`resampling.bootstrap_counts`), all scored in one pass.
        seed: of the resamples; data set and control set of the same questions are drawn alike.
        on_unusable: `error` or `skip` for a question whose answer is not one token of the vocabulary; skipped ones
            are counted and named in the metadata.
        checkpoint: a file for progress, written every `checkpoint_seconds`, on SIGINT and SIGTERM, and at the end;
            saving the table removes it. A later call with the same model, questions and options continues from it,
            with the same result to the last bit (with another `batch_tokens`, to rounding).
        world: the processes among which samples are divided (`distributed.joined`); every one gets the whole table.
        progress: show a progress bar on standard error.

    Raises:
        CulnigError: no questions, a repeated id, an answer that is not one token, a prompt that the model cannot look
            up, an unresolved architecture, NaN or infinity in logits, activations or gradients (names question, layer
            and neuron), a question that does not fit in memory by itself (where weights are divided, a batch) or of
            which no position counts, an unknown option, a checkpoint of another run or one that cannot be written, or
            another process that failed.
        Interrupted: SIGINT or SIGTERM came; progress was kept.
    """
    if not 0 < memory_share <= 1:
        raise CulnigError(f"memory_share is {memory_share}; give a share of the free memory, above 0 and at most 1")
    encoded = encode_questions(tokenizer, questions, on_unusable)
    kept, chosen = encoded.questions, choose_positions(positions, tokenizer, encoded)
    groups, membership = table_rows([question.group for question in kept], resamples, seed)
    options: dict[str, Any] = {
        "sites": named_modules(sites),
        "reduction": reduction,
        "padding": padding,
        "backend": backend,
        "path": path,
        "recompute": recompute,
    }
    attributor = Attributor(model, n_groups=len(groups), **options)
    check_encoded(attributor.architecture.model, encoded)
    world = world or World()
    if (division := attributor.architecture.division) is not None:
        world = Together(world, division)
    samples = Samples.of(encoded, membership, chosen, control and clamp_control, batch_size)
    saved = earlier = None
    if checkpoint is not None:
        facts = run_facts(
            _model_facts(attributor.architecture.model, world),
            attributor,
            samples,
            groups,
            positions=chosen.rule,
            batch_size=batch_size,
            processes=world.size,
            backend=resolved(backend, attributor.architecture.embedding.weight),
        )
        saved = Checkpoint(rank_path(checkpoint, world), facts, checkpoint_seconds)
        earlier = saved.load()
        _same_progress(world, earlier)
    with non_finite_named(attributor, samples, options), attributor:
        budget = _budget(attributor, samples, (batch_tokens, memory_share), earlier, world)
        order = _order(samples, budget, world)
        if earlier is not None:
            attributor.restore(torch.from_numpy(earlier.totals))
        mine = Loop(attributor, samples, order, budget, world, saved, earlier).run(progress)
    probabilities = _merged_probabilities(mine, order, len(kept), world)
    totals = world.sum(attributor.totals_on("cpu") if world.alone else attributor.totals).cpu().numpy()
    return finished_table(
        attributor,
        encoded,
        (groups, membership),
        probabilities,
        totals,
        {
            "control": control,
            "clamped": samples.clamp,
            "batch_tokens": budget.tokens,
            "batch_size": batch_size,
            "halvings": sum(world.gather("halvings", budget.halvings)),
            "processes": world.size if world.independent else 1,
            **({} if world.independent else {"tensor_parallel": world.size}),
            "recomputed": recompute,
            "positions": chosen.rule,
            **({"resamples": resamples, "seed": seed} if resamples else {}),
        },
        checkpoint=None if saved is None else saved.path,
    )


def _model_facts(model: Any, world: World) -> Any:
    """What tells the model's weights from others."""
    own = fingerprint(model)
    return own if world.independent else world.gather("model", own)  # each process sees its part of them


def _same_progress(world: World, earlier: Progress | None) -> None:
    """Raise CulnigError unless processes that go on together found the same progress."""
    if not world.independent:
        world.same("progress", None if earlier is None else len(earlier.probability))


def _budget(
    attributor: Attributor,
    samples: Samples,
    asked: tuple[int | None, float],
    earlier: Progress | None,
    world: World,
) -> Budget:
    """The run's budget: as asked for, else as the work so far had it, else measured; the same in every process.

    Args:
        attributor: inside its block.
        samples: all of them.
        asked: `batch_tokens` and `memory_share`.
        earlier: progress that is continued.
        world: the other processes.
    """
    tokens, share = asked
    limit, halvings = (earlier.limit, earlier.halvings) if earlier is not None else (None, 0)
    if samples.batch_size is not None:
        return Budget(None, limit, halvings)
    before = {*world.gather("budget", None if earlier is None else earlier.tokens)} - {None}
    # Which batches a sample shares decides with whom it is padded, and which process has it.
    divided = world.independent and not world.alone
    if before and tokens not in (None, *before) and (attributor.padding == "zero" or divided):
        raise CulnigError(
            f"the progress that is kept was made with batch_tokens {', '.join(map(str, before))}, not {tokens}; "
            "continue with that, or delete it"
        )
    if tokens is None:
        tokens = min(before or world.gather("measured", _fitting_tokens(attributor, samples, share)))
    return Budget(tokens, limit if limit is None else min(limit, tokens), halvings)


def _fitting_tokens(attributor: Attributor, samples: Samples, share: float) -> int:
    """What fits on the model's cards; the default where there is none."""
    device = attributor.architecture.embedding.weight.device
    cards = sorted({p.device.index for p in attributor.architecture.model.parameters() if p.device.type == "cuda"})
    if device.type != "cuda":
        return default_batch_tokens(device)
    attributor.reserve_totals()
    meters: list[Meter] = [CudaMeter(torch.device("cuda", card)) for card in cards]
    if (division := attributor.architecture.division) is not None:
        meters = [joint(meter, division) for meter in meters]
    return measure(attributor, samples, meters, share)


def measure(attributor: Attributor, samples: Samples, meters: Sequence[Meter], share: float) -> int:
    """`measured_tokens` on the longest samples, whose scores are not added."""
    every = {location.site for location in attributor.locations}
    device = attributor.architecture.embedding.weight.device

    def run(tokens: int) -> int:
        index = plan_batches(samples.lengths, tokens)[0]
        batch = samples.batch(index, device)
        logits = attributor.forward(batch.input_ids, batch.lengths, positions=batch.positions)
        gold = samples.answers[index].to(logits.device)[:, None]
        attributor.backward(torch.log_softmax(logits, dim=-1).gather(1, gold)[:, 0], added=set(every))
        return batch.input_ids.numel()

    return measured_tokens(run, meters, share)


def _order(samples: Samples, budget: Budget, world: World) -> np.ndarray:
    """The samples of this process in the order in which they are scored: its share of the plan's batches."""
    batches = world.share(plan_batches(samples.lengths, budget.tokens or 1, samples.batch_size))
    return np.concatenate(batches) if batches else np.empty(0, dtype=np.int64)


def _merged_probabilities(mine: np.ndarray, order: np.ndarray, count: int, world: World) -> np.ndarray:
    """P of every sample, in the order given, whichever process scored it."""
    probabilities = np.zeros(count)
    probabilities[order] = mine
    device = "cuda" if torch.cuda.is_available() and not world.alone else "cpu"
    return np.asarray(world.sum(torch.from_numpy(probabilities).to(device)).cpu().numpy())
