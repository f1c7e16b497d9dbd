"""The 16 countries and regions of BLEnD under one name each, however a file spells them."""

from __future__ import annotations

from culnig_fast.errors import CulnigError

_ALIASES: dict[str, tuple[str, ...]] = {
    "Algeria": (),
    "Assam": (),
    "Azerbaijan": (),
    "China": (),
    "Ethiopia": (),
    "Greece": (),
    "Indonesia": (),
    "Iran": (),
    "Mexico": (),
    "North Korea": ("DPRK",),
    "Northern Nigeria": (),
    "South Korea": ("Republic of Korea",),
    "Spain": (),
    "UK": ("United Kingdom", "Great Britain", "the UK"),
    "USA": ("US", "United States", "United States of America", "the US", "the USA"),
    "West Java": (),
}

COUNTRIES = tuple(_ALIASES)
"""Canonical names, alphabetical."""

TARGET_COUNTRIES = ("China", "Indonesia", "Iran", "Mexico", "South Korea", "Spain", "UK", "USA")
"""The eight whose specific neurons the method looks for (CULNIG, section 4)."""


def _key(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


_CANONICAL = {_key(spelling): name for name, aliases in _ALIASES.items() for spelling in (name, *aliases)}


def country_name(text: str) -> str:
    """Canonical name of a country in any known spelling (`South_Korea`, `US`, `Great Britain`).

    Raises:
        CulnigError: the country is not one of the 16; lists them.
    """
    name = _CANONICAL.get(_key(str(text)))
    if name is None:
        raise CulnigError(f"unknown country {text!r}; the countries are {', '.join(COUNTRIES)}")
    return name


def in_prose(name: str) -> str:
    """The name as it stands in a sentence: with its article where English wants one."""
    return {"USA": "the United States", "UK": "the United Kingdom"}.get(name, name)
