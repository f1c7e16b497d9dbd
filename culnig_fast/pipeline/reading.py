"""A run's yaml file, over the preset that it builds on."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from culnig_fast.errors import CulnigError
from culnig_fast.pipeline.config import RunConfig
from culnig_fast.pipeline.parsing import parse
from culnig_fast.pipeline.section import Section, brief

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
    return parse(Section(values, path.name), Path.cwd() if is_preset else path.absolute().parent)


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
