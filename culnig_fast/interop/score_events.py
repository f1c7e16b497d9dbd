"""The three layouts of score files, recognised token by token while they stream past."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import MODULE_NAMES

Neuron = tuple[str, int, int]
Take = Callable[[Neuron, dict[str, float]], None]
_NAME = re.compile(r"(.+)_(\d+)_(\d+)")
_SCALARS = {"number", "string", "boolean", "null"}
_MOST = 2**31
ALL = "all"
"""Group of scores that name none."""


@dataclass
class Reader:
    """What a file holds beside its neurons.

    Attributes:
        probability: total probability of each group.
        ids: unique ids of each dataset.
    """

    probability: dict[str, float] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)


def read_events(file: IO[bytes], path: Path, take: Take) -> Reader:
    """Stream a score file; `take` gets each neuron as it ends.

    Raises:
        CulnigError: ijson is not installed, or the file is not JSON, is cut off, or is laid out in another way.
    """
    try:
        import ijson
    except ImportError as error:
        raise CulnigError(
            "score files of the published program need ijson; pip install 'culnig_fast[interop]'"
        ) from error
    walker = _Walker(path, take)
    try:
        for event, value in ijson.basic_parse(file, use_float=True):
            walker.step(event, value)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CulnigError(f"{path} is not a whole JSON file ({reason}); was it cut off?") from error
    return walker.reader


class _Walker:
    """Keeps the keys that lead to where the parser is; None stands for a place in a list."""

    def __init__(self, path: Path, take: Take) -> None:
        self.path, self.take, self.reader = path, take, Reader()
        self._keys: list[Any] = []
        self._scores: dict[str, float] = {}
        self._record: dict[str, Any] = {}

    def step(self, event: str, value: Any) -> None:
        """Take one event of the parser."""
        if event == "map_key":
            self._keys[-1] = value
        elif event in _SCALARS:
            self._scalar(event, value)
        elif event in ("start_map", "start_array"):
            self._keys.append(None)
        else:
            self._keys.pop()
            if event == "end_map":
                self._end_map()

    def _scalar(self, event: str, value: Any) -> None:
        keys = self._keys
        depth, first = len(keys), keys[0] if keys else None
        if depth == 3 and first == "neuron_scores":
            self._scores[keys[2]] = self._number(event, value)
        elif depth == 2 and first == "total_probabilities_per_country":
            self.reader.probability[keys[1]] = self._number(event, value)
        elif depth == 3 and first == "dataset_ids":
            self.reader.ids.setdefault(keys[1], []).append(str(value))
        elif first in MODULE_NAMES and depth == 3:
            self.take(self._neuron(first, keys[1], keys[2]), {ALL: self._number(event, value)})
        elif first in MODULE_NAMES and depth == 4:
            self._scores[keys[3]] = self._number(event, value)
        elif first is None and depth == 2:
            self._record[keys[1]] = value
        elif first is None and depth == 3 and keys[1] == "scores":
            self._scores[keys[2]] = self._number(event, value)
        elif depth < 2 or first in ("neuron_scores", *MODULE_NAMES):
            raise self._unknown()

    def _end_map(self) -> None:
        keys = self._keys
        depth, first = len(keys), keys[0] if keys else None
        if depth == 2 and first == "neuron_scores":
            match = _NAME.fullmatch(keys[1])
            if match is None or match[1] not in MODULE_NAMES:
                raise CulnigError(f"{self.path}: {keys[1]!r} is not a neuron's name (module_layer_column)")
            self._finish(self._neuron(match[1], match[2], match[3]))
        elif depth == 3 and first in MODULE_NAMES:
            self._finish(self._neuron(first, keys[1], keys[2]))
        elif depth == 1 and first is None:
            self._finish_record()

    def _finish(self, neuron: Neuron) -> None:
        scores, self._scores = self._scores, {}
        self.take(neuron, scores)

    def _finish_record(self) -> None:
        record, self._record = self._record, {}
        try:
            neuron = self._neuron(record["module_name"], record["layer_idx"], record["neuron_idx"])
            if not self._scores:
                self._scores = {ALL: float(record["attribute_score"])}
        except (KeyError, TypeError, ValueError) as error:
            raise CulnigError(
                f"{self.path}: a record needs module_name, layer_idx, neuron_idx and a score ({error!r})"
            ) from error
        self._finish(neuron)

    def _neuron(self, module: Any, layer: Any, column: Any) -> Neuron:
        try:
            if module not in MODULE_NAMES or float(layer) != int(layer) or float(column) != int(column):
                raise ValueError
            if not (0 <= int(layer) < _MOST and 0 <= int(column) < _MOST):
                raise ValueError
            return module, int(layer), int(column)
        except (TypeError, ValueError, OverflowError):
            raise CulnigError(f"{self.path}: neuron {column!r} of {module!r} in layer {layer!r} is none") from None

    def _number(self, event: str, value: Any) -> float:
        if event != "number":
            raise CulnigError(f"{self.path}: {value!r} stands where a number was expected, at {self._where()}")
        return float(value)

    def _unknown(self) -> CulnigError:
        return CulnigError(
            f"{self.path} is laid out in another way than score files are (seen at {self._where()}); "
            "see culnig-fast convert --help"
        )

    def _where(self) -> str:
        return " → ".join(str(key) for key in self._keys if key is not None) or "its beginning"
