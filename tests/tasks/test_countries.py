"""One name for each country, however it is spelt."""

from __future__ import annotations

import pytest

from culnig_fast.errors import CulnigError
from culnig_fast.tasks.countries import COUNTRIES, TARGET_COUNTRIES, country_name, in_list, in_prose


def test_there_are_sixteen_and_eight() -> None:
    assert len(set(COUNTRIES)) == 16
    assert len(set(TARGET_COUNTRIES)) == 8
    assert set(TARGET_COUNTRIES) < set(COUNTRIES)
    assert list(COUNTRIES) == sorted(COUNTRIES)


@pytest.mark.parametrize("name", COUNTRIES)
def test_a_name_means_itself_in_the_spelling_of_files_too(name: str) -> None:
    for spelling in (name, name.replace(" ", "_"), name.lower(), f" {name}\n", in_prose(name), in_list(name)):
        assert country_name(spelling) == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("US", "USA"),
        ("U.S.", "USA"),
        ("the United States", "USA"),
        ("United States of America", "USA"),
        ("Great Britain", "UK"),
        ("United_Kingdom", "UK"),
        ("The UK", "UK"),
        ("Republic of Korea", "South Korea"),
        ("south-korea", "South Korea"),
        ("DPRK", "North Korea"),
    ],
)
def test_other_names(spelling: str, name: str) -> None:
    assert country_name(spelling) == name


@pytest.mark.parametrize("text", ["Korea", "Nigeria", "Java", "", "the", "Atlantis", "Theusa"])
def test_a_name_that_is_none_of_them_is_refused(text: str) -> None:
    with pytest.raises(CulnigError, match=rf"unknown country '{text}'.*Algeria.*West Java"):
        country_name(text)


def test_names_in_sentences_and_lists() -> None:
    assert [in_prose(name) for name in ("USA", "UK", "Iran")] == ["the US", "the UK", "Iran"]
    assert [in_list(name) for name in ("USA", "UK", "Iran")] == ["US", "UK", "Iran"]
