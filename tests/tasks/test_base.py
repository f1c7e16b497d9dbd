"""The list of tasks, and what every one of them must keep to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import CHAT_TEMPLATE, byte_level

import culnig_fast.tasks
from culnig_fast.errors import CulnigError
from culnig_fast.tasks.base import SPLITS, load_task, tasks

NEW_TASK = """
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.blend import Blend  # imported, not defined here


class Base(Task):
    name = "abstract"


class Fresh(Base):
    name, splits = "fresh", ("all", "test")

    def __init__(self, source):
        self.source = source

    @classmethod
    def load(cls, source=None):
        return cls(source)

    def _questions(self, split, tokenizer):
        ids = {"all": ["a", "b"], "test": ["a", "a"]}[split]
        return [Question(name, "UK", str(self.source), "A") for name in ids]
"""


def test_each_task_names_itself_and_known_splits() -> None:
    found = tasks()
    assert {"blend", "country_rc"} <= set(found)
    for name, task in found.items():
        assert task.name == name
        assert task.splits
        assert set(task.splits) <= set(SPLITS)
        assert all(isinstance(text, str) and text for text in task.files.values())


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "zz_fresh.py").write_text(NEW_TASK)
    monkeypatch.setattr(culnig_fast.tasks, "__path__", [*culnig_fast.tasks.__path__, str(tmp_path)])


@pytest.mark.usefixtures("fresh")
def test_a_new_file_is_a_new_task() -> None:
    assert "abstract" not in tasks()
    task = load_task("fresh", "here")
    assert [question.prompt for question in task.questions("all", None)] == ["here", "here"]
    with pytest.raises(CulnigError, match="question id 'a' occurs twice"):
        task.questions("test", None)
    with pytest.raises(CulnigError, match="fresh has no split 'neur'; choose from all, test"):
        task.questions("neur", None)


def test_an_unknown_task_or_file_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CulnigError, match=r"unknown task 'blnd'; choose from .*blend, .*country_rc, "):
        load_task("blnd")
    with pytest.raises(CulnigError, match=r"task blend takes no further file 'topic' \(it takes: topics\)"):
        load_task("blend", "x.csv", {"topic": "y.csv"})
    with pytest.raises(CulnigError, match=r"country_rc takes no further file 'topics' \(it takes: none\)"):
        load_task("country_rc", None, {"topics": "y.csv"})


def test_plain_questions_are_rendered_and_otherwise_kept(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id,group,prompt,answer\n1,all,Which?,None\n2,all,Where?,A\n")
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    first, second = load_task("plain", path).questions("all", tokenizer)
    assert (first.id, first.group, first.answer, second.id) == ("1", "all", "None", "2")
    assert first.prompt.startswith("<|im_start|>user\nWhich?<|im_end|>")
    path.write_text("id,prompt,answer\n1,Which?,A\n")
    with pytest.raises(CulnigError, match="no column group"):
        load_task("plain", path)
    with pytest.raises(CulnigError, match="needs a file"):
        load_task("plain")
