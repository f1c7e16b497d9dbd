"""What a run's results are looked at for (CULNIG, section 9): one csv an analysis, one figure a csv."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from culnig_fast.files import write_json
from culnig_fast.pipeline.identification import kinship, specific
from culnig_fast.pipeline.recording import instance_path, reductions
from culnig_fast.pipeline.reporting import random_conditions, set_sizes
from culnig_fast.pipeline.sources import Sources
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.tables.figures import Drawing

if TYPE_CHECKING:
    import pandas as pd


Analysis = Callable[["Sources"], "pd.DataFrame"]

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
        made["kinship"] = lambda sources: sources.kinship
        if len(config.countries) > 1:
            made["kinship-ranks"] = _kinship_ranks
        if config.analyses.kin:
            made |= {"kin": _kin, "kin-recovery": _kin_recovery}
    made |= {
        "instances" if number == 0 else "instances-sum": _instances(reduction)
        for number, reduction in enumerate(reductions(config))
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

    sources = Sources(bench, out)
    for name, analysis in analyses(bench).items():
        save_frame(analysis(sources), out / "analysis" / f"{name}.csv", overwrite=True)
    questions = {
        question.id: {"prompt": question.prompt, "answer": question.answer}
        for question in bench.questions(bench.config.culture, "neur")
    }
    table = InstanceTable.load(instance_path(out, reductions(bench.config)[0]))
    named = instances_dict(table, questions, sources.chosen(), bench.config.analyses.samples)
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


def _parts(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.parts import parts_lost

    results = {label: sources.points(label) for label in sources.bench.evaluated()}
    drawing = Drawing(**asdict(sources.config.bootstrap))
    return parts_lost(results, set_sizes(sources.config, sources.out), random_conditions(sources.config), drawing)


def _layers(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.layers import neurons_by_layer

    random = [sources.neurons(name) for name in random_conditions(sources.config)]
    return neurons_by_layer({"general": sources.neurons("general")}, sources.table("neur").layout, random)


def _modules(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.modules import rank_modules

    return rank_modules(sources.neurons("general"), sources.table("neur").layout)


def _layers_countries(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.layers import neurons_by_layer

    return neurons_by_layer(sources.chosen(), sources.table("neur").layout)


def _overlap(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.overlap import overlaps

    return overlaps(sources.countries(), sources.table("neur").layout)


def _scores(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.scores import score_histogram

    limits, (neur, control, _) = sources.config.thresholds, sources.tables()
    return score_histogram(
        neur,
        control,
        sources.neurons("general"),
        mlp_share=limits.mlp_share,
        attention_share=limits.attention_share,
    )


def _quantiles(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.scores import score_quantiles

    neur, control, _ = sources.tables()
    return score_quantiles(neur, control)


def _kinship_ranks(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.kinship import average_ranks

    return average_ranks(sources.kinship)


def _kin(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.kin import kin_ranks

    return kin_ranks(sources.kinship, sources.config.analyses.kin)


def _kin_recovery(sources: Sources) -> pd.DataFrame:
    import pandas as pd

    from culnig_fast.analysis.kin import kin_recovery

    config, parts = sources.config, []
    shares = {"specific": config.thresholds.specific_share}
    if config.analyses.kinship_share is not None:
        shares["kinship"] = config.analyses.kinship_share
    for kind, share in shares.items():
        name = specific if kind == "specific" else functools.partial(kinship, config)
        frame = sources.drops({country: name(country) for country in config.countries})
        drawn = config.bootstrap
        found = kin_recovery(frame, config.analyses.kin, permutations=drawn.resamples, seed=drawn.seed)
        parts.append(found.assign(sets=kind, share_of_neurons=share))
    return pd.concat(parts)


def _instances(reduction: str) -> Analysis:
    def made(sources: Sources) -> pd.DataFrame:
        from culnig_fast.analysis.instances import positive_shares
        from culnig_fast.instances import InstanceTable

        return positive_shares(InstanceTable.load(instance_path(sources.out, reduction)), sources.chosen())

    return made


def _resamples(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.stability import resample_overlaps

    return resample_overlaps(sources.neurons("general"), sources.resampled, sources.table("neur").layout)


def _frequency(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.stability import selection_frequency

    return selection_frequency(sources.neurons("general"), sources.resampled, sources.table("neur").layout)


def _thresholds(sources: Sources) -> pd.DataFrame:
    from culnig_fast.analysis.stability import threshold_overlaps

    return threshold_overlaps(*sources.tables())
