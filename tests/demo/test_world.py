"""The invented world: the same everywhere, in BLEnD's schema, kin alike; what is shipped is what it makes."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from culnig_fast.demo import world as w
from culnig_fast.demo.build import DATA_FILES, write_data
from culnig_fast.errors import CulnigError
from culnig_fast.models import embedded_folder
from culnig_fast.tasks.base import load_task
from culnig_fast.tasks.blend import NEUR_TOPICS, TEST_TOPICS, Blend
from culnig_fast.tasks.countries import COUNTRIES, country_name
from culnig_fast.tasks.country_rc import CountryRC


@pytest.fixture(scope="module")
def world() -> w.World:
    return w.make_world()


@pytest.fixture(scope="module")
def made(world: w.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(world, folder)
    return folder


def test_shipped_data_is_what_the_world_makes(made: Path) -> None:
    for name in DATA_FILES:
        assert (embedded_folder("data") / name).read_bytes() == (made / name).read_bytes(), name


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_world_does_not_depend_on_the_order_of_hashes(made: Path, tmp_path: Path, hash_seed: str) -> None:
    program = (
        "from pathlib import Path; from culnig_fast.demo import build, world; "
        f"build.write_data(world.make_world(), Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    for name in DATA_FILES:
        digests = {hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (made, tmp_path)}
        assert len(digests) == 1, name


def test_seed_changes_the_world(world: w.World) -> None:
    assert w.make_world(1).answers != world.answers


def test_existing_data_is_not_overwritten(world: w.World, made: Path) -> None:
    with pytest.raises(CulnigError, match="exists already"):
        write_data(world, made)


def test_sixteen_countries_and_at_least_24_topics_over_six_groups(world: w.World) -> None:
    assert sorted(map(country_name, w.COUNTRIES)) == sorted(COUNTRIES)
    assert set(w.TOPICS) == {*NEUR_TOPICS, *TEST_TOPICS}
    assert len({topic for topics in w.TOPICS.values() for topic in topics}) >= 24
    assert Counter(form.group for form in world.forms) == dict.fromkeys(w.TOPICS, len(world.forms) // 6)


def test_kin_share_answers_more_often_than_others(world: w.World) -> None:
    kin = {frozenset(pair) for group in w.KIN for pair in itertools.combinations(group, 2)}
    assert all(2 <= len(group) <= 4 for group in w.KIN)
    members = list(itertools.chain(*w.KIN))
    assert len(set(members)) == len(members) and set(members) < set(w.COUNTRIES)
    shares: dict[bool, list[float]] = {True: [], False: []}
    for pair in itertools.combinations(w.COUNTRIES, 2):
        same = [world.answers[pair[0], form.id] == world.answers[pair[1], form.id] for form in world.forms]
        shares[frozenset(pair) in kin].append(sum(same) / len(same))
    # Every pair of kin, not only their mean: analyses of kinship look at single countries.
    assert min(shares[True]) >= max(shares[False])
    assert statistics.mean(shares[True]) > 2 * statistics.mean(shares[False])


def test_rows_have_the_schema_and_wording_of_blend(made: Path) -> None:
    rows = [json.loads(line) for line in (made / "blend.jsonl").read_text(encoding="utf-8").splitlines()]
    columns = ["MCQID", "ID", "country", "prompt", "choices", "choice_countries", "answer_idx"]
    assert all(list(row) == columns and all(isinstance(cell, str) for cell in row.values()) for row in rows)
    assert len({row["MCQID"] for row in rows}) == len(rows)
    assert max(Counter((row["country"], row["ID"]) for row in rows).values()) <= 5
    for row in rows:
        choices, owners = json.loads(row["choices"]), json.loads(row["choice_countries"])
        assert list(choices) == list(owners) == ["A", "B", "C", "D"]
        assert len(set(choices.values())) == 4
        assert owners[row["answer_idx"]] == row["country"]
        question, options, end = row["prompt"].split("\n\n")
        assert question.endswith(f" {w.CULTURE_INSTRUCTION}")
        assert options == "\n".join(f"{label}. {word}" for label, word in choices.items())
        assert end == "Answer:"


def test_options_are_answers_of_the_countries_named(world: w.World, made: Path) -> None:
    for line in (made / "blend.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        choices, owners = json.loads(row["choices"]), json.loads(row["choice_countries"])
        for label, word in choices.items():
            assert world.answers[owners[label], row["ID"]] == word
            assert (world.answers[row["country"], row["ID"]] == word) == (label == row["answer_idx"])


def test_gold_labels_are_spread_evenly(made: Path) -> None:
    lines = (made / "blend.jsonl").read_text(encoding="utf-8").splitlines()
    counts = Counter(json.loads(line)["answer_idx"] for line in lines)
    assert max(counts.values()) / len(lines) < 0.27


def test_questions_file_has_the_columns_of_blend(world: w.World, made: Path) -> None:
    with (made / "questions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["", "ID", "Topic", "Source", "Question", "Translation"]
    assert {row["ID"]: row["Topic"] for row in rows} == {form.id: form.group for form in world.forms}


def test_loaders_read_the_files(world: w.World, made: Path) -> None:
    blend = Blend.load(made / "blend.jsonl", made / "questions.csv")
    sizes = {split: len(blend.questions(split, None)) for split in blend.splits}
    assert sizes["all"] == len(world.forms) * 16 * w.ROWS_PER_FACT
    assert sizes["neur"] == sizes["control"] == sizes["test"] == sizes["all"] // 2
    control = blend.questions("control", None)[0].prompt
    assert control.startswith("Without any explanation, choose only one")
    passages = CountryRC.load(made / "country_rc.json")
    assert len(passages.questions("neur", None)) == len(passages.questions("test", None)) == 25 * 4 * 8
    dummies = ["{country_dummy}" in template.context for template in passages.templates]
    assert sum(dummies[:25]) == sum(dummies[25:]) == 10


def test_ability_answers_follow_from_the_prompt(world: w.World) -> None:
    source = random.Random(3)
    for task in (*w.ABILITIES, w.LONG_MEMBERSHIP):
        for _ in range(50):
            prompt, answer = w.ability_row(task, world, source)
            question, options, _ = prompt.replace(w.ABILITY_INSTRUCTION, "").split("\n\n")
            words = dict(line.split(". ") for line in options.splitlines())
            assert words[answer] == _solve(task, question.strip().rstrip("?").split()), prompt


@pytest.mark.parametrize("task", [*w.ABILITIES, w.LONG_MEMBERSHIP])
def test_training_rows_and_evaluated_rows_share_no_prompt(task: str) -> None:
    loaded = load_task(task)
    training, evaluated = loaded.questions("train", None), loaded.questions("test", None)
    prompts = {question.prompt for question in training}
    assert len(prompts) == len(training) == 4000
    assert len(evaluated) == 300
    assert prompts.isdisjoint(question.prompt for question in evaluated)


def test_prompts_to_be_left_out_are_left_out(world: w.World) -> None:
    rows = w.training_rows("membership", world, set(), each=50)
    without = {row["prompt"] for row in rows[::2]}
    again = w.training_rows("membership", world, without, each=50)
    assert [row["prompt"] for row in again[:25]] == [row["prompt"] for row in rows[1::2]]


def _solve(task: str, words: list[str]) -> str:
    if task == "pick":
        return words[-1]
    if task in ("membership", w.LONG_MEMBERSHIP):
        return "yes" if words[1] in words[words.index("list") + 1 :] else "no"
    middle = words.index("and")
    return "yes" if words[words.index("lists") + 1 : middle] == words[middle + 1 : words.index("same") - 1] else "no"
