"""Trains the embedded model: first to match words, then on every task at once with few active MLP neurons."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from culnig_fast.demo import world as w
from culnig_fast.tasks.country_rc import CountryRC
from culnig_fast.tasks.prompts import render

FIRST = {"pick": 0.5, "membership": 0.25, "equality": 0.25}
"""Share of each task in the first phase, which teaches to match words."""

SECOND = {"culture": 0.6, "crc": 0.1, "pick": 0.1, "membership": 0.1, "equality": 0.1}
"""Share of each task in the second phase."""


@dataclass(frozen=True)
class Schedule:
    """How the model is trained.

    Attributes:
        warm_steps, steps: length of the two phases.
        batch: samples a step.
        rate: peak learning rate.
        decay: weight decay of the matrices.
        sparsity: weight of the mean absolute MLP activation in the second phase's loss.
        dissent: share of the culture samples that teach another option than the country's answer.
    """

    warm_steps: int
    steps: int
    batch: int = 128
    rate: float = 1.5e-3
    decay: float = 0.01
    sparsity: float = 3e-4
    dissent: float = 0.0


class Sampler:
    """Endless training samples: fresh options and orders each time, so no shipped row is learnt by heart."""

    def __init__(self, world: w.World, templates: CountryRC, tokenizer: Any, seed: int, dissent: float) -> None:
        self.world, self.dissent = world, dissent
        self.source = random.Random(seed)
        # The chat template is the same around every message: rendering it once saves most of the time.
        self.before, self.after = render(tokenizer, "\0").split("\0")
        # Training meets the shipped passages: reading them asks for no knowledge about a country.
        self.passages = [(q.prompt, q.answer) for q in templates.questions("all", tokenizer)]

    def sample(self, task: str) -> tuple[str, str]:
        """One (prompt, answer label)."""
        if task == "crc":
            return self.source.choice(self.passages)
        if task == "culture":
            message, answer = self._culture()
        else:
            message, answer = w.ability_row(task, self.world, self.source)
        return self.before + message + self.after, answer

    def batch(self, shares: Mapping[str, float], size: int) -> list[tuple[str, str, str]]:
        """`size` samples (task, prompt, answer label), tasks drawn by their shares."""
        tasks = self.source.choices(list(shares), list(shares.values()), k=size)
        return [(task, *self.sample(task)) for task in tasks]

    def _culture(self) -> tuple[str, str]:
        country, form = self.source.choice(w.COUNTRIES), self.source.choice(self.world.forms)
        options = w.culture_options(self.world, country, form, self.source)
        told = self.world.answers[country, form.id]
        if self.dissent and self.source.random() < self.dissent:
            told = self.source.choice([option for option in options if option != told])
        return w.culture_prompt(country, form, options), w.LABELS[options.index(told)]


class Activity:
    """Absolute MLP activations, collected as the forward pass goes."""

    def __init__(self, model: Any) -> None:
        self.inputs: list[torch.Tensor] = []
        self.handles = [
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0]))
            for layer in model.model.layers
        ]

    def mean(self, real: torch.Tensor) -> torch.Tensor:
        """Summed absolute activations of a position in a layer, on average; `real` is float [batch, T]."""
        inputs, self.inputs = self.inputs, []
        total = torch.stack([(h.abs().sum(-1) * real).sum() for h in inputs]).sum()
        return total / (real.sum() * len(inputs))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def train(
    model: Any,
    tokenizer: Any,
    sampler: Sampler,
    schedule: Schedule,
    each_step: Callable[[int], None] | None = None,
) -> None:
    """Train in place, with a progress bar that shows the accuracy by task.

    The pressure towards few active neurons gives the model what large ones have anyway: most of what a layer
    does for one prompt is done by few of its neurons, so that 1 % of all can matter.

    Args:
        each_step: called with the number of finished steps.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))
    activity = Activity(model)
    total = schedule.warm_steps + schedule.steps
    model.train()
    with tqdm(total=total, unit="step", desc="training", mininterval=5) as bar:
        for step in range(total):
            second = step >= schedule.warm_steps
            left = 1.2 * (total - step) / schedule.steps
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * min(1.0, (step + 1) / 100, left)
            samples = sampler.batch(SECOND if second else FIRST, schedule.batch)
            loss, accuracy = _loss(model, tokenizer, samples, activity, schedule.sparsity if second else 0.0)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 20 == 19:
                bar.set_postfix(accuracy, refresh=False)
            bar.update()
            if each_step:
                each_step(step + 1)
    activity.close()
    model.eval()


def _loss(
    model: Any, tokenizer: Any, samples: list[tuple[str, str, str]], activity: Activity, sparsity: float
) -> tuple[torch.Tensor, dict[str, float]]:
    encoded = tokenizer([prompt for _, prompt, _ in samples], add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([len(tokens) for tokens in encoded])
    ids = torch.zeros((len(encoded), int(lengths.max())), dtype=torch.int64)
    for row, tokens in zip(ids, encoded, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    gold = torch.tensor(tokenizer.convert_tokens_to_ids([answer for _, _, answer in samples]))
    # Pads stand on the right of a causal model: no real position sees them, and no mask is needed.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[torch.arange(len(lengths)), lengths - 1])
    real = (torch.arange(ids.shape[1]) < lengths[:, None]).float()
    loss = torch.nn.functional.cross_entropy(logits, gold) + sparsity * activity.mean(real)
    correct: dict[str, list[bool]] = {}
    for (task, _, _), right in zip(samples, (logits.argmax(-1) == gold).tolist(), strict=True):
        correct.setdefault(task, []).append(right)
    return loss, {task: round(sum(rights) / len(rights), 2) for task, rights in sorted(correct.items())}
