"""The keys of a run's file, each checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from culnig_kernels.validate import REDUCTIONS

from culnig_fast.chosen_positions import NAMES
from culnig_fast.errors import CulnigError
from culnig_fast.models import DTYPES, EMBEDDED
from culnig_fast.neurons import check_module_names
from culnig_fast.pipeline.config import (
    BASELINES,
    LANGUAGES,
    Analyses,
    Bootstrap,
    ModelConfig,
    RunConfig,
    Scoring,
    TaskConfig,
    Thresholds,
)
from culnig_fast.pipeline.section import Section
from culnig_fast.tasks.base import Task, tasks
from culnig_fast.tasks.countries import TARGET_COUNTRIES, country_name


def parse(section: Section, folder: Path) -> RunConfig:
    """The config that the keys make.

    Args:
        section: of the whole file.
        folder: what paths are relative to.

    Raises:
        CulnigError: names the key that is wrong.
    """
    out = section.text("out")
    if out is None:
        raise CulnigError(f"{section.name('out')} is missing; name the folder to write to")
    config = RunConfig(
        model=_model(section, folder),
        out=folder / out,
        tasks=_tasks(section, folder),
        culture=str(section.text("culture", "blend")),
        surface=str(section.text("surface", "country_rc")),
        sites=_sites(section),
        scoring=_scoring(section.section("scoring")),
        thresholds=_thresholds(section.section("thresholds")),
        countries=_countries(section, "countries", TARGET_COUNTRIES),
        seeds=section.seeds("seeds", 10),
        baselines=_baselines(section),
        languages=_languages(section),
        batch_tokens=section.whole("batch_tokens", None, low=1),
        on_unusable=section.choice("on_unusable", ("skip", "error"), "skip"),
        max_new_tokens=section.whole("max_new_tokens", 32, low=1) or 32,
        checkpoint_seconds=section.number("checkpoint_seconds", 60.0, low=0),
        bootstrap=_bootstrap(section.section("bootstrap")),
        analyses=_analyses(section.section("analyses")),
        published=section.text("published"),
    )
    section.finish()
    _check_roles(section, config)
    return config


def _check_roles(section: Section, config: RunConfig) -> None:
    labels = {task.label: task for task in config.tasks}
    for key, label, split in (
        ("culture", config.culture, "control"),
        ("surface", config.surface, "neur"),
    ):
        if label not in labels:
            raise CulnigError(f"{section.name(key)} is {label!r}, which is none of the tasks {', '.join(labels)}")
        if split not in tasks()[labels[label].task].splits:
            raise CulnigError(f"{section.name(key)} is {label!r}, whose benchmark has no split {split!r}; name another")
    if not config.seeds:
        raise CulnigError(f"{section.name('seeds')} is 0; the tables compare with one random set at least")
    if not any(task.evaluate for task in config.tasks):
        raise CulnigError(f"{section.name('tasks')} evaluates nothing; leave out `evaluate: false` of one")


def _model(section: Section, folder: Path) -> ModelConfig:
    value = section.raw("model")
    if value is None:
        raise CulnigError(f"{section.name('model')} is missing; name a checkpoint folder, a hub id or {EMBEDDED!r}")
    part = Section({"name": value} if isinstance(value, str) else value, section.name("model"))
    name = part.text("name")
    if name is None:
        raise CulnigError(f"{part.name('name')} is missing; name a checkpoint folder, a hub id or {EMBEDDED!r}")
    if name != EMBEDDED:
        if (folder / name).is_dir():
            name = str(folder / name)
        elif not _may_be_on_hub(name):
            raise CulnigError(f"{part.name('name')}: there is no folder {name}")
    model = ModelConfig(
        name,
        part.choice("dtype", DTYPES, "auto"),
        part.text("device"),
        part.text("revision"),
        part.flag("trust_remote_code", False),
    )
    part.finish()
    return model


def _may_be_on_hub(name: str) -> bool:
    """Whether it reads like owner/name and not like a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _tasks(section: Section, folder: Path) -> tuple[TaskConfig, ...]:
    entries = section.section("tasks")
    values = entries.rest()
    if not values:
        raise CulnigError(f"{section.name('tasks')} is empty; name the benchmarks, each with its files")
    return tuple(
        _task(label, value, entries.name(label), folder) for label, value in values.items() if value is not False
    )


def _task(label: str, value: Any, where: str, folder: Path) -> TaskConfig:
    if not all(character.isalnum() or character in "_-" for character in label):
        raise CulnigError(f"{where}: a task is named with letters, digits, _ and -, for files are called after it")
    part = Section({"data": value} if isinstance(value, str) else value, where)
    known = tasks()
    name = part.choice("task", known, label)
    if name not in known:
        raise CulnigError(f"{where} is no benchmark; choose from {', '.join(known)}, or name one with the key task")
    config = TaskConfig(
        label=label,
        task=name,
        data=_data(part, folder),
        split=_split(part, known[name]),
        evaluate=part.flag("evaluate", True),
        limit=part.whole("limit", None, low=1),
        files={key: _file(part, key, folder) for key in known[name].files if part.raw(key) is not None},
    )
    part.finish()
    return config


def _split(part: Section, task: type[Task]) -> str | None:
    value = part.raw("split")
    return None if value is None else part.choice("split", task.splits, "test")


def _data(part: Section, folder: Path) -> str | None:
    name = part.text("data")
    if name is None or name == EMBEDDED:
        return name
    if (folder / name).exists():
        return str(folder / name)
    if _may_be_on_hub(name) and not Path(name).suffix:
        return name
    raise CulnigError(f"{part.name('data')}: there is no file {folder / name}")


def _file(part: Section, key: str, folder: Path) -> str:
    path = folder / str(part.text(key))
    if not path.exists():
        raise CulnigError(f"{part.name(key)}: there is no file {path}")
    return str(path)


def _sites(section: Section) -> tuple[str, ...] | None:
    names = section.texts("sites", ())
    try:
        return check_module_names(names) if names else None
    except CulnigError as error:
        raise CulnigError(f"{section.name('sites')}: {error}") from error


def _scoring(part: Section) -> Scoring:
    scoring = Scoring(
        part.choice("reduction", REDUCTIONS, Scoring.reduction), part.choice("positions", NAMES, Scoring.positions)
    )
    part.finish()
    return scoring


def _thresholds(part: Section) -> Thresholds:
    shares = {
        name: part.number(name, getattr(Thresholds, name), 0, 1)
        for name in ("mlp_share", "attention_share", "surface_share", "specific_share", "specific_surface_share")
    }
    thresholds = Thresholds(**shares, min_z=part.number("min_z", Thresholds.min_z))
    part.finish()
    return thresholds


def _countries(section: Section, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(map(country_name, section.texts(key, default))))
    except CulnigError as error:
        raise CulnigError(f"{section.name(key)}: {error}") from error


def _baselines(section: Section) -> tuple[str, ...]:
    names = section.texts("baselines", ())
    for name in names:
        if name not in BASELINES:
            raise CulnigError(f"{section.name('baselines')} has {name!r}; choose from {', '.join(BASELINES)}")
    return names


def _languages(section: Section) -> dict[str, tuple[str, ...]]:
    if section.raw("languages") is None:
        return dict(LANGUAGES)
    part = section.section("languages")
    languages = {name: _countries(part, name, ()) for name in part.rest()}
    return languages


def _bootstrap(part: Section) -> Bootstrap:
    drawn = Bootstrap(
        resamples=part.whole("resamples", Bootstrap.resamples, low=1) or Bootstrap.resamples,
        seed=part.whole("seed", 0) or 0,
        confidence=part.number("confidence", Bootstrap.confidence, 0.5, 0.999),
    )
    part.finish()
    return drawn


def _analyses(part: Section) -> Analyses:
    counts = {
        name: part.whole(name, default, low=low) or 0
        for name, default, low in (
            ("resamples", Analyses.resamples, 0),
            ("seed", Analyses.seed, 0),
            ("shown", Analyses.shown, 1),
            ("samples", Analyses.samples, 1),
        )
    }
    share = part.number("kinship_share", 0.0, 0, 1)
    analyses = Analyses(
        **counts,
        summed=part.flag("summed", Analyses.summed),
        kinship_share=share or None,
        figures=part.flag("figures", Analyses.figures),
        kin=_kin(part),
    )
    part.finish()
    return analyses


def _kin(part: Section) -> tuple[tuple[str, ...], ...]:
    groups = part.raw("kin") or []
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and len(group) > 1 and all(isinstance(name, str) for name in group) for group in groups
    ):
        raise CulnigError(f"{part.name('kin')} is {groups!r}; give lists of at least two countries each")
    try:
        return tuple(tuple(map(country_name, group)) for group in groups)
    except CulnigError as error:
        raise CulnigError(f"{part.name('kin')}: {error}") from error
