"""Values out of a config file, each refused in one sentence that names its key."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from culnig_fast.errors import CulnigError

_MOST_SETS = 10_000


def brief(value: Any) -> str:
    """A value in a message; aliases in a yaml file can make its full text longer than memory."""
    return reprlib.repr(value)[:60]


class Section:
    """One mapping of a config, read key by key; `finish` refuses the keys that nobody asked for.

    Args:
        value: what the file holds there; None (a key with nothing behind it) is an empty mapping.
        where: names the file and the keys on the way, e.g. `run.yaml: selection`.

    Raises:
        CulnigError: it is no mapping, or a key is not text.
    """

    def __init__(self, value: Any, where: str) -> None:
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise CulnigError(f"{where} is {brief(value)}; give keys and values there")
        for key in value:
            if not isinstance(key, str):
                raise CulnigError(f"{where} has the key {brief(key)}, which is not text; put it in quotes")
        self.where = where
        self._values = dict(value)
        self._known: list[str] = []

    def name(self, key: str) -> str:
        """How a message calls a key."""
        return f"{self.where}{'.' if ':' in self.where else ': '}{key}"

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        self._known.append(key)
        return self._values.get(key, default)

    def section(self, key: str) -> Section:
        """A mapping below."""
        return Section(self.raw(key), self.name(key))

    def text(self, key: str, default: str | None = None) -> str | None:
        """Text, or the default where the key is missing or empty."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise CulnigError(f"{self.name(key)} is {brief(value)}; give text")
        if not value.isprintable():
            raise CulnigError(f"{self.name(key)} is {brief(value)}, which holds characters that cannot be printed")
        if any(len(part.encode()) > 255 for part in value.split("/")) or len(value) > 2000:
            raise CulnigError(f"{self.name(key)} is {brief(value)}, too long for the name of a file or anything else")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CulnigError(f"{self.name(key)} is {brief(value)}; give true or false")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of some words."""
        value = self.raw(key)
        if value is None:
            return default
        if value not in (known := list(choices)):
            raise CulnigError(f"{self.name(key)} is {brief(value)}; choose from {', '.join(known)}")
        return str(value)

    def number(self, key: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        """A number in low…high."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            span = "" if math.isinf(low) and math.isinf(high) else f" in {low:g}…{high:g}"
            raise CulnigError(f"{self.name(key)} is {brief(value)}; give a number{span}")
        return float(value)

    def whole(self, key: str, default: int | None, low: int = 0) -> int | None:
        """A whole number, at least `low`; the default where the key is missing or empty."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**53:
            raise CulnigError(f"{self.name(key)} is {brief(value)}; give a whole number, {low} or more")
        return value

    def texts(self, key: str, default: Iterable[str]) -> tuple[str, ...]:
        """A list of texts."""
        value = self.raw(key)
        if value is None:
            return tuple(default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise CulnigError(f"{self.name(key)} is {brief(value)}; give a list of names")
        if len(set(value)) != len(value):
            raise CulnigError(f"{self.name(key)} names something twice; name each once")
        return tuple(value)

    def seeds(self, key: str, default: int) -> tuple[int, ...]:
        """A list of whole numbers, or how many, counted from 0."""
        value = self.raw(key)
        if value is None:
            value = default
        whole = [value] if not isinstance(value, list) else value
        if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**63 for item in whole):
            raise CulnigError(f"{self.name(key)} is {brief(value)}; give how many, or a list of whole numbers")
        if not isinstance(value, list) and value > _MOST_SETS:
            raise CulnigError(f"{self.name(key)} is {value}; give at most {_MOST_SETS}: every set is evaluated")
        if not isinstance(value, list):
            return tuple(range(value))
        if len(set(value)) != len(value):
            raise CulnigError(f"{self.name(key)} names a seed twice; name each once")
        return tuple(value)

    def rest(self) -> dict[str, Any]:
        """What was not asked for yet; counts as asked for from now on."""
        rest = {key: value for key, value in self._values.items() if key not in self._known}
        self._known += rest
        return rest

    def finish(self) -> None:
        """Raise CulnigError for a key that nobody asked for, with the nearest that there is."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(self._known)}"
                raise CulnigError(f"{self.name(key)} is no key of a run; {hint}")
