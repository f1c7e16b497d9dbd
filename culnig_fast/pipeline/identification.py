"""Scores, counters and neuron sets of a run (CULNIG, sections 3 to 7, and the baselines)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES, MLP_MODULES
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.scores import ScoreTable

TABLES = ("neur", "control", "crc")
"""Score tables of a run: the identification half, the same without what is asked, and CountryRC."""


def tables(config: RunConfig) -> dict[str, tuple[str, str]]:
    """(label, split) that each table is scored on."""
    return dict(
        zip(TABLES, ((config.culture, "neur"), (config.culture, "control"), (config.surface, "neur")), strict=True)
    )


def counted(config: RunConfig) -> bool:
    """Whether a baseline needs activation counters."""
    return not {"lape", "cape", "mean-activation"}.isdisjoint(config.baselines)


def specific(country: str) -> str:
    """Name of a country's set."""
    return f"specific-{country.replace(' ', '_')}"


def kinship(config: RunConfig, country: str) -> str:
    """Name of the set that a country's kinship is drawn from."""
    if config.analyses.kinship_share is None:
        return specific(country)
    return f"kinship-{country.replace(' ', '_')}"


def sets(config: RunConfig) -> tuple[str, ...]:
    """Names of all neuron sets, in an order in which each can be made from those before it."""
    return (
        "general",
        "mlp",
        "attention",
        *(f"random-{seed}" for seed in config.seeds),
        *dict.fromkeys((*map(specific, config.countries), *(kinship(config, country) for country in config.countries))),
        *(name for name in ("lape", "cape", "mean-activation", "weight-norm") if name in config.baselines),
    )


def score(bench: Workbench, label: str, split: str, path: Path, partial: Path, resamples: int = 0) -> None:
    """Write one score table, of groups or of `resamples` bootstrap resamples; continues from `partial`."""
    from culnig_fast.attribution import attribute

    config = bench.config
    table = attribute(
        bench.model,
        bench.tokenizer,
        bench.questions(label, split),
        sites=config.sites,
        control=split == "control",
        reduction=config.scoring.reduction,
        positions=config.scoring.positions,
        batch_tokens=config.batch_tokens,
        resamples=resamples,
        seed=config.analyses.seed,
        on_unusable=config.on_unusable,
        checkpoint=partial,
        checkpoint_seconds=config.checkpoint_seconds,
        progress=bench.progress,
    )
    table.metadata.update({"task": config.task(label).task, "split": split})
    table.save(path, overwrite=True)


def count(bench: Workbench, label: str, split: str, path: Path) -> None:
    """Write the activation counters."""
    from culnig_fast.baselines.activations import count_activations

    config = bench.config
    table = count_activations(
        bench.model,
        bench.tokenizer,
        bench.questions(label, split),
        sites=config.sites,
        batch_tokens=config.batch_tokens,
        on_unusable=config.on_unusable,
        progress=bench.progress,
    )
    table.save(path, overwrite=True)


@dataclass(frozen=True)
class Choice:
    """How one set is chosen.

    Attributes:
        choose: makes it, from the files of the stages that it needs.
        needs: those stages.
        options: JSON-ready; another value makes another set.
        modules: whose code makes it.
        reads_model: whether it looks at the weights.
    """

    choose: Callable[[], NeuronSet]
    needs: tuple[str, ...]
    options: Any
    modules: tuple[str, ...] = ("culnig_fast.selection.rules",)
    reads_model: bool = False


def choice(bench: Workbench, out: Path, name: str) -> Choice:
    """How the set of that name, one of `sets`, is chosen."""
    kind, _, which = name.partition("-")
    if kind in ("specific", "kinship"):
        country = next(c for c in bench.config.countries if name in (specific(c), kinship(bench.config, c)))
        share = bench.config.analyses.kinship_share if kind == "kinship" else None
        return _specific(bench.config, out, country, share)
    if kind == "random":
        return _random(out, int(which))
    if name in ("mlp", "attention"):
        return _part(out, MLP_MODULES if name == "mlp" else ATTENTION_MODULES)
    makers: dict[str, Callable[[Workbench, Path], Choice]] = {
        "general": _general,
        "lape": _lape,
        "cape": _cape,
        "mean-activation": _mean_activation,
        "weight-norm": _weight_norm,
    }
    return makers[name](bench, out)


def load_set(out: Path, name: str) -> NeuronSet:
    """A set of the run that was made already."""
    return NeuronSet.load(out / "neurons" / f"{name}.json")


def load_table(out: Path, name: str) -> ScoreTable:
    """A score table of the run that was made already."""
    return ScoreTable.load(out / "scores" / f"{name}.safetensors")


_SCORES = tuple(f"scores/{name}" for name in TABLES)


def _load_tables(out: Path) -> tuple[ScoreTable, ...]:
    return tuple(load_table(out, name) for name in TABLES)


def _general(bench: Workbench, out: Path) -> Choice:
    from culnig_fast.selection.rules import select_general

    limits = bench.config.thresholds
    shares = {name: getattr(limits, name) for name in ("mlp_share", "attention_share", "surface_share")}

    def choose() -> NeuronSet:
        neur, control, surface = _load_tables(out)
        chosen = select_general(neur, control, surface, **shares)
        if not len(chosen):
            raise CulnigError(
                "no neuron passed the thresholds of the culture-general set, so there is nothing to evaluate; raise "
                "thresholds.mlp_share or attention_share, or lower surface_share"
            )
        return chosen

    return Choice(choose, _SCORES, shares)


def _specific(config: RunConfig, out: Path, country: str, share: float | None) -> Choice:
    """By the thresholds' own share, or another."""
    from culnig_fast.selection.rules import select_specific

    limits = config.thresholds
    share = limits.specific_share if share is None else share

    def choose() -> NeuronSet:
        neur, control, surface = _load_tables(out)
        return select_specific(
            neur,
            control,
            surface,
            country,
            share=share,
            surface_share=limits.specific_surface_share,
            min_z=limits.min_z,
        )

    options = [country, share, limits.specific_surface_share, limits.min_z]
    return Choice(choose, _SCORES, options)


def _random(out: Path, seed: int) -> Choice:
    from culnig_fast.selection.rules import select_random

    def choose() -> NeuronSet:
        return select_random(load_table(out, "neur").layout, len(load_set(out, "general")), seed=seed)

    return Choice(choose, ("scores/neur", "neurons/general"), seed)


def _part(out: Path, modules: tuple[str, ...]) -> Choice:
    return Choice(lambda: load_set(out, "general").where(modules), ("neurons/general",), list(modules))


def _lape(bench: Workbench, out: Path) -> Choice:
    from culnig_fast.baselines.activations import ActivationTable
    from culnig_fast.baselines.entropy import select_by_entropy

    def choose() -> NeuronSet:
        table = ActivationTable.load(out / "scores" / "activations.safetensors")
        parts = {
            language: present
            for language, countries in bench.config.languages.items()
            if (present := [country for country in countries if country in table.groups])
        }
        return select_by_entropy(table.merged(parts), method="lape").neurons

    languages = {name: list(countries) for name, countries in bench.config.languages.items()}
    return Choice(choose, ("activations",), languages, ("culnig_fast.baselines.entropy",))


def _cape(bench: Workbench, out: Path) -> Choice:
    from culnig_fast.baselines.activations import ActivationTable
    from culnig_fast.baselines.entropy import select_by_entropy

    exclude = "lape" in bench.config.baselines

    def choose() -> NeuronSet:
        table = ActivationTable.load(out / "scores" / "activations.safetensors")
        return select_by_entropy(table, method="cape", exclude=load_set(out, "lape") if exclude else None).neurons

    needs = ("activations", *(("neurons/lape",) if exclude else ()))
    return Choice(choose, needs, exclude, ("culnig_fast.baselines.entropy",))


def _mean_activation(bench: Workbench, out: Path) -> Choice:
    from culnig_fast.baselines.activations import ActivationTable
    from culnig_fast.baselines.selecting import select_like

    def choose() -> NeuronSet:
        table = ActivationTable.load(out / "scores" / "activations.safetensors").scores()
        return select_like(table, load_set(out, "general"), method="mean activation")

    return Choice(choose, ("activations", "neurons/general"), None, ("culnig_fast.baselines.selecting",))


def _weight_norm(bench: Workbench, out: Path) -> Choice:
    from culnig_fast.baselines.selecting import select_like
    from culnig_fast.baselines.weights import weight_norms

    def choose() -> NeuronSet:
        general = load_set(out, "general")
        table = weight_norms(bench.model, sorted(set(general.module_names)) or None)
        return select_like(table, general, method="weight norm")

    modules = ("culnig_fast.baselines.selecting", "culnig_fast.baselines.weights")
    return Choice(choose, ("neurons/general",), None, modules, reads_model=True)
