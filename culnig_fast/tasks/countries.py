"""The 16 countries and regions of BLEnD under one name each, however a file spells them."""

from __future__ import annotations

import unicodedata

from culnig_fast.errors import CulnigError

_ALIASES: dict[str, tuple[str, ...]] = {
    "Algeria": (),
    "Assam": (),
    "Azerbaijan": (),
    "China": ("People's Republic of China",),
    "Ethiopia": (),
    "Greece": (),
    "Indonesia": (),
    "Iran": ("Islamic Republic of Iran",),
    "Mexico": (),
    "North Korea": ("DPRK", "Democratic People's Republic of Korea"),
    "Northern Nigeria": (),
    "South Korea": ("Republic of Korea",),
    "Spain": (),
    "UK": ("United Kingdom", "Great Britain", "Britain"),
    "USA": ("US", "United States", "United States of America"),
    "West Java": (),
}

COUNTRIES = tuple(_ALIASES)
"""Canonical names, alphabetical."""

TARGET_COUNTRIES = ("China", "Indonesia", "Iran", "Mexico", "South Korea", "Spain", "UK", "USA")
"""The eight whose specific neurons the method looks for (CULNIG, section 4)."""


def _key(text: str) -> str:
    """What spellings of one name share: no case, no punctuation or spacing, no leading article."""
    words = text.casefold().replace("_", " ").replace("-", " ").split()
    if words and words[0] == "the":
        words = words[1:]
    return "".join(character for character in "".join(words) if character.isalnum())


_CANONICAL = {_key(spelling): name for name, aliases in _ALIASES.items() for spelling in (name, *aliases)}


def country_name(text: str) -> str:
    """Canonical name of a country in any known spelling (`South_Korea`, `US`, `the U.K.`, `Great Britain`).

    Raises:
        CulnigError: the country is not one of the 16; lists them.
    """
    name = _CANONICAL.get(_key(str(text)))
    if name is None:
        raise CulnigError(f"unknown country {text!r}; the countries are {', '.join(COUNTRIES)}")
    return name


def place_name(text: str) -> str:
    """A country of any benchmark: the canonical name of the 16, others as a title (`timor-leste`: `Timor-Leste`).

    Benchmarks with more countries than BLEnD name them by this, so that one country has one name in all of them.
    """
    text = unicodedata.normalize("NFC", str(text)).replace("_", " ").strip()
    name = _CANONICAL.get(_key(text))
    if name is not None:
        return name
    if not text.islower():
        return text
    words = [word if word in ("and", "of", "the") else word.title() for word in text.split()]
    return " ".join(words)


def in_list(name: str) -> str:
    """A canonical name as an answer option, in BLEnD's words: `US` for the USA."""
    return "US" if name == "USA" else name


def in_prose(name: str) -> str:
    """A canonical name inside a sentence, in BLEnD's words: `the US`, `the UK`, the others as they are.

    CountryRC is there to catch the neurons that read country names, so it writes them as BLEnD does.
    """
    return f"the {in_list(name)}" if name in ("UK", "USA") else name
