"""One training: chosen modules fully or by low-rank updates, everything else left as it is to the bit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from culnig_fast.errors import CulnigError
from culnig_fast.finetuning.checkpoints import claim, last_checkpoint, remove_checkpoints, training_facts
from culnig_fast.finetuning.data import TrainingSet, answer_loss, collate
from culnig_fast.finetuning.low_rank import low_rank
from culnig_fast.finetuning.options import TrainingOptions
from culnig_fast.finetuning.traces import without_traces
from culnig_fast.uncompiled import uncompiled

_LOGGED = 10
"""Updates between two entries of the loss."""


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes:
        steps: updates made, those before an interruption included.
        samples: questions that were drawn from.
        trained: parameters that were updated: the modules' own, or the low-rank factors.
        losses: (step, mean loss since the entry before).
    """

    steps: int
    samples: int
    trained: int
    losses: tuple[tuple[int, float], ...]


def train_modules(
    model: Any,
    data: TrainingSet,
    names: Sequence[str],
    options: TrainingOptions,
    *,
    seed: int,
    folder: Path,
    progress: bool = True,
    keep: bool = False,
) -> Training:
    """Train in place, and leave the model in evaluation mode, low-rank updates merged into its weights.

    Continues from this training's last whole checkpoint in `folder`, where there is one; to the same bits on a CPU.
    Everything but the named weights is as it was, gradients included.

    Args:
        model: a Hugging Face decoder on the CPU or on the first GPU.
        data: the samples.
        names: full names of the projections to train, as `Choice.names`.
        options: how.
        seed: of the order of the samples and of the low-rank factors.
        folder: for checkpoints, and for nothing else.
        progress: show a progress bar on standard error.
        keep: leave the checkpoints when the training has finished, so that the same call need not train it all again.

    Raises:
        CulnigError: a name that is not in the model, weights that cannot be trained, another GPU than the first, a
            folder that holds a checkpoint of another training (other modules, options, seed, data or model), or a
            loss that is not finite. The weights may then be half-trained: see `kept_weights`.
    """
    options.check()
    _check_device(model)
    named_parameters(model, names)
    start = None
    if options.save_steps or last_checkpoint(folder) is not None:
        start = claim(folder, training_facts(model, data, names, options, seed))
    head = model.get_output_embeddings()
    set_seed(seed)
    try:
        with uncompiled(), without_traces(model), _trainable(model, names, options) as trained:
            bar = _Progress(not progress)
            trainer = _trainer(trained, head, data, options, seed, folder, bar)
            try:
                trainer.train(resume_from_checkpoint=None if start is None else str(start))
            finally:
                bar.close()
            count = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
            losses = [(int(e["step"]), float(e["loss"])) for e in trainer.state.log_history if "loss" in e]
            found = Training(trainer.state.global_step, len(data), count, tuple(losses))
    finally:
        model.eval()
    if not keep:
        remove_checkpoints(folder)
    return found


@contextlib.contextmanager
def kept_weights(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Put the named modules' weights back at the end of the block, to the bit; a copy of them alone is held."""
    parameters = named_parameters(model, names)
    copies = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.copy_(copy)


def named_parameters(model: Any, names: Sequence[str]) -> list[torch.nn.Parameter]:
    """Weights and biases of the named projections; CulnigError for a name that the model lacks."""
    found = []
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise CulnigError(
                f"the model has no module {name!r}; take the names that 'culnig-fast modules' prints for this model"
            ) from error
        found += list(module.parameters())
    if not found:
        raise CulnigError("no module was chosen for training; choose a larger share")
    return found


@contextlib.contextmanager
def _trainable(model: Any, names: Sequence[str], options: TrainingOptions) -> Iterator[Any]:
    """The model with only the chosen parts trainable; low-rank updates are merged when the block ends well."""
    parameters = named_parameters(model, names)
    for parameter in parameters:
        if not parameter.is_floating_point():
            raise CulnigError(f"weights of {parameter.dtype} cannot be trained; load the model unquantised")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if options.lora is None:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield model
        return
    with low_rank(model, names, options) as adapted:
        yield adapted


def _check_device(model: Any) -> None:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or any(device.type == "cuda" and device.index not in (None, 0) for device in devices):
        raise CulnigError(
            "training takes a model whole on the CPU or on the first GPU; choose another with CUDA_VISIBLE_DEVICES"
        )


def _trainer(
    model: Any, head: Any, data: TrainingSet, options: TrainingOptions, seed: int, folder: Path, bar: _Progress
) -> Trainer:
    on_cpu = next(model.parameters()).device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        learning_rate=options.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=options.warmup,
        weight_decay=options.decay,
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        gradient_checkpointing=options.checkpointing,
        # The other way needs an input that has a gradient, and the embedding is frozen.
        gradient_checkpointing_kwargs={"use_reentrant": False} if options.checkpointing else None,
        bf16=options.bf16,
        use_cpu=on_cpu,
        optim="adamw_torch",
        logging_steps=_LOGGED,
        logging_nan_inf_filter=False,
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 1,
        save_total_limit=1,
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["answers"],
        dataloader_pin_memory=not on_cpu,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else every GPU in sight gets a replica, and a part of each batch
    trainer = _AnswerTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[bar])
    trainer.head = head
    # It prints the losses to standard output, which belongs to --json.
    trainer.remove_callback(PrinterCallback)
    # So that the mean over accumulated batches is taken by the Trainer: our loss knows one batch.
    trainer.model_accepts_loss_kwargs = False
    return trainer


class _AnswerTrainer(Trainer):
    """Learns the answer's token at the last position."""

    head: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch; CulnigError where it is not finite."""
        loss = answer_loss(model, self.head, inputs)
        if not math.isfinite(value := float(loss.detach())):
            raise CulnigError(
                f"the loss is {value} after {self.state.global_step} steps; lower the rate, or train in float32"
            )
        return (loss, None) if return_outputs else loss


class _Progress(TrainerCallback):
    """Our progress bar on standard error, and no checkpoint at the end."""

    def __init__(self, disable: bool) -> None:
        self.bar = tqdm(unit="step", desc="training", disable=disable)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the length, and the steps that an earlier process made."""
        self.bar.total, self.bar.n = state.max_steps, state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more; no checkpoint of the last one, from which a Trainer would go on to a step too many."""
        self.bar.update()
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
