"""Interrupted and continued, the result is the same to the last bit; another run's checkpoint is refused."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(20)
OPTIONS: dict[str, Any] = {"batch_tokens": 12, "progress": False, "checkpoint_seconds": 0.0}


class _StopError(Exception):
    pass


def one_zeroed_row(family: str) -> Any:
    """What baking a single neuron leaves."""
    model = families.build(family)
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[40] = 0.0
    return model


def exchanged_columns(family: str) -> Any:
    """Another model with the same numbers in every row."""
    model = families.build(family)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight[:, [3, 7]] = weight[:, [7, 3]]
    return model


def attending(family: str, how: str) -> Any:
    """The model with another implementation of attention."""
    model = families.build(family)
    model.set_attn_implementation(how)
    return model


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int, error: type[BaseException]) -> None:
    """Make the forward pass of a later batch raise."""
    from culnig_fast.attributor import Attributor

    original, calls = Attributor.forward, [0]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > batches:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Attributor, "forward", forward)


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt])
@pytest.mark.parametrize("batches", [1, 3, 6])
def test_continued_bits_equal_undisturbed(
    batches: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.build("llama")
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    path = tmp_path / "run.partial"
    with monkeypatch.context() as patch, pytest.raises(error):
        stop_after(patch, batches, error)
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    assert path.exists()
    with monkeypatch.context() as patch:
        counted = []
        from culnig_fast.attributor import Attributor

        original = Attributor.forward
        patch.setattr(Attributor, "forward", lambda self, *a, **k: (counted.append(1), original(self, *a, **k))[1])
        continued = cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    from culnig_fast.batching import plan_batches

    planned = len(plan_batches([len(TOKENIZER(q.prompt)["input_ids"]) for q in QUESTIONS], 12))
    assert len(counted) == planned - batches
    assert np.array_equal(continued.totals, whole.totals)
    assert np.array_equal(continued.probability, whole.probability)
    assert path.exists()
    whole.save(tmp_path / "whole")
    continued.save(tmp_path / "continued")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "continued").read_bytes()
    assert not path.exists()


def test_another_runs_checkpoint_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("llama")
    path = tmp_path / "run.partial"
    with monkeypatch.context() as patch, pytest.raises(_StopError):
        stop_after(patch, 2, _StopError)
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    for changes, word in (
        ({"reduction": "sum"}, 'options: reduction "max" there and "sum" here'),
        ({"padding": "zero"}, "options: padding"),
        ({"path": "taps"}, "options: path"),
        ({"control": True}, "options: clamp false there and true here"),
        ({"batch_size": 2}, "options: batch_size null there and 2 here"),
        ({"sites": ("mlp.gate_proj",)}, "layout"),
        ({"questions": QUESTIONS[:-1]}, "questions"),
        ({"questions": [dataclasses.replace(QUESTIONS[0], answer="B"), *QUESTIONS[1:]]}, "questions"),
        ({"questions": [dataclasses.replace(QUESTIONS[0], group="x"), *QUESTIONS[1:]]}, "questions"),
        ({"model": families.build("llama", seed=1)}, "model: weights"),
        ({"model": families.build("llama").double()}, "model: .*dtype"),
        ({"model": one_zeroed_row("llama")}, "model: weights"),
        ({"model": exchanged_columns("llama")}, "model: weights"),
        ({"model": attending("llama", "eager")}, 'model: attention "sdpa" there and "eager" here'),
        ({"backend": "reference"}, 'options: backend ".*" there and "reference" here'),
    ):
        given: dict[str, Any] = {"model": model, "questions": QUESTIONS, **OPTIONS, **changes}
        with pytest.raises(cf.CulnigError, match=rf"another run.*{word}"):
            cf.attribute(given.pop("model"), TOKENIZER, given.pop("questions"), checkpoint=path, **given)
    with monkeypatch.context() as patch, pytest.raises(cf.CulnigError, match=r"different: version .* there and .*9\.9"):
        patch.setattr("culnig_fast.running.samples.__version__", "9.9")
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(cf.CulnigError, match="not a checkpoint of this version"):
        patch.setattr("culnig_fast.running.checkpoint.FORMAT", "culnig_fast.checkpoint/4")
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(cf.CulnigError, match="damaged checkpoint"):
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)


def test_signals_to_the_command_lose_nothing(tmp_path: Path) -> None:
    """The command is stopped three times at whatever point it has reached, and then left alone."""
    families.build("llama").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    lines = ["id,group,prompt,answer"]
    lines += [f"{q.id},{q.group},{q.prompt},{q.answer}" for q in make_questions(1200)]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    command = [
        *(sys.executable, "-m", "culnig_fast.cli", "score", "model", "--task", "plain", "--data", "q.csv"),
        *("--split", "all", "--quiet", "--device", "cpu", "--batch-tokens", "9"),
    ]
    subprocess.run([*command, "--out", "whole.safetensors"], cwd=tmp_path, check=True, capture_output=True)
    partial = tmp_path / "again.safetensors.partial"
    for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            [*command[:-2], "--checkpoint-seconds", "0.05", *command[-2:], "--out", "again.safetensors"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
        )
        before = partial.stat().st_mtime_ns if partial.exists() else 0
        while process.poll() is None and not (partial.exists() and partial.stat().st_mtime_ns > before):
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            assert f"stopped by {signal.Signals(number).name} after".encode() in errors
            assert b"again.safetensors.partial, and the same command continues from there" in errors
        assert partial.exists()
        assert not (tmp_path / "again.safetensors").exists()
    subprocess.run([*command, "--out", "again.safetensors"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not (tmp_path / "again.safetensors.partial").exists()


def full_disk(patch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr("os.fsync", full)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While scoring, and when only the table is left to be written: nothing that was kept is lost."""
    model, path = families.build("llama"), tmp_path / "run.partial"
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(_StopError):
        stop_after(patch, 2, _StopError)
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(cf.CulnigError, match="No space left.*progress of 2 samples is"):
        full_disk(patch)
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before
    table = cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(cf.CulnigError, match="No space left"):
        full_disk(patch)
        table.save(tmp_path / "table.safetensors")
    with monkeypatch.context() as patch:  # everything is kept: no batch is run again
        stop_after(patch, 0, _StopError)
        table = cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    table.save(tmp_path / "table.safetensors")
    assert np.array_equal(table.totals, whole.totals)
    assert [file.name for file in tmp_path.iterdir()] == ["table.safetensors"]


def test_a_folder_that_cannot_be_written_is_known_before_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.build("llama")
    with monkeypatch.context() as patch:
        stop_after(patch, 0, _StopError)
        with pytest.raises(cf.CulnigError, match="No such file or directory in folder .*absent"):
            cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=tmp_path / "absent" / "x", **OPTIONS)

        def read_only(*args: Any, **kwargs: Any) -> Any:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr("tempfile.mkstemp", read_only)
        with pytest.raises(cf.CulnigError, match="Read-only file system in folder"):
            cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=tmp_path / "x", **OPTIONS)


def test_a_folder_that_vanishes_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from culnig_fast.running import loop

    folder = tmp_path / "gone"
    folder.mkdir()
    original = loop._score_batch

    def score(*args: Any) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        return original(*args)

    monkeypatch.setattr(loop, "_score_batch", score)
    with pytest.raises(cf.CulnigError, match="No such file or directory in folder .*gone.*no progress was kept yet"):
        cf.attribute(families.build("llama"), TOKENIZER, QUESTIONS, checkpoint=folder / "x", **OPTIONS)


def test_what_killed_writers_left_is_swept_up(tmp_path: Path) -> None:
    from culnig_fast.running.checkpoint import Checkpoint

    old, new = tmp_path / ".x.partial.abc.part", tmp_path / ".x.partial.def.part"
    other = tmp_path / ".y.partial.abc.part"
    for path in (old, new, other):
        path.write_text("half")
    os.utime(old, (0, 0))
    assert Checkpoint(tmp_path / "x.partial", {}).load() is None
    assert sorted(tmp_path.iterdir()) == [new, other]  # somebody may be at work on the new one
