"""Score tables and their files."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from wordlevel import make_questions, make_tokenizer

from culnig_fast.attribution import attribute
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.questions import Question
from culnig_fast.scores import ScoreTable, check_same_layout

LAYOUT = NeuronLayout([NeuronSite("mlp.gate_proj", 0, 3), NeuronSite("mlp.gate_proj", 1, 4)])


def make_table(**changes: object) -> ScoreTable:
    fields = {
        "totals": np.random.default_rng(0).standard_normal((2, 7)),
        "groups": ("Spain", "Türkiye"),
        "counts": np.array([3, 5]),
        "probability": np.array([1.5, 2.5]),
        "ids": ("a", "ü", 'quote"'),
        "layout": LAYOUT,
        "metadata": {"model": "x", "list": [1, None]},
    }
    return ScoreTable(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_table_survives_its_file_to_the_bit(tmp_path: Path) -> None:
    table = make_table()
    path = tmp_path / "scores.safetensors"
    table.save(path)
    again = ScoreTable.load(path)
    assert np.array_equal(again.totals, table.totals)
    assert isinstance(again.totals, np.memmap)
    assert not again.totals.flags.writeable
    assert again.counts.tolist() == [3, 5]
    assert again.probability.tolist() == [1.5, 2.5]
    assert (again.groups, again.ids, again.layout) == (table.groups, table.ids, table.layout)
    assert again.metadata == table.metadata
    assert again.n_samples == 8
    assert np.array_equal(again.row("Türkiye"), table.totals[1])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    make_table().save(path)
    before = path.read_bytes()
    with pytest.raises(CulnigError, match="exists already"):
        make_table(totals=np.zeros((2, 7))).save(path)
    assert path.read_bytes() == before
    make_table(totals=np.zeros((2, 7))).save(path, overwrite=True)
    assert not ScoreTable.load(path).totals.any()


@pytest.mark.parametrize("keep", [0, 5, 100, -60, -1])
def test_a_cut_off_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    make_table().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CulnigError, match=r"cut\.safetensors"):
        ScoreTable.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match="nothing"):
        ScoreTable.load(tmp_path / "nothing.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3)}, other)
    with pytest.raises(CulnigError, match="not a score table"):
        ScoreTable.load(other)
    header = {"format": "culnig_fast.scores/1", "groups": '["a"]', "ids": "[]", "metadata": "{}"}
    for layout, tensors in (
        ("{}", {"totals": np.zeros((1, 7))}),
        ('{"sites": [["mlp.gate_proj", 0, 7]]}', {"totals": np.zeros((1, 7))}),
        (
            '{"sites": [["mlp.gate_proj", 0, 6]]}',
            {"totals": np.zeros((1, 7)), "counts": np.zeros(1, np.int64), "probability": np.zeros(1)},
        ),
        (
            '{"sites": [["mlp.gate_proj", 0, 7]]}',
            {
                "totals": np.zeros((1, 7), np.float32),
                "counts": np.zeros(1, np.int64),
                "probability": np.zeros(1),
            },
        ),
    ):
        save_file(tensors, other, metadata={**header, "layout": layout})
        with pytest.raises(CulnigError, match="damaged"):
            ScoreTable.load(other)


def test_wrong_shapes_are_refused() -> None:
    for changes in (
        {"totals": np.zeros((2, 6))},
        {"totals": np.zeros((2, 7), np.float32)},
        {"counts": np.zeros(3, np.int64)},
        {"groups": ("a", "a")},
    ):
        with pytest.raises(CulnigError):
            make_table(**changes)


def test_an_unknown_group_lists_the_known() -> None:
    with pytest.raises(CulnigError, match="Spain, Türkiye"):
        make_table().row("Peru")


def test_different_layouts_are_named() -> None:
    other = NeuronLayout([NeuronSite("mlp.gate_proj", 0, 3), NeuronSite("mlp.up_proj", 1, 4)])
    with pytest.raises(CulnigError, match=r"neur and control.*mlp\.up_proj in layer 1"):
        check_same_layout([("neur", make_table()), ("control", make_table(layout=other))])


def test_equal_tables_are_equal_files_that_the_library_reads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        make_table().save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    read = load_file(paths[0])
    assert np.array_equal(read["totals"], make_table().totals)
    assert read["counts"].tolist() == [3, 5]


def test_parts_that_were_scored_apart_are_the_whole(tmp_path: Path) -> None:
    model, tokenizer, questions = families.build("llama").double(), make_tokenizer(), make_questions(9)
    bad = Question("bad", "group 0", "A B", "no such word")

    def score(some: list[Question]) -> ScoreTable:
        return attribute(model, tokenizer, some, on_unusable="skip", progress=False)

    whole = score([*questions, bad])
    parts = [score(questions[:2]), score(questions[2:5]), score([*questions[5:], bad])]
    parts[1].save(tmp_path / "part.safetensors")
    merged = parts[0].merge(ScoreTable.load(tmp_path / "part.safetensors"), parts[2])
    assert merged.groups == whole.groups
    assert len(parts[0].groups) < len(whole.groups)  # rows are found by their names
    assert merged.ids == whole.ids
    assert merged.counts.tolist() == whole.counts.tolist()
    assert merged.counts.dtype == np.int64
    assert np.abs(merged.totals - whole.totals).max() <= 1e-12 * np.abs(whole.totals).max()
    assert np.allclose(merged.probability, whole.probability)
    facts = dict(merged.metadata)
    assert facts.pop("merged") == [part.metadata for part in parts]
    assert facts == {key: value for key, value in whole.metadata.items() if key in facts}
    assert facts["unusable"] == ["bad"]
    assert facts["reduction"] == "max"
    merged.save(tmp_path / "merged.safetensors")
    assert np.array_equal(ScoreTable.load(tmp_path / "merged.safetensors").totals, merged.totals)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": ("d", "a")}, "sample 'a' is in tables 1 and 2"),
        ({"metadata": {"reduction": "sum"}}, "table 1's reduction is 'max', table 2's 'sum'"),
        ({"metadata": {"model": "other"}}, "table 1's model is 'x', table 2's 'other'"),
        ({"metadata": {"control": True}}, "table 1's control is False, table 2's True"),
        ({"metadata": {"resamples": 2}}, "table 2's rows are resamples"),
        ({"metadata": {"as_authors": True}}, "table 2's counts are of unique items"),
        ({"layout": NeuronLayout([NeuronSite("mlp.up_proj", 0, 7)])}, "table 1 and table 2 scores are of different"),
    ],
)
def test_tables_that_do_not_add_up_are_not_merged(changes: dict[str, object], words: str) -> None:
    first = make_table(metadata={"model": "x", "reduction": "max", "control": False})
    with pytest.raises(CulnigError, match=words):
        first.merge(make_table(**{"ids": ("d",), "metadata": {}, **changes}))
    assert first.merge(make_table(ids=("d",), metadata={})).n_samples == 16  # tables from elsewhere say nothing
