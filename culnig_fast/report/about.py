"""The section of what was run: facts by kind, tasks, and time by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from culnig_fast.report.neurons import set_title
from culnig_fast.report.reading import RunFiles
from culnig_fast.tables.table import Cell

_PLAIN_NAMES = {
    "mlp_share": "MLP pool, share taken",
    "attention_share": "attention pool, share taken",
    "surface_share": "dropped when in the top share on country names",
    "specific_share": "country sets, share taken",
    "specific_surface_share": "country sets, dropped when in the top share on country names",
    "min_z": "country sets, least z over countries",
    "neur": "identification",
    "control": "control",
    "crc": "country names (CRC)",
    "surface": "country names (CRC)",
    "dtype": "number format",
    "model_class": "class",
}
_DEEPEST = 8
_STAGES = {
    "scores": "scoring",
    "neurons": "choosing neurons",
    "results": "evaluation",
    "tables": "tables",
    "instances": "scores of single samples",
    "analysis": "analyses",
    "figures": "figures",
}


@dataclass(frozen=True)
class Facts:
    """A heading and its (name, value) pairs."""

    title: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KeyFigure:
    """What one task lost: accuracy before, suppressed, and with random sets, in points."""

    task: str
    original: float
    suppressed: float
    random: float | None
    significant: bool
    p: float | None


def run_facts(run: RunFiles) -> list[Facts]:
    """Facts from `run.json`, or as many as the general set's file remembers."""
    facts = run.facts if run.facts is not None else _remembered(run)
    groups = []
    for key, title in (
        ("model", "Model"),
        ("samples", "Samples scored"),
        ("scoring", "Scoring"),
        ("thresholds", "Thresholds"),
        ("neurons", "Neurons chosen"),
        ("versions", "Versions"),
    ):
        value = _sizes(run) or facts.get(key) if key == "neurons" else facts.get(key)
        if isinstance(value, Mapping) and value:
            named = str if key in ("versions", "neurons") else plain_name
            groups.append(Facts(title, tuple((named(str(name)), plain(item)) for name, item in value.items())))
        elif value not in (None, {}, []):
            groups.append(Facts(title, ((title, plain(value)),)))
    rest = {key: facts[key] for key in ("device", "countries", "seeds") if facts.get(key) not in (None, [], "")}
    if rest:
        groups.append(Facts("Setting", tuple((plain_name(name), plain(item)) for name, item in rest.items())))
    return groups


def model_name(run: RunFiles) -> str | None:
    """The model's name, where the folder has it."""
    facts = run.facts if run.facts is not None else _remembered(run)
    model = facts.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    return str(name) if name else None


def tasks(run: RunFiles) -> list[dict[str, str]]:
    """The benchmarks of `run.json` as rows of text; of the questions left out, how many."""
    given = (run.facts or {}).get("tasks")
    rows = [row for row in given if isinstance(row, Mapping)] if isinstance(given, list) else []
    counted = [{key: len(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows]
    return [{str(key): plain(value) for key, value in row.items()} for row in counted]


def key_figures(run: RunFiles) -> list[KeyFigure]:
    """What the main table says of each task, when it has its rows: original, suppressed, random."""
    main = next((table for table in run.tables if table.name == "main"), None)
    if main is None or len(main.rows) < 2:
        return []
    cells: list[tuple[Cell | None, ...]] = [row[2] for row in main.rows]
    found = []
    for i, task in enumerate(main.columns):
        original, suppressed = cells[0][i], cells[1][i]
        random = cells[2][i] if len(cells) > 2 else None
        if original is not None and suppressed is not None:
            other = None if random is None else random.value
            found.append(KeyFigure(task, original.value, suppressed.value, other, suppressed.bold, suppressed.p_holm))
    return found


def times(run: RunFiles) -> list[tuple[str, int, float]]:
    """(kind of stage, how many, seconds together), in the order in which they were begun."""
    kinds: dict[str, list[float]] = {}
    for name, seconds in run.stages:
        kinds.setdefault(name.split("/")[0], []).append(seconds)
    return [(_STAGES.get(kind, kind), len(given), sum(given)) for kind, given in kinds.items()]


def plain_name(name: str) -> str:
    """A key as people read it."""
    return _PLAIN_NAMES.get(name, name.replace("_", " "))


def plain(value: Any, depth: int = 0) -> str:
    """A JSON value as people read it; what lies deeper in it than a run ever writes is left out."""
    if isinstance(value, (Mapping, list)) and depth > _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        named = (f"{plain_name(str(key))} {plain(item, depth + 1)}" for key, item in value.items())
        return ", ".join(named) or "none"
    if isinstance(value, list):
        return ", ".join(plain(item, depth + 1) for item in value) or "none"
    if isinstance(value, bool) or value is None:
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value)


def _sizes(run: RunFiles) -> dict[str, str]:
    """How many neurons each set has; random sets of one size stand in one line."""
    found: dict[str, str] = {}
    random: dict[int, int] = {}
    for name, chosen in run.sets.items():
        if name.startswith("random-"):
            random[len(chosen)] = random.get(len(chosen), 0) + 1
        else:
            found[set_title(name)] = f"{len(chosen):,}"
    for size, count in random.items():
        found[f"random ({count} sets)" if count > 1 else "random"] = f"{size:,} each" if count > 1 else f"{size:,}"
    return found


def _remembered(run: RunFiles) -> dict[str, Any]:
    """The facts that the general set's file has beside its neurons."""
    general = run.sets.get("general")
    info = {} if general is None else general.info
    sources = info.get("sources")
    sources = sources if isinstance(sources, Mapping) else {}
    found: dict[str, Any] = {}
    if isinstance(info.get("thresholds"), Mapping):
        found["thresholds"] = info["thresholds"]
    found["samples"] = {
        name: of["samples"] for name, of in sources.items() if isinstance(of, Mapping) and "samples" in of
    }
    neur = sources.get("neur")
    metadata = neur.get("metadata") if isinstance(neur, Mapping) else None
    if isinstance(metadata, Mapping):
        names = {"name": "model", "class": "model_class", "number format": "dtype", "attention": "attention"}
        found["model"] = {name: metadata[key] for name, key in names.items() if metadata.get(key)}
        found["versions"] = {name: metadata[name] for name in ("torch", "transformers") if metadata.get(name)}
        found["device"] = metadata.get("device")
    return found
