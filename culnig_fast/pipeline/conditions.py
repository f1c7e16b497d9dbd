"""The interventions of a run, and a task evaluated under one of them (CULNIG, sections 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.identification import kinship, load_set, specific
from culnig_fast.pipeline.workbench import Workbench


@dataclass(frozen=True)
class Condition:
    """What is done to which neurons while the model answers.

    Attributes:
        name: the folder of its results.
        neurons: the set, one of `identification.sets`; None leaves the model as it is.
        factor: their outputs are multiplied by it.
        country_only: evaluated only on tasks whose groups are countries.
        only: evaluated only on the task of that label.
    """

    name: str
    neurons: str | None
    factor: float = 0.0
    country_only: bool = False
    only: str | None = None


def conditions(config: RunConfig) -> tuple[Condition, ...]:
    """All of a run, the untouched model first."""
    return (
        Condition("original", None),
        Condition("suppressed", "general"),
        *(Condition(f"random-{seed}", f"random-{seed}") for seed in config.seeds),
        Condition("enhanced", "general", 2.0),
        Condition("mlp", "mlp"),
        Condition("attention", "attention"),
        *(Condition(name, name) for name in config.baselines),
        *(Condition(specific(country), specific(country), country_only=True) for country in config.countries),
        *(
            Condition(kinship(config, country), kinship(config, country), country_only=True, only=config.culture)
            for country in config.countries
            if kinship(config, country) != specific(country)
        ),
    )


def conditions_of(bench: Workbench, label: str) -> tuple[Condition, ...]:
    """Those that one of the run's tasks is evaluated under."""
    by_country = bench.by_country(label)
    return tuple(
        condition
        for condition in conditions(bench.config)
        if (by_country or not condition.country_only) and condition.only in (None, label)
    )


def evaluate_under(bench: Workbench, out: Path, label: str, condition: Condition, path: Path) -> None:
    """Write the results of one task under one condition.

    The task's prompts are tokenised and batched once for all conditions. Conditions come one after another and not
    batch by batch: that costs the same passes, and each finished condition is on disk.
    """
    from culnig_fast.evaluation import evaluate
    from culnig_fast.masking import scaled

    task, config = bench.tasks[label], bench.config
    chosen = NeuronSet.empty() if condition.neurons is None else load_set(out, condition.neurons)
    with scaled(bench.architecture, chosen, condition.factor):
        if task.generates:
            from culnig_fast.generation import answer

            result = answer(
                bench.model,
                bench.tokenizer,
                bench.questions(label, bench.evaluated()[label]),
                task.score,
                max_new_tokens=config.max_new_tokens,
                batch_tokens=config.batch_tokens,
                progress=False,
            )
        else:
            result = evaluate(bench.model, bench.tokenizer, bench.prepared(label), progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    result.save(path, overwrite=True)
