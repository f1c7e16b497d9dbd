"""bench/attribution_speed.py: each method runs, wrong ones are refused, the JSON keeps its shape."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import attribution_speed  # noqa: E402
from harness import memory, report, roofs, rounds, shapes, sites  # noqa: E402
from harness.batches import make_batch  # noqa: E402
from harness.check import Checker  # noqa: E402
from harness.methods import METHODS, Session  # noqa: E402
from harness.methods.hooks import Hooks  # noqa: E402

CPU = torch.device("cpu")
MICRO = ["--device", "cpu", "--shape", "micro", "--tokens", "45", "--length", "9", "--repeats", "2"]
ROW_KEYS = {
    "shape",
    "method",
    "samples_per_s",
    "tokens_per_s",
    "time_over_bare",
    "roof_percent",
    "memory_over_bare",
}


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures mean nothing here, so no time goes into making them good."""
    monkeypatch.setitem(roofs.SIZES, "cpu", 32)
    monkeypatch.setattr(rounds, "_LEAST_SECONDS", 0.0)


def bench(*arguments: str) -> int:
    return attribution_speed.main([*MICRO, *arguments])


def test_every_method_but_compile_runs_and_the_json_holds_it(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "out.json"
    names = [name for name in METHODS if name != "compile"]
    assert bench("--json", str(file), "--methods", *names) == 0
    document = json.loads(file.read_text())
    assert set(document) == {"environment", "rows", "kernels"}
    assert {"device", "driver", "torch", "triton", "transformers", "commit", "source_hash", "threads"} <= set(
        document["environment"]
    )
    assert document["kernels"] == []
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == names
    for row in rows.values():
        assert set(row) >= ROW_KEYS
        if row["status"] == "timed":
            assert row["samples_per_s"] > 0 and row["roof_percent"] > 0 and row["memory_over_bare"] > 0
            assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        else:
            assert row["status"] == "not available" and row["note"]
            assert all(row[key] is None for key in ROW_KEYS - {"shape", "method"})
    for name in ("bare", "authors", "hooks", "taps"):
        assert rows[name]["status"] == "timed"
    assert rows["bare"]["time_over_bare"] == 1.0
    assert rows["taps"]["check"]["passed"] and rows["bare"]["check"] is None
    printed = capsys.readouterr().out
    assert "time ÷ bare" in printed and "needs a CUDA device" in printed


@pytest.mark.slow
def test_compile_runs_end_to_end(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert bench("--json", str(file), "--methods", "compile") == 0
    row = json.loads(file.read_text())["rows"][1]
    assert row["status"] == "timed" or row["note"].startswith("torch.compile failed")


class Wrong(Hooks):
    """Plain hooks whose totals are changed before they are handed over."""

    name = "wrong"

    def __init__(self, change: Any) -> None:
        self.change = change

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        with super().open(model, n_groups) as session:
            assert session.totals is not None
            totals = session.totals
            yield Session(session.step, lambda: self.change(totals()))


def _one_nan(totals: torch.Tensor) -> torch.Tensor:
    totals[1, 7] = torch.nan
    return totals


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t * 1.0001,
        _one_nan,
        lambda t: t.roll(1, dims=1),
        lambda t: t[:, :-1],
        lambda t: t.clamp(min=0.0),
    ],
    ids=["off by 1e-4", "one NaN", "shifted by a neuron", "a neuron short", "pads counted as 0"],
)
def test_a_wrong_method_is_refused_and_not_timed(change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "wrong", Wrong(change))
    file = tmp_path / "out.json"
    assert bench("--json", str(file), "--methods", "wrong") == 1
    row = json.loads(file.read_text())["rows"][-1]
    assert row["method"] == "wrong" and row["status"] == "refused" and "are allowed" in row["note"]
    assert all(row[key] is None for key in ROW_KEYS - {"shape", "method"})


def test_the_same_method_unchanged_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "wrong", Wrong(lambda totals: totals))
    assert bench("--methods", "wrong") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ours_passes_the_check_in_each_dtype(dtype: torch.dtype) -> None:
    verdict = Checker(shapes.SHAPES["micro"], CPU, dtype).check(METHODS["taps"])
    assert verdict is not None and verdict.passed, verdict


def test_a_method_leaves_the_model_as_it_was() -> None:
    model = shapes.build(shapes.SHAPES["micro"], CPU, torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = make_batch(3, 7, model.config.vocab_size, CPU, shortest=2)
    for name in ("bare", "authors", "hooks", "taps"):
        with METHODS[name].open(model, batch.n_groups) as session:
            session.step(batch)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters()), name
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()), name
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "gpt-5"], "unknown --shape"),
        (["--methods", "magic"], "unknown --methods"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--tokens", "8"], "holds no sample"),
        (["--device", "abacus"], "is no device"),
        (["--device", "cuda:99"], "CUDA devices"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: Any) -> None:
    assert bench(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_an_existing_result_is_not_overwritten_unasked(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "out.json"
    file.write_text("mine")
    assert bench("--json", str(file), "--methods", "bare") == 2
    assert file.read_text() == "mine" and "out.json" in capsys.readouterr().err


def test_a_sweep_over_tokens_adds_its_rows_and_growth(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert bench("--json", str(file), "--methods", "bare", "taps", "--sweep", "tokens", "--repeats", "1") == 0
    document = json.loads(file.read_text())
    assert [row["method"] for row in document["rows"]] == ["bare", "taps"]
    assert len({row["samples"] for row in document["sweep"]["rows"]}) == 4
    assert set(document["sweep"]["growth_exponent"]) == {"bare", "taps"}


def test_growth_is_the_exponent() -> None:
    rows = [{"method": "m", "tokens": t, "seconds": {"median": 3e-6 * t**2}} for t in (64, 128, 512)]
    assert report.growth(rows, "tokens")["m"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3-0.6b", 0.596),
        ("llama-3.1-8b", 8.030),
        ("gemma-3-12b", 11.766),
        ("phi-4", 14.660),
        ("qwen3-14b", 14.768),
        ("gemma-3-27b", 27.009),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    model = shapes.build(shapes.SHAPES[name], torch.device("meta"), torch.bfloat16)
    assert shapes.size_of(model).total / 1e9 == pytest.approx(billions, abs=6e-4)
    widths = {site.name: site.columns.stop - site.columns.start for site in sites.find_sites(model)}
    assert widths["mlp.gate_proj"] == widths["mlp.up_proj"] == model.config.intermediate_size


def test_peak_memory_counts_what_is_held_together() -> None:
    megabyte = 2**18  # float32 elements

    def one_after_the_other() -> None:
        for _ in range(4):
            torch.zeros(megabyte)

    def together() -> None:
        kept = [torch.zeros(megabyte) for _ in range(4)]
        del kept

    assert memory.peak_above(one_after_the_other, CPU) == pytest.approx(2**20, rel=0.01)
    assert memory.peak_above(together, CPU) == pytest.approx(4 * 2**20, rel=0.01)


def test_lengths_are_timed_first_and_later(tmp_path: Path, capsys: Any) -> None:
    import lengths

    file = tmp_path / "lengths.json"
    given = ["--device", "cpu", "--shape", "micro", "--tokens", "130", "--count", "2", "--json", str(file)]
    assert lengths.main([*given, "--methods", "bare", "fused", "kernels"]) == 0
    document = json.loads(file.read_text())
    assert document["lengths"] == [65, 68]
    rows = {row["method"]: row for row in document["rows"]}
    assert len(rows["fused"]["first_s"]) == len(rows["fused"]["later_s"]) == 2
    assert "needs a CUDA device" in rows["kernels"]["note"]
    assert "first ÷ later" in capsys.readouterr().out
    assert lengths.main(given) == 2
    assert lengths.main(["--device", "cpu", "--shape", "nothing"]) == 2
    assert "choose from" in capsys.readouterr().err


def test_single_kernels_can_be_left_out_or_measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = {"name": "k", "gb_per_s": 1.0, "copy_percent": None, "note": "its bytes fit in the cache"}
    monkeypatch.setattr("harness.run.measure_kernels", lambda *given: [kernel])
    for asked, rows, kernels in (("alone", 0, 1), ("without", 1, 0)):
        file = tmp_path / f"{asked}.json"
        assert bench("--json", str(file), "--methods", "bare", "--kernels", asked) == 0
        document = json.loads(file.read_text())
        assert (len(document["rows"]), len(document["kernels"])) == (rows, kernels)


def test_what_was_measured_is_kept_when_a_run_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, measured = tmp_path / "out.json", roofs.ProductRoof.measure
    calls: list[int] = []

    def ended(self: Any, repeats: int = 5) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(self, repeats)

    monkeypatch.setattr(roofs.ProductRoof, "measure", ended)
    with pytest.raises(KeyboardInterrupt):
        bench("--json", str(file), "--methods", "bare")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["samples_per_s"] > 0


def test_what_python_handles_one_by_one_is_cut_to_what_it_can() -> None:
    model = shapes.build(shapes.SHAPES["micro"], CPU, torch.float32)
    batch = make_batch(4, 9, model.config.vocab_size, CPU)
    neurons = sum(site.columns.stop - site.columns.start for site in sites.find_sites(model))

    class Slow(Hooks):
        most_values = 2 * neurons

    assert len(rounds._part(Slow(), model, batch)) == 2
    assert len(rounds._part(Hooks(), model, batch)) == 4
