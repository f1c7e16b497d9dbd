"""What a selection refuses and by which words, and that it works without the C++ core."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from score_tables import GATE, LAYOUT, UP, K, Q, random_tables, table

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.core import core
from culnig_fast.selection.rules import implementation, select_general, select_specific


def poisoned(source: ScoreTable, group: str, flat: int, value: float) -> ScoreTable:
    totals = source.totals.copy()
    totals[source.groups.index(group), flat] = value
    return replace(source, totals=totals)


def test_unfit_scores_are_named() -> None:
    neur, control, surface = random_tables(0)
    where = LAYOUT.flat(K, 1, 2)
    for index, name in enumerate(("neur", "control", "surface")):
        tables = [neur, control, surface]
        tables[index] = poisoned(tables[index], "b", where, np.nan)
        message = f"the {name} score of neuron 2 of self_attn.k_proj in layer 1 is NaN or infinite"
        with pytest.raises(CulnigError, match=message):
            select_general(*tables)
        with pytest.raises(CulnigError, match=message):
            select_specific(*tables, "b")
    # Another country's score enters by its z alone.
    with pytest.raises(CulnigError, match="the control score of neuron 2 of self_attn.k_proj in layer 1"):
        select_specific(neur, poisoned(control, "c", where, np.inf), surface, "b", share=1.0)
    with pytest.raises(CulnigError, match="the neur score of neuron 2 of self_attn.k_proj in layer 1"):
        select_general(poisoned(neur, "a", where, np.inf), poisoned(control, "b", where, np.inf), surface)
    # Columns outside the pools do not matter.
    outside = poisoned(neur, "a", LAYOUT.flat(UP, 0, 0), np.nan)
    assert select_general(outside, control, surface, mlp_share=0.5) == select_general(
        neur, control, surface, mlp_share=0.5
    )


def test_bad_input() -> None:
    neur, control, surface = random_tables(0)
    other = NeuronLayout([*LAYOUT.sites[:-1], NeuronSite(UP, 1, 8)])
    wider = table(np.zeros((3, other.size)), "abc", None, other)
    for tables, message in (
        ((neur, wider, surface), "neur and control .*7 neurons of mlp.up_proj in layer 1 in one, 8 neurons"),
        ((neur, control, wider), "neur and surface"),
        (
            (replace(neur, groups=("a", "b", "d")), control, surface),
            "group 'c' is only in the control scores",
        ),
        ((replace(neur, counts=np.zeros(3)), control, surface), "the neur scores hold no samples"),
        ((neur, control, replace(surface, counts=np.zeros(3))), "the surface scores hold no samples"),
    ):
        with pytest.raises(CulnigError, match=message):
            select_general(*tables)
        with pytest.raises(CulnigError, match=message):
            select_specific(*tables, "a")
    hollow = replace(control, counts=[2, 0, 7])
    assert len(select_general(neur, hollow, surface, mlp_share=0.5)) > 0
    with pytest.raises(CulnigError, match="group 'a' has no samples in the control scores"):
        select_specific(neur, hollow, surface, "c")
    for share in (-0.1, 1.1, float("nan"), True, "1 %", None):
        for name in ("mlp_share", "attention_share", "surface_share"):
            with pytest.raises(CulnigError, match=f"{name} must be a part between 0 and 1"):
                select_general(neur, control, surface, **{name: share})
        with pytest.raises(CulnigError, match="^share must be a part between 0 and 1"):
            select_specific(neur, control, surface, "a", share=share)
    with pytest.raises(CulnigError, match="min_z must be a number"):
        select_specific(neur, control, surface, "a", min_z=float("nan"))
    with pytest.raises(CulnigError, match="mlp.gate_proj is in the MLP pool and in the attention pool"):
        select_general(neur, control, surface, attention_modules=(Q, GATE))
    with pytest.raises(CulnigError, match="both pools were left out"):
        select_general(neur, control, surface, mlp_modules=(), attention_modules=())
    with pytest.raises(CulnigError, match="no neurons of mlp.act were scored"):
        select_general(neur, control, surface, mlp_modules="mlp.act")
    with pytest.raises(CulnigError, match="'gate' is not a neuron module"):
        select_specific(neur, control, surface, "a", module_names=("gate",))


def test_install_without_the_core_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = random_tables(0)
    expected = select_general(*tables, mlp_share=0.5)
    monkeypatch.setitem(sys.modules, "culnig_fast._selection", None)
    core.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="without its C\\+\\+ core .* slower NumPy twin"):
            assert implementation() == "NumPy"
        assert select_general(*tables, mlp_share=0.5) == expected
    finally:
        core.cache_clear()


@pytest.mark.parametrize(("choice", "one", "other"), [("reduction", "max", "sum"), ("positions", "all", "last")])
def test_tables_scored_differently_are_refused(choice: str, one: str, other: str) -> None:
    neur, control, surface = random_tables(0)
    neur.metadata[choice] = one
    for odd, name in ((control, "control"), (surface, "surface")):
        odd.metadata[choice] = one
        select_general(neur, control=control, surface=surface)
        odd.metadata[choice] = other
        with pytest.raises(CulnigError, match=f"have {choice} '{one}', the {name} scores '{other}'"):
            select_general(neur, control=control, surface=surface)
        del odd.metadata[choice]
