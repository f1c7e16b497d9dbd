"""--as-authors against the published way in plain loops: scores to rounding, identical sets, files both ways."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import families
import numpy as np
import published_way
import pytest
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.interop.as_authors import attribute_as_authors
from culnig_fast.interop.score_files import read_score_file, write_score_file

TOKENIZER = make_tokenizer()
COUNTRIES = ("China", "Spain", "South Korea")


def asked(count: int, seed: int, longest: int = 9) -> list[cf.Question]:
    """Two wordings an item: ids `item/wording/…`, so that N by item is half the number of samples."""
    questions = make_questions(count, seed=seed, longest=longest)
    return [
        dataclasses.replace(question, id=f"i{i // 2}/w{i % 2}/x", group=COUNTRIES[(i // 2) % 3])
        for i, question in enumerate(questions)
    ]


def plain(model: Any, questions: list[cf.Question], control: bool) -> Any:
    samples = [
        published_way.Sample(
            TOKENIZER(q.prompt)["input_ids"], TOKENIZER.convert_tokens_to_ids(q.answer), q.group, q.id.split("/")[0]
        )
        for q in questions
    ]
    return published_way.scores(model, samples, control)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_scores_agree_and_sets_are_identical(family: str, tmp_path: Path) -> None:
    model = families.build(family)
    sets = {"neur": asked(38, 1), "control": asked(38, 2, longest=5), "crc": asked(20, 3)}
    tables, want = {}, {}
    for name, questions in sets.items():
        control = name == "control"
        tables[name] = attribute_as_authors(model, TOKENIZER, questions, control=control, progress=False)
        want[name] = plain(model.requires_grad_(True), questions, control)
        exact, _ = plain(copy.deepcopy(model).double(), questions, control)
        assert tables[name].n_samples == want[name][1] == len(questions) // 2
        ours, theirs = [], []
        for site in tables[name].layout.sites:
            names = [(site.module_name, site.layer_idx, column) for column in range(site.width)]
            published, true = (
                np.array([[scores[key][group] for key in names] for group in tables[name].groups])
                for scores in (want[name][0], exact)
            )
            found = tables[name].totals[:, tables[name].layout.slice(site.module_name, site.layer_idx)]
            ours.append((found - true).ravel() / np.abs(true).max())
            theirs.append((published - true).ravel() / np.abs(true).max())
        # Both are float32: neither is the other's truth, and on these models the published way errs by as much.
        errors, allowed = np.concatenate(ours), np.concatenate(theirs)
        assert np.abs(errors).max() <= 1e-5 + np.abs(allowed).max()
    # Through the published program's files and back: what it would read leads to the same sets.
    for name, table in tables.items():
        write_score_file(table, tmp_path / f"{name}.json", dataset=name)
        back = read_score_file(tmp_path / f"{name}.json")
        assert np.array_equal(back.totals, table.totals)
        assert back.n_samples == table.n_samples
        tables[name] = back
    shares = {"mlp_share": 0.2, "attention_share": 0.2, "surface_share": 0.1}
    general = cf.select_general(tables["neur"], tables["control"], tables["crc"], **shares)
    wanted = published_way.general(want["neur"], want["control"], want["crc"], 0.2, 0.2, 0.1)
    assert {(n.module_name, n.layer_idx, n.neuron_idx) for n in general} == wanted
    assert len(wanted) > 20
    for country in COUNTRIES:
        options = {"share": 0.2, "surface_share": 0.1, "min_z": 0.5}
        one = cf.select_specific(tables["neur"], tables["control"], tables["crc"], country, **options)
        wanted = published_way.specific(want["neur"], want["control"], want["crc"], country, 0.2, 0.1, 0.5)
        assert {(n.module_name, n.layer_idx, n.neuron_idx) for n in one} == wanted
        assert len(wanted) > 5


def test_it_differs_from_the_default_where_the_choices_do() -> None:
    model, questions = families.build("llama"), asked(20, 1)
    ours = cf.attribute(model, TOKENIZER, questions, control=True, progress=False)
    theirs = attribute_as_authors(model, TOKENIZER, questions, control=True, progress=False)
    assert ours.n_samples == 2 * theirs.n_samples
    assert theirs.metadata["samples"] == 20
    plain_ours = cf.attribute(model, TOKENIZER, questions, progress=False)
    plain_theirs = attribute_as_authors(model, TOKENIZER, questions, progress=False)
    assert (plain_theirs.totals >= plain_ours.totals - 1e-9).all()
    assert (plain_theirs.totals > plain_ours.totals + 1e-6).any()


def test_blend_ids_end_in_the_published_id() -> None:
    model = families.build("llama")
    questions = [dataclasses.replace(q, id=f"{q.group}/Al-en-0{i}_1") for i, q in enumerate(make_questions(6))]
    table = attribute_as_authors(model, TOKENIZER, questions, task="blend", progress=False)
    assert table.n_samples == 6
    assert attribute_as_authors(model, TOKENIZER, questions, progress=False).n_samples == 3  # by what stands first
