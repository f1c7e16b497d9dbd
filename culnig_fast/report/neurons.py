"""The data behind the neuron tables and the neurons' samples, as the page's script reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import MODULE_NAMES
from culnig_fast.report.inert import script_json
from culnig_fast.report.limits import NEURON_ROWS, QUESTION_BYTES, SAMPLED_NEURONS, shares
from culnig_fast.report.reading import RunFiles, country_of, set_rank

_TITLES = {
    "general": "culture-general",
    "mlp": "culture-general, MLP alone",
    "attention": "culture-general, attention alone",
    "lape": "LAPE",
    "cape": "CAPE",
}

Key = tuple[str, int, int]
"""Module, layer, column."""


def neuron_data(run: RunFiles) -> dict[str, Any]:
    """Everything that the neuron tables show, ready for JSON, within the limits of a page.

    Returns:
        `modules`: names; `sets`: name, title, country, size, and rows of (index of the module, layer, column, score,
        positive share or None), best first; `samples`: top and bottom rows of (index of the question, score, P) by
        `layer/module/column`; `questions`: rows of (id, group, answer, prompt); `notes`: what was left out.
    """
    instances = _Instances(run.instances)
    notes: list[str] = []
    sets = _sets(run, instances, notes)
    samples, questions = instances.embedded(notes)
    return {"modules": list(MODULE_NAMES), "sets": sets, "samples": samples, "questions": questions, "notes": notes}


def set_title(name: str) -> str:
    """A neuron set's name as people read it."""
    country = country_of(name)
    if country is not None:
        return f"specific to {country}"
    if name.startswith("kinship-"):
        return f"{name.removeprefix('kinship-').replace('_', ' ')}, the wider set of kinship"
    return _TITLES.get(name, name.replace("_", " ").replace("-", " "))


def _sets(run: RunFiles, instances: _Instances, notes: list[str]) -> list[dict[str, Any]]:
    granted = _granted({name: len(chosen) for name, chosen in run.sets.items()})
    found: list[dict[str, Any]] = []
    for name, shown in granted.items():
        size = len(run.sets[name])
        rows = [
            [
                MODULE_NAMES.index(neuron.module_name),
                neuron.layer_idx,
                neuron.neuron_idx,
                rounded(neuron.attribute_score),
                instances.share((neuron.module_name, neuron.layer_idx, neuron.neuron_idx)),
            ]
            for neuron, _ in zip(run.sets[name], range(shown), strict=False)
        ]
        found.append({"name": name, "title": set_title(name), "country": country_of(name), "size": size, "rows": rows})
    cut = [entry for entry in found if len(entry["rows"]) < entry["size"]]
    if cut:
        first = cut[0]
        notes.append(
            f"The page holds {NEURON_ROWS:,} rows; {len(cut)} of {len(found)} sets are cut to their best neurons, "
            f"{first['title']} to {len(first['rows']):,} of {first['size']:,}. The folder neurons has them whole."
        )
    return found


def _granted(sizes: Mapping[str, int]) -> dict[str, int]:
    """Rows that each set gets: the general one first, then countries and other methods, then the rest.

    The rest is the general set's parts, which repeat it, and random neurons, at which nobody looks long. The general
    set leaves half of the page to others.
    """
    tiers: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for name in sizes:
        tiers[{0: 0, 2: 1, 3: 1}.get(set_rank(name)[0], 2)].append(name)
    left = NEURON_ROWS
    granted = dict.fromkeys(sizes, 0)
    for tier, names in tiers.items():
        given = shares([sizes[name] for name in names], left // 2 if tier == 0 else left)
        granted |= dict(zip(names, given, strict=True))
        left -= sum(given)
    return granted


class _Instances:
    """What `analysis/instances.json` holds, checked, by neuron."""

    def __init__(self, value: Mapping[str, Any] | None) -> None:
        self.neurons: dict[Key, Mapping[str, Any]] = {}
        self.questions: Mapping[str, Any] = {} if value is None else value["questions"]
        try:
            for entry in () if value is None else value["neurons"]:
                key = (str(entry["module_name"]), int(entry["layer_idx"]), int(entry["neuron_idx"]))
                self.neurons[key] = entry
                for sample in (*entry["top"], *entry["bottom"]):
                    question = self.questions[sample["id"]]
                    _ = question["prompt"], question["answer"], question["group"]
                    _ = float(sample["score"]), float(sample["probability"])
                _ = float(entry["positive_share"]), [str(name) for name in entry["sets"]]
                _ = float(entry.get("attribute_score", 0.0))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CulnigError(
                f"analysis/instances.json is damaged ({error!r}); delete it and continue the run"
            ) from error

    def share(self, key: Key) -> float | None:
        """The share of samples with a positive score, or None."""
        entry = self.neurons.get(key)
        return None if entry is None else rounded(entry["positive_share"])

    def embedded(self, notes: list[str]) -> tuple[dict[str, Any], list[list[str]]]:
        """The samples of as many neurons as a page holds, in turn from every set, and their questions."""
        samples: dict[str, Any] = {}
        positions: dict[str, int] = {}
        size = 0
        for key in self._in_turn():
            entry = self.neurons[key]
            ids = {sample["id"] for sample in (*entry["top"], *entry["bottom"])}
            more = sum(self._size(name) for name in ids if name not in positions)
            if len(samples) == SAMPLED_NEURONS or size + more > QUESTION_BYTES:
                notes.append(
                    f"The page holds the samples of {len(samples):,} of {len(self.neurons):,} neurons, the best of "
                    "each set; analysis/instances.json has all."
                )
                break
            size += more
            module, layer, column = key
            samples[f"{layer}/{module}/{column}"] = [
                [
                    [positions.setdefault(sample["id"], len(positions)), rounded(sample["score"]),
                     rounded(sample["probability"])]
                    for sample in entry[end]
                ]
                for end in ("top", "bottom")
            ]  # fmt: skip
        rows = [
            [name, *(str(self.questions[name][field]) for field in ("group", "answer", "prompt"))] for name in positions
        ]
        return samples, rows

    def _size(self, name: str) -> int:
        return len(script_json(str(self.questions[name]["prompt"])).encode())

    def _in_turn(self) -> Iterable[Key]:
        """Every neuron once: the first of each set, the second of each, and so on."""
        by_set: dict[str, list[Key]] = {}
        for key, entry in self.neurons.items():
            for name in map(str, entry["sets"]) if entry["sets"] else ("",):
                by_set.setdefault(name, []).append(key)
        for keys in by_set.values():
            keys.sort(key=lambda key: -float(self.neurons[key].get("attribute_score", 0.0)))
        longest = max(map(len, by_set.values()), default=0)
        turns = (keys[rank] for rank in range(longest) for keys in by_set.values() if rank < len(keys))
        return dict.fromkeys(turns)


def rounded(value: Any) -> float | None:
    """Six digits, which no reader misses; None for what is no finite number, which JSON cannot hold."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
