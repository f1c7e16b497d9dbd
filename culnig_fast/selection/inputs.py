"""What selection accepts: score tables that belong together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.scores import ScoreTable, check_same_layout
from culnig_fast.tasks.countries import country_name

if TYPE_CHECKING:
    from culnig_fast.selection.device import DeviceTable


SAME = ("reduction", "padding", "positions")
"""What tables must have been scored with alike, where they say it: differences of others mean nothing."""


def check_tables(
    neur: ScoreTable | DeviceTable, control: ScoreTable | DeviceTable | None, surface: ScoreTable | DeviceTable | None
) -> None:
    """Raise CulnigError unless all have the same neurons and some samples, were scored alike and as what they are given
    as, and neur and control have equal groups."""
    tables = [(n, t) for n, t in (("neur", neur), ("control", control), ("surface", surface)) if t is not None]
    check_same_layout(tables)  # type: ignore[arg-type]  # a DeviceTable has a layout too
    for name, table in tables[1:]:
        if _place(table.totals) != _place(neur.totals):
            raise CulnigError(
                f"the neur scores are {_place(neur.totals)}, the {name} scores {_place(table.totals)}; "
                "bring all tables to one place and type"
            )
        for choice in SAME:
            one, other = neur.metadata.get(choice), table.metadata.get(choice)
            if one is not None and other is not None and one != other:
                raise CulnigError(
                    f"the neur scores have {choice} {one!r}, the {name} scores {other!r}; score both with the same"
                )
    for name, table in tables:
        _check_kind(name, table.metadata.get("control"))
    for name, table in tables:
        if table.n_samples < 1:
            raise CulnigError(f"the {name} scores hold no samples; score at least one question")
    if control is not None and set(control.groups) != set(neur.groups):
        odd = sorted(set(control.groups) ^ set(neur.groups))[0]
        where = "neur" if odd in neur.groups else "control"
        raise CulnigError(f"group {odd!r} is only in the {where} scores; score the control prompts of the same rows")


def _check_kind(name: str, is_control: Any) -> None:
    """Raise CulnigError for a table that says of itself that it is another kind; tables from elsewhere say nothing."""
    if is_control is False and name == "control":
        raise CulnigError(
            "the control scores were not scored as a control set; give those of the prompts without what is asked, "
            "scored with --split control or --control (in Python control=True)"
        )
    if is_control is True and name != "control":
        raise CulnigError(f"the {name} scores are a control set's; give a table of questions that ask something")


def check_every_group(neur: ScoreTable | DeviceTable, control: ScoreTable | DeviceTable | None) -> None:
    """Raise CulnigError for a group without samples: its d of 0 would bend the mean of all groups."""
    for table_name, table in (("neur", neur), ("control", control)):
        for group, count in zip(*((table.groups, table.counts) if table else ((), ())), strict=True):
            if count < 1:
                raise CulnigError(
                    f"group {group!r} has no samples in the {table_name} scores, so nothing can be compared "
                    "with it; score some, or leave the group out"
                )


def country_row(table_name: str, table: ScoreTable | DeviceTable, country: str) -> int:
    """Row of a country in any known spelling; CulnigError, listing the groups, when the table lacks it."""
    if country in table.groups:
        return table.groups.index(country)
    try:
        return table.groups.index(country_name(country))
    except (CulnigError, ValueError):
        raise CulnigError(
            f"no group {country!r} in the {table_name} scores; there are {', '.join(table.groups)}"
        ) from None


def check_countries(countries: Iterable[str]) -> tuple[str, ...]:
    """Names as given; CulnigError for none at all."""
    countries = (countries,) if isinstance(countries, str) else tuple(countries)
    if not countries:
        raise CulnigError("no country was named; name at least one")
    return countries


def check_min_z(min_z: Any) -> None:
    """Raise CulnigError unless it is a number."""
    if isinstance(min_z, bool) or not isinstance(min_z, int | float | np.number) or math.isnan(min_z):
        raise CulnigError(f"min_z must be a number of standard deviations, not {min_z!r}")


def _place(totals: Any) -> str:
    """Element type and device."""
    device = "cpu" if isinstance(totals, np.ndarray) else str(totals.device)
    return f"{str(totals.dtype).removeprefix('torch.')} on {device}"
