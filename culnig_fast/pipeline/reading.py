"""A run's yaml file, checked key by key before anything is loaded."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

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
    TaskConfig,
    Thresholds,
)
from culnig_fast.pipeline.section import Section, brief
from culnig_fast.tasks.base import Task, tasks
from culnig_fast.tasks.countries import TARGET_COUNTRIES, country_name

_DEEPEST = 200


def presets() -> tuple[str, ...]:
    """Names of the configs that come with the package."""
    folder = resources.files("culnig_fast") / "presets"
    return tuple(sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_config(source: str | Path, **overrides: Any) -> RunConfig:
    """Read a config file, or a preset by its name.

    Paths in a file are relative to the file's folder, those of a preset to the current one.

    Args:
        source: a yaml file or one of `presets()`.
        overrides: `out`, `device`: instead of what the file says; None changes nothing.

    Raises:
        CulnigError: no such file; not yaml; an unknown key, a wrong type, a value out of range, a missing file:
            one sentence that names the key.
    """
    source = str(source)
    is_preset = source in presets() and not Path(source).is_file()
    path = _preset_path(source) if is_preset else Path(source)
    values = _merged(_read(path, source), path.name, ())
    if overrides.get("out") is not None:
        values["out"] = str(Path(overrides["out"]).absolute())
    if overrides.get("device") is not None:
        model = values.get("model")
        values["model"] = {**(model if isinstance(model, dict) else {"name": model}), "device": overrides["device"]}
    return _parse(Section(values, path.name), Path.cwd() if is_preset else path.absolute().parent)


def _preset_path(name: str) -> Path:
    return Path(str(resources.files("culnig_fast") / "presets" / f"{name}.yaml"))


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if _depth(text) > _DEEPEST:
            raise CulnigError(f"{source} is nested more than {_DEEPEST} brackets deep; a run's config needs three")
        value = yaml.safe_load(text)
    except OSError as error:
        raise CulnigError(
            f"no config {source} ({error.strerror}); give a yaml file or one of the presets {', '.join(presets())}"
        ) from error
    except CulnigError:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CulnigError(f"{source} is not a yaml file ({reason:.200}); mend it there") from error
    if not isinstance(value, dict):
        raise CulnigError(f"{source} holds no keys and values; a run needs at least model, out and tasks")
    return value


def _depth(text: str) -> int:
    """The most brackets open at a time: the time that the yaml parser takes grows with the square of it."""
    depth = most = 0
    for bracket in re.findall(r"[\[{\]}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        most = max(most, depth)
    return most


def _merged(values: dict[str, Any], where: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The file's values over those of the preset that it names, and of the preset's own preset."""
    name = values.get("preset")
    if name is None:
        return {key: value for key, value in values.items() if key != "preset"}
    if name not in presets():
        raise CulnigError(f"{where}: preset is {brief(name)}; choose from {', '.join(presets())}")
    if name in seen:
        raise CulnigError(f"{where}: preset {name} builds on itself")
    below = _merged(_read(_preset_path(name), name), f"{name}.yaml", (*seen, name))
    return _over({key: value for key, value in values.items() if key != "preset"}, below)


def _over(upper: Any, lower: Any) -> Any:
    if not (isinstance(upper, dict) and isinstance(lower, dict)):
        return upper
    return {**lower, **{key: _over(value, lower[key]) if key in lower else value for key, value in upper.items()}}


def _parse(section: Section, folder: Path) -> RunConfig:
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
