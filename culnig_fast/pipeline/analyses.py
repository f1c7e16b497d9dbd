"""What a run's results are looked at for (CULNIG, section 9): one csv an analysis, one figure a csv."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.files import write_json
from culnig_fast.neurons import NeuronSet
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.identification import kinship, load_set, load_table, specific
from culnig_fast.pipeline.reporting import random_conditions, set_sizes, task_points
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.tables.figures import Drawing

if TYPE_CHECKING:
    import pandas as pd

    from culnig_fast.scores import ScoreTable

Analysis = Callable[[Workbench, Path], "pd.DataFrame"]

TEXTS = "instances.json"
"""Neurons with their top and bottom samples and these samples' text."""


def analyses(bench: Workbench) -> dict[str, Analysis]:
    """Name → how its frame is made, of every analysis that the config gives the data for."""
    config = bench.config
    culture = config.culture in bench.evaluated() and bench.by_country(config.culture)
    made: dict[str, Analysis] = {
        "parts": _parts,
        "layers": _layers,
        "modules": _modules,
        "scores": _scores,
        "score-quantiles": _quantiles,
    }
    if config.countries:
        made |= {"layers-countries": _layers_countries, "overlap": _overlap}
    if config.countries and culture:
        made["kinship"] = _kinship
        if len(config.countries) > 1:
            made["kinship-ranks"] = _kinship_ranks
        if config.analyses.kin:
            made |= {"kin": _kin, "kin-recovery": _kin_recovery}
    made |= {
        "instances" if reduction == "max" else "instances-sum": _instances(reduction)
        for reduction in reductions(config)
    }
    if config.analyses.resamples:
        made |= {"stability-resamples": _resamples, "stability-neurons": _frequency}
    made["stability-thresholds"] = _thresholds
    return made


def paths(bench: Workbench, out: Path) -> tuple[Path, ...]:
    """The files that `write` writes."""
    return (*(out / "analysis" / f"{name}.csv" for name in analyses(bench)), out / "analysis" / TEXTS)


def write(bench: Workbench, out: Path) -> None:
    """Make every analysis and write its csv, and the text of the samples."""
    from culnig_fast.analysis.frames import save_frame
    from culnig_fast.analysis.instances import instances_dict
    from culnig_fast.instances import InstanceTable

    for name, analysis in analyses(bench).items():
        save_frame(analysis(bench, out), out / "analysis" / f"{name}.csv", overwrite=True)
    questions = {
        question.id: {"prompt": question.prompt, "answer": question.answer}
        for question in bench.questions(bench.config.culture, "neur")
    }
    table = InstanceTable.load(instance_path(out))
    named = instances_dict(table, questions, _chosen_sets(bench.config, out), bench.config.analyses.samples)
    write_json(out / "analysis" / TEXTS, named, overwrite=True)


def figures(bench: Workbench) -> tuple[str, ...]:
    """Names of the analyses that have a figure."""
    from culnig_fast.analysis.catalogue import PLOTS

    return tuple(name for name in PLOTS if name in analyses(bench))


def figure_paths(bench: Workbench, out: Path) -> tuple[Path, ...]:
    """Their files."""
    return tuple(out / "figures" / f"{name}{ending}" for name in figures(bench) for ending in (".svg", ".pdf"))


def write_figures(bench: Workbench, out: Path) -> None:
    """Draw every figure from its csv alone."""
    from culnig_fast.analysis.catalogue import PLOTS
    from culnig_fast.analysis.frames import load_frame
    from culnig_fast.analysis.style import save_figure

    for name in figures(bench):
        frame = load_frame(out / "analysis" / f"{name}.csv")
        save_figure(PLOTS[name].draw(frame), out / "figures", name, overwrite=True)


def reductions(config: RunConfig) -> tuple[str, ...]:
    """Over positions, of the scores of single samples."""
    return ("max", "sum") if config.analyses.summed else ("max",)


def instance_path(out: Path, reduction: str = "max") -> Path:
    """A table of single samples' scores."""
    return out / "instances" / f"{reduction}.safetensors"


def watched(config: RunConfig, out: Path) -> NeuronSet:
    """The neurons that are looked at sample by sample: the general set, and the first ones of each country's."""
    rows: dict[tuple[str, int, int], float] = {}
    for name, chosen in _chosen_sets(config, out).items():
        for neuron in list(chosen)[: None if name == "general" else config.analyses.shown]:
            rows.setdefault((neuron.module_name, neuron.layer_idx, neuron.neuron_idx), neuron.attribute_score)
    modules, layers, columns = zip(*rows, strict=True) if rows else ((), (), ())
    return NeuronSet(tuple(modules), np.array(layers), np.array(columns), np.array(list(rows.values())))


def record(bench: Workbench, out: Path) -> None:
    """Write the scores of the watched neurons on every question of the identification half."""
    from culnig_fast.instances import record_instances

    config = bench.config
    for reduction in reductions(config):
        table = record_instances(
            bench.model,
            bench.tokenizer,
            bench.questions(config.culture, "neur"),
            watched(config, out),
            reduction=reduction,
            batch_tokens=config.batch_tokens,
            on_unusable=config.on_unusable,
            progress=bench.progress,
        )
        table.save(instance_path(out, reduction), overwrite=True)


def _chosen_sets(config: RunConfig, out: Path) -> dict[str, NeuronSet]:
    """The general set and each country's, by the names that people read."""
    return {"general": load_set(out, "general"), **_country_sets(config, out)}


def _country_sets(config: RunConfig, out: Path) -> dict[str, NeuronSet]:
    return {country: load_set(out, specific(country)) for country in config.countries}


def _tables(out: Path, prefix: str = "") -> tuple[ScoreTable, ScoreTable, ScoreTable]:
    return load_table(out, f"{prefix}neur"), load_table(out, f"{prefix}control"), load_table(out, f"{prefix}crc")


def _parts(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.parts import parts_lost

    results = {label: task_points(bench, out, label) for label in bench.evaluated()}
    drawing = Drawing(**asdict(bench.config.bootstrap))
    return parts_lost(results, set_sizes(bench.config, out), random_conditions(bench.config), drawing)


def _layers(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.layers import neurons_by_layer

    random = [load_set(out, name) for name in random_conditions(bench.config)]
    return neurons_by_layer({"general": load_set(out, "general")}, load_table(out, "neur").layout, random)


def _modules(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.modules import rank_modules

    return rank_modules(load_set(out, "general"), load_table(out, "neur").layout)


def _layers_countries(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.layers import neurons_by_layer

    return neurons_by_layer(_chosen_sets(bench.config, out), load_table(out, "neur").layout)


def _overlap(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.overlap import overlaps

    return overlaps(_country_sets(bench.config, out), load_table(out, "neur").layout)


def _scores(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.scores import score_histogram

    limits, (neur, control, _) = bench.config.thresholds, _tables(out)
    return score_histogram(
        neur,
        control,
        load_set(out, "general"),
        mlp_share=limits.mlp_share,
        attention_share=limits.attention_share,
    )


def _quantiles(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.scores import score_quantiles

    neur, control, _ = _tables(out)
    return score_quantiles(neur, control)


def _kinship(bench: Workbench, out: Path) -> pd.DataFrame:
    return _drops(bench, out, {country: kinship(bench.config, country) for country in bench.config.countries})


def _drops(bench: Workbench, out: Path, names: dict[str, str]) -> pd.DataFrame:
    """By the task's points, of each country's set of that name."""
    from culnig_fast.analysis.kinship import drops

    return drops(task_points(bench, out, bench.config.culture), names)


def _kinship_ranks(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.kinship import average_ranks

    return average_ranks(_kinship(bench, out))


def _kin(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.kin import kin_ranks

    return kin_ranks(_kinship(bench, out), bench.config.analyses.kin)


def _kin_recovery(bench: Workbench, out: Path) -> pd.DataFrame:
    import pandas as pd

    from culnig_fast.analysis.kin import kin_recovery

    config, parts = bench.config, []
    shares = {"specific": config.thresholds.specific_share}
    if config.analyses.kinship_share is not None:
        shares["kinship"] = config.analyses.kinship_share
    for kind, share in shares.items():
        name = specific if kind == "specific" else functools.partial(kinship, config)
        frame = _drops(bench, out, {country: name(country) for country in config.countries})
        drawn = config.bootstrap
        found = kin_recovery(frame, config.analyses.kin, permutations=drawn.resamples, seed=drawn.seed)
        parts.append(found.assign(sets=kind, share_of_neurons=share))
    return pd.concat(parts)


def _instances(reduction: str) -> Analysis:
    def made(bench: Workbench, out: Path) -> pd.DataFrame:
        from culnig_fast.analysis.instances import positive_shares
        from culnig_fast.instances import InstanceTable

        return positive_shares(InstanceTable.load(instance_path(out, reduction)), _chosen_sets(bench.config, out))

    return made


def _resampled(bench: Workbench, out: Path) -> dict[str, NeuronSet]:
    from culnig_fast.analysis.stability import select_resamples
    from culnig_fast.selection import select_general

    limits = bench.config.thresholds

    def select(neur: ScoreTable, control: ScoreTable | None, surface: ScoreTable | None) -> NeuronSet:
        return select_general(
            neur,
            control,
            surface,
            mlp_share=limits.mlp_share,
            attention_share=limits.attention_share,
            surface_share=limits.surface_share,
        )

    return select_resamples(*_tables(out, "resampled-"), select=select)


def _resamples(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.stability import resample_overlaps

    return resample_overlaps(load_set(out, "general"), _resampled(bench, out), load_table(out, "neur").layout)


def _frequency(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.stability import selection_frequency

    return selection_frequency(load_set(out, "general"), _resampled(bench, out), load_table(out, "neur").layout)


def _thresholds(bench: Workbench, out: Path) -> pd.DataFrame:
    from culnig_fast.analysis.stability import threshold_overlaps

    return threshold_overlaps(*_tables(out))
