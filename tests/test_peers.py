"""bench/peers.py: every library's row runs and is right, lines are counted, wrong scores are refused."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import peers  # noqa: E402
from harness import memory, roofs, rounds, shapes  # noqa: E402
from harness.check import Checker, sample_scores  # noqa: E402
from harness.peers import child, run  # noqa: E402
from harness.peers.lines import lines_of, logical_lines  # noqa: E402
from harness.peers.methods import MODULES  # noqa: E402
from harness.peers.peer import PEERS, Peer  # noqa: E402
from harness.peers.sharing import with_shared_weights  # noqa: E402

from culnig_fast.errors import CulnigError  # noqa: E402

CPU = torch.device("cpu")
MICRO = ["--device", "cpu", "--shape", "micro", "--tokens", "45", "--length", "9", "--repeats", "2"]
NAMES = [module.NAME for module in MODULES]
FIGURES = ("median_seconds", "time_over_bare", "peak_mb", "memory_over_bare")
REAL_CHILD = run._child
EXTRA = {"captum": "captum", "nnsight": "nnsight", "transformer-lens": "transformer_lens.model_bridge"}


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures mean nothing here, so no time goes into making them good, nor into starting processes."""
    monkeypatch.setitem(roofs.SIZES, "cpu", 32)
    monkeypatch.setattr(rounds, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(run, "_child", lambda job: [1000 * len(job["method"])] * len(job["shapes"]))


def bench(*arguments: str) -> int:
    return peers.main([*MICRO, *arguments])


def needs(name: str) -> None:
    """Skip where the row's library is not installed."""
    if name in EXTRA:
        backward = torch.Tensor.backward
        try:
            pytest.importorskip(EXTRA[name], reason=f"{name} is not installed: pip install culnig_fast[{name}]")
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker(shapes.SHAPES["micro"], CPU, torch.float32, summed=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_row_gives_the_same_scores_and_leaves_the_model_as_it_was(name: str, checker: Checker) -> None:
    needs(name)
    model, backward = checker.model, torch.Tensor.backward
    before = {key: value.clone() for key, value in model.state_dict().items()}
    verdict = checker.check(PEERS[name])
    assert verdict is not None
    assert verdict.passed, verdict
    assert checker.truth.abs().max() > 0
    assert torch.Tensor.backward is backward
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert set(before) == set(model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_second_batch_is_scored_after_another_row_ran(name: str, checker: Checker) -> None:
    """Rows take turns on one model; what one patches must not be missing when its turn comes again."""
    needs(name)
    with PEERS["hooks"].open(checker.model, 1) as session:
        session.step(checker.batch)
    with PEERS[name].open(checker.model, 1) as session:
        session.step(checker.batch)
        session.step(checker.batch)
        totals = session.totals()
    torch.testing.assert_close(totals, 2 * checker.truth, rtol=0, atol=1e-5 * float(checker.truth.abs().max()))


def test_a_second_tree_of_modules_holds_the_same_tensors(checker: Checker) -> None:
    model = checker.model
    twin = with_shared_weights(model)
    tensors = [dict((*one.named_parameters(), *one.named_buffers())) for one in (model, twin)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(tensor is tensors[1][name] for name, tensor in tensors[0].items())
    assert not set(map(id, model.modules())) & set(map(id, twin.modules()))


def test_the_truth_is_the_sum_of_samples_alone(checker: Checker) -> None:
    double = shapes.build(shapes.SHAPES["micro"], CPU, torch.float64)
    double.load_state_dict(checker.model.state_dict())
    rows = sample_scores(double, checker.batch)
    assert rows.shape == (len(checker.batch), checker.truth.shape[1])
    torch.testing.assert_close(checker.truth, rows.sum(0, keepdim=True), rtol=1e-12, atol=0)


def test_a_run_prints_and_writes_every_row(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "out.json"
    names = [name for name in NAMES if name not in EXTRA]
    assert bench("--json", str(file), "--methods", *names) == 0
    document = json.loads(file.read_text())
    assert {"device", "torch", "captum", "nnsight", "transformer_lens", "commit", "source_hash", "dtype"} <= set(
        document["environment"]
    )
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == ["bare", *names]
    for name, row in rows.items():
        assert row["status"] == "timed"
        assert row["median_seconds"] > 0
        assert row["time_over_bare"] > 0
        assert row["peak_bytes"] == 1000 * len(name)
        assert row["memory_over_bare"] == pytest.approx(len(name) / 4)
        assert row["tensor_bytes"] > 0
        assert row["lines"] == (None if name == "bare" else lines_of(PEERS[name].module.scores))
    printed = capsys.readouterr().out
    assert "memory ÷ bare" in printed
    assert "kept open over many batches" in printed


def made(name: str, ready: Any, scores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of this test's own."""
    facts = {"NAME": name, "SUMMARY": "", "NOTE": "", "LIBRARY": name, "ready": ready, "scores": scores}
    module = types.SimpleNamespace(**facts)
    monkeypatch.setitem(PEERS, name, Peer(module))  # type: ignore[arg-type]


def _one_nan(scores: torch.Tensor) -> torch.Tensor:
    scores[7] = torch.nan
    return scores


HONEST = PEERS["hooks"].module


@pytest.mark.parametrize(
    "scores",
    [
        lambda model, batch: HONEST.scores(model, batch) * 1.0001,
        lambda model, batch: _one_nan(HONEST.scores(model, batch)),
        lambda model, batch: HONEST.scores(model, batch).roll(1),
        lambda model, batch: HONEST.scores(model, batch)[:-1],
        lambda model, batch: HONEST.scores(model, batch.rows(0, len(batch) - 1)),
        lambda model, batch: sum(HONEST.scores(model, one).clamp(min=0.0) for one in batch.singles()),
    ],
    ids=["off by 1e-4", "one NaN", "shifted by a neuron", "a neuron short", "a sample short", "pads counted as 0"],
)
def test_wrong_scores_are_refused_by_name(scores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("wrong", HONEST.ready, scores, monkeypatch)
    file = tmp_path / "out.json"
    assert bench("--json", str(file), "--methods", "wrong") == 1
    row = json.loads(file.read_text())["rows"][-1]
    assert (row["method"], row["status"]) == ("wrong", "refused")
    assert "are allowed" in row["note"]
    assert all(row[key] is None for key in FIGURES)


def test_a_library_that_is_missing_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(model: Any) -> Any:
        import no_such_library  # noqa: F401

    made("absent", ready, lambda model, batch: None, monkeypatch)
    file = tmp_path / "out.json"
    assert bench("--json", str(file), "--methods", "absent") == 0
    row = json.loads(file.read_text())["rows"][-1]
    assert row["status"] == "not available"
    assert "no_such_library" in row["note"]
    assert all(row[key] is None for key in FIGURES)


def test_memory_that_could_not_be_measured_is_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: dict[str, Any]) -> list[int]:
        raise CulnigError("no process today")

    monkeypatch.setattr(run, "_child", fail)
    file = tmp_path / "out.json"
    assert bench("--json", str(file), "--methods", "hooks") == 0
    row = json.loads(file.read_text())["rows"][-1]
    assert row["peak_mb"] is None
    assert row["memory_over_bare"] is None
    assert row["median_seconds"] > 0


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    return 1\n", 2),
        ('def f():\n    """One.\n\n    More.\n    """\n\n    # why\n    return 1  # so\n', 2),
        ("def f(\n    a,\n    b,\n):\n    return [\n        a,\n        b,\n    ]\n", 2),
        ("def f(x):\n    if x:\n        y = 1\n    else:\n        y = 2\n    return y\n", 6),
        ("def f():\n    a = 1; b = 2\n    return a + b\n", 4),
        ('def f():\n    """Out."""\n    def g():\n        """In."""\n        return ";"\n    return g\n', 4),
        ('    def f():\n        return """two\n    lines"""\n', 2),
        ('def f():\n    "text"\n', 1),
    ],
    ids=["plain", "docstring and comments", "wrapped", "else", "squeezed", "nested", "indented", "docstring alone"],
)
def test_lines_of_user_code_are_logical_ones(source: str, lines: int) -> None:
    assert logical_lines(source) == lines


def test_what_is_counted_is_all_that_a_row_runs() -> None:
    """A row must not hide its work in a helper of the benchmark."""
    for module in MODULES:
        codes, names = [module.scores.__code__], set()
        while codes:
            code = codes.pop()
            names |= set(code.co_names)
            codes += [one for one in code.co_consts if isinstance(one, types.CodeType)]
        assert names & set(vars(module)) <= {"torch"}, module.NAME
        assert 5 <= PEERS[module.NAME].lines <= 40


def test_resident_memory_peaks_above_what_was_there() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak resident memory is read from /proc, which this system lacks")
    mebibytes = 256

    def step() -> None:
        torch.ones(mebibytes * 2**18)

    assert memory.resident_peak_above(step) == pytest.approx(mebibytes * 2**20, rel=0.1)
    assert memory.resident_peak_above(lambda: None) < 16 * 2**20  # the earlier peak is not this one's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "gpt-5"], "--shape gpt-5 is unknown"),
        (["--shape", "phi-4"], "holds its projections joined"),
        (["--methods", "magic"], "unknown --methods"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--tokens", "8"], "holds no sample"),
        (["--device", "abacus"], "is no device"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: Any) -> None:
    assert bench(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_existing_result_is_not_overwritten_unasked(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "out.json"
    file.write_text("mine")
    assert bench("--json", str(file), "--methods", "bare") == 2
    assert file.read_text() == "mine"
    assert "out.json" in capsys.readouterr().err


def test_rows_and_shapes_are_listed(capsys: Any) -> None:
    assert peers.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in PEERS)
    assert "phi-4" not in listed


def test_a_process_of_its_own_measures_shape_after_shape() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak resident memory is read from /proc, which this system lacks")
    job = {"method": "hooks", "dtype": "float32", "samples": 16, "length": 64, "threads": torch.get_num_threads()}
    peaks = child.main(job | {"shapes": ["micro", "micro"]})
    assert len(peaks) == 2
    assert all(0 <= peak < 2**30 for peak in peaks)


def test_a_process_is_asked_by_json_and_its_last_word_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CHILD", tmp_path / "child.py")
    job = {"method": "hooks", "threads": 1}
    run.CHILD.write_text(
        "import json, os, sys\n"
        "print('a library greets')\n"
        "print(json.dumps([json.loads(sys.argv[1])['threads'], int(os.environ['OMP_NUM_THREADS'])]))\n"
    )
    assert REAL_CHILD(job) == [1, 1]
    run.CHILD.write_text("raise SystemError('no luck')")
    with pytest.raises(CulnigError, match="the memory of hooks was not measured: SystemError: no luck"):
        REAL_CHILD(job)
