"""One model whose weights lie in parts in several processes: the scores, the files and the ends of one process."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import families
import numpy as np
import pytest
import torch
from command_line import invoke
from divided_job import CHOSEN, FAMILIES, OPTIONS, STOPPED_AT, sites_of
from jobs import reports, started
from torch import distributed as dist
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.batching import plan_batches
from culnig_fast.divided import Division
from culnig_fast.evaluation import Evaluation
from culnig_fast.models import load_model
from culnig_fast.scores import ScoreTable

JOB = Path(__file__).resolve().parents[1] / "divided_job.py"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The job's folder, and what its two processes say."""
    folder = tmp_path_factory.mktemp("divided")
    return folder, reports([str(JOB), str(folder)], 2)


def assert_alike(table: ScoreTable, whole: ScoreTable, by: float) -> None:
    assert table.layout.to_dict() == whole.layout.to_dict()
    assert np.abs(table.totals - whole.totals).max() <= by * np.abs(whole.totals).max()
    assert np.abs(table.probability - whole.probability).max() <= by
    assert (table.ids, table.groups) == (whole.ids, whole.groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_scored_as_in_one_process(family: str, job: tuple[Path, list[Any]]) -> None:
    """In float64, so that no column of another process could pass for rounding."""
    table = ScoreTable.load(job[0] / f"{family}.safetensors")
    model, _ = load_model(str(job[0] / family))
    given: dict[str, Any] = {"sites": sites_of(family), "path": "taps", **OPTIONS}
    whole = cf.attribute(model, make_tokenizer(), make_questions(20), **given)
    assert_alike(table, whole, 1e-12)
    assert (table.metadata["tensor_parallel"], table.metadata["processes"]) == (2, 1)
    assert "divided among processes" in json.dumps(table.metadata["fusion"])


def test_neurons_of_any_process_are_suppressed(job: tuple[Path, list[Any]]) -> None:
    model = families.build("llama").double()
    inputs = torch.arange(8, 16)[None]
    with torch.no_grad():
        plain = model(input_ids=inputs).logits[0, -1]
        with cf.suppress(model, CHOSEN):
            expected = model(input_ids=inputs).logits[0, -1]
    assert (plain - expected).abs().max() > 1e-3
    for report in job[1]:
        assert (torch.tensor(report["suppressed"], dtype=torch.float64) - expected).abs().max() <= 1e-12


def test_a_signal_to_one_process_stops_all_after_the_same_batch(job: tuple[Path, list[Any]]) -> None:
    folder, said = job
    batches = len(plan_batches([len(question.prompt.split()) for question in make_questions(60)], 30))
    for report in said:
        assert report["stopped"].startswith("stopped by SIGINT after ") and "continues from there" in report["stopped"]
        assert report["batches"] == batches - STOPPED_AT
        assert report["left"] == []
    whole = cf.attribute(families.build("llama").double(), make_tokenizer(), make_questions(60), path="taps", **OPTIONS)
    assert_alike(ScoreTable.load(folder / "continued.safetensors"), whole, 1e-12)


def test_what_is_not_finite_in_one_share_is_named_by_all(job: tuple[Path, list[Any]]) -> None:
    for report in job[1]:
        assert report["nan"].startswith("question 'q0': the activation of neuron 27 of mlp.gate_proj in layer 1 is nan")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("bake", "self_attn.q_proj.weight is divided among processes, of which only attribute()"),
        ("norms", "is divided among processes, of which only"),
        ("watch", "single neurons cannot be watched"),
        ("fused", "the weights are divided among processes"),
        ("experts", "routed experts cannot be scored where weights are divided"),
        ("no plan", "no tensor-parallel plan for OPTForCausalLM"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(what: str, words: str, job: tuple[Path, list[Any]]) -> None:
    for report in job[1]:
        assert words in report["refused"][what]


class Divided(NamedTuple):
    """What `Division` looks at of a projection's weight."""

    shape: tuple[int, int]
    placements: tuple[Any, ...]
    device_mesh: Any = None

    def dim(self) -> int:
        return len(self.shape)


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> Division:
    monkeypatch.setattr(dist, "get_rank", lambda group: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    return Division(None, torch.device("cpu"))


def held(division: Division, weight: Divided, tensor: str, seen: int, width: int) -> range | None:
    projection: Any = torch.nn.Linear(1, 1)
    projection.__dict__["weight"] = weight  # no parameter: a weight that is divided needs a process group
    return division.held(projection, tensor, seen, width)


def test_which_columns_a_process_holds(second_of_three: Division) -> None:
    rows, columns = Divided((12, 6), (Shard(0),)), Divided((4, 9), (Shard(1),))
    assert held(second_of_three, rows, "output", 4, 12) == range(4, 8)
    assert held(second_of_three, columns, "input", 3, 9) == range(3, 6)
    assert held(second_of_three, Divided((4, 9), (Shard(-1),)), "input", 3, 9) == range(3, 6)
    assert held(second_of_three, rows, "output", 12, 12) is None  # gathered after the product


@pytest.mark.parametrize(
    ("weight", "seen", "width", "words"),
    [
        (Divided((50, 6), (Shard(0),)), 17, 50, "of 50 columns cannot be divided evenly among 3 processes"),
        (Divided((12, 6), (Shard(0),)), 4, 6, "a Linear of 12 columns shows 4 of them"),
        (Divided((12, 6), (Shard(1),)), 4, 12, "which ones cannot be told"),
        (Divided((12, 6), (_StridedShard(0, split_factor=2),)), 4, 12, "which ones cannot be told"),
    ],
    ids=["uneven", "several sites in one", "along the other axis", "interleaved"],
)
def test_columns_that_cannot_be_told_are_refused(
    second_of_three: Division, weight: Divided, seen: int, width: int, words: str
) -> None:
    with pytest.raises(cf.CulnigError, match=words):
        held(second_of_three, weight, "output", seen, width)


def test_a_number_of_processes_that_divides_no_heads_is_refused(second_of_three: Division) -> None:
    remedy = "Linear does not run with its weights divided among 3 processes .*; start a number of them that divides"
    with pytest.raises(cf.CulnigError, match=remedy), second_of_three.runnable(torch.nn.Linear(1, 1)):
        torch.zeros(16).view(1, 3, -1, 8)


def test_a_lost_process_is_not_taken_for_heads_that_do_not_divide(second_of_three: Division) -> None:
    for error in (
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"),
    ):
        found = "exchange with the other processes broke off .*(peer|NCCL).*start the same job again"
        with pytest.raises(cf.CulnigError, match=found), second_of_three.runnable(torch.nn.Linear(1, 1)):
            raise error


def test_a_killed_process_is_named_and_the_command_continues(tmp_path: Path) -> None:
    out = tmp_path / "scores.safetensors"
    partial = out.with_name(f"{out.name}.partial")
    command = ["-m", "culnig_fast.cli", "score", "demo", "--data", "demo", "--split", "neur", "--out", str(out)]
    command += ["--tensor-parallel", "--checkpoint-seconds", "0", "--quiet", "--json"]
    first = started(command, 2)
    deadline = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    first[1].send_signal(signal.SIGKILL)
    errors = [process.communicate(timeout=120)[1] for process in first]
    assert first[0].returncode not in (0, None)
    assert "rank 1 died; start the same job again" in errors[0]
    assert partial.exists() and not out.exists()
    again = started(command, 2)
    printed = [process.communicate(timeout=240) for process in again]
    assert [process.returncode for process in again] == [0, 0], printed
    assert json.loads(printed[0][0])["samples"] > 0 and printed[1][0] == ""
    assert not partial.exists()
    whole_out = tmp_path / "whole.safetensors"
    assert invoke("score", "demo", "--data", "demo", "--split", "neur", "--out", whole_out, "--quiet") == 0
    table, whole = ScoreTable.load(out), ScoreTable.load(whole_out)
    assert_alike(table, whole, 1e-5)


def test_accuracy_without_neurons_is_that_of_one_process(tmp_path: Path) -> None:
    neurons = tmp_path / "set.json"
    cf.NeuronSet(("mlp.gate_proj",) * 200, [0] * 200, list(range(0, 400, 2)), [0.0] * 200).save(neurons)
    given = ["evaluate", "demo", "--data", "demo", "--task", "pick", "--neurons", neurons, "--quiet", "--out"]
    both = started(["-m", "culnig_fast.cli", *map(str, given), str(tmp_path / "both.jsonl"), "--tensor-parallel"], 2)
    printed = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert printed[0][0].splitlines()[-1].startswith("all") and printed[1][0] == ""
    assert invoke(*given, tmp_path / "one.jsonl") == 0
    got, expected = (Evaluation.load(tmp_path / f"{name}.jsonl") for name in ("both", "one"))
    assert (got.ids, got.predictions) == (expected.ids, expected.predictions)
    assert np.abs(got.probability - expected.probability).max() <= 1e-5
    assert got.accuracy < 1.0


def test_tensor_parallel_needs_several_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    assert invoke("score", "demo", "--data", "demo", "--out", out, "--tensor-parallel") != 0
    assert "--tensor-parallel divides weights among processes; start them with torchrun" in capsys.readouterr().err
