"""Several processes: the sum of one, each sample once, and a rank that fails or dies named by the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from distributed_job import OPTIONS
from jobs import reports as job_reports
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.running import world as world_module
from culnig_fast.running.distributed import joined
from culnig_fast.running.world import RankError, World, rank_path
from culnig_fast.scores import ScoreTable

JOB = Path(__file__).resolve().parents[1] / "distributed_job.py"


def test_two_processes_equal_one_and_name_the_one_that_fails(tmp_path: Path) -> None:
    reports = job_reports([str(JOB), str(tmp_path)], 2)
    # The last element sits in the share of rank 1, the first in that of rank 0.
    assert reports[0]["sums"] == reports[1]["sums"] == [0.0, 2.0, 4.0, 7.0]
    assert reports[0]["digest"] == reports[1]["digest"]
    table = ScoreTable.load(tmp_path / "table.safetensors")
    model, questions = families.build("llama"), make_questions(60)
    whole = cf.attribute(model, make_tokenizer(), questions, **OPTIONS)
    assert np.abs(table.totals - whole.totals).max() <= 1e-12 * np.abs(whole.totals).max()
    assert np.array_equal(table.probability, whole.probability)
    assert (table.ids, table.groups, table.counts.tolist()) == (whole.ids, whole.groups, whole.counts.tolist())
    assert table.metadata == {**whole.metadata, "processes": 2}
    from culnig_fast.batching import plan_batches

    planned = len(plan_batches([len(question.prompt.split()) for question in questions], 30))
    assert [report["batches"] for report in reports] == [-(-planned // 2) - 4, planned // 2 - 4]
    assert not list(tmp_path.glob("*.partial*"))
    assert "rank 1 has another model" in reports[0]["same"]
    assert "rank 0 has another model" in reports[1]["same"]
    assert reports[1]["own"] == "its disk is full"
    assert reports[0]["other"].startswith("rank 1 failed (its disk is full); ")


class Store:
    """torch's key-value store, of one process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(world_module.time, "monotonic", lambda: self.now)
        patch.setattr(world_module.time, "sleep", self.pass_)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_a_rank_without_a_sign_of_life_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = Clock(monkeypatch), Store()
    world, third = World(0, 3, store), World(2, 3, store)
    for second in range(30):
        clock.pass_(1.0)
        for other in (World(1, 3, store), third):
            other.beat(second)
        world.check()
    assert world.casualty() == 1 or world.casualty() == 2  # both stand still while it waits
    with pytest.raises(RankError, match="rank 1 died; start the same job again"):
        for second in range(30, 90):
            clock.pass_(1.0)
            third.beat(second)
            world.check()
    assert clock.now < 30 + 2 * world_module.GRACE_SECONDS + world_module.DEAD_SECONDS + 2
    with pytest.raises(RankError, match="rank 1 died"):  # and the others say the same
        third.check()


def test_a_lost_store_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = Clock(monkeypatch), Store()
    world = World(1, 2, store)
    clock.pass_(1.0)

    def lost(keys: list[str]) -> bool:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(store, "check", lost)
    with pytest.raises(RankError, match="rank 0, is gone"):
        world.check()


def test_one_process_asks_nobody() -> None:
    with joined() as world:
        assert (world.rank, world.size, world.alone) == (0, 1, True)
        world.check()
        assert world.gather("x", 5) == [5]
        assert world.casualty() is None


def test_incomplete_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(cf.CulnigError, match="RANK is None; start the processes with torchrun"), joined():
        pass


@pytest.mark.parametrize(
    ("there", "size", "word"),
    [
        ("x.partial", 2, "1 processes"),
        ("x.partial.rank1of3", 2, "3 processes"),
        ("x.partial.rank0of2", 1, "2 processes"),
    ],
)
def test_progress_of_another_number_of_processes_is_refused(there: str, size: int, word: str, tmp_path: Path) -> None:
    (tmp_path / there).write_bytes(b"kept")
    with pytest.raises(cf.CulnigError, match=f"{word}.*start {word[0]} again, or delete"):
        rank_path(tmp_path / "x.partial", World(0, size, Store()))
    (tmp_path / there).unlink()
    expected = "x.partial" if size == 1 else "x.partial.rank1of2"
    assert rank_path(tmp_path / "x.partial", World(size - 1, size, Store())).name == expected


def test_another_budget_of_the_kept_progress_is_refused(tmp_path: Path) -> None:
    """Which batches a sample is padded with, and which process has it, hangs on the budget."""
    model, questions = families.build("llama"), make_questions(12)
    given: dict[str, Any] = {"padding": "zero", "checkpoint": tmp_path / "x.partial", "progress": False}
    cf.attribute(model, make_tokenizer(), questions, batch_tokens=30, **given)
    with pytest.raises(cf.CulnigError, match="batch_tokens 30, not 12"):
        cf.attribute(model, make_tokenizer(), questions, batch_tokens=12, **given)
    again = cf.attribute(model, make_tokenizer(), questions, **given)
    assert again.metadata["batch_tokens"] == 30
