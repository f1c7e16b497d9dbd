"""Blocks of batches, and a run that is interrupted between two of them."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from saved import save
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.batching import make_batch, plan_batches
from culnig_fast.streaming import block as blocks_module
from culnig_fast.streaming.attributor import StreamedAttributor
from culnig_fast.streaming.block import BlockBatch, States, default_stream_tokens, plan_blocks

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(20)
OPTIONS: dict[str, Any] = {"batch_tokens": 24, "stream_tokens": 50, "progress": False, "checkpoint_seconds": 0.0}


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    batch_tokens=st.integers(1, 100),
    tokens=st.integers(1, 400),
)
def test_blocks_are_the_batches_in_their_order(lengths: list[int], batch_tokens: int, tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens)
    blocks = plan_blocks(batches, lengths, tokens)
    assert [batch.tolist() for block in blocks for batch in block] == [batch.tolist() for batch in batches]
    sizes = [[len(batch) * max(lengths[i] for i in batch) for batch in block] for block in blocks]
    assert all(len(block) == 1 or sum(block) <= tokens for block in sizes)
    for block, following in itertools.pairwise(sizes):
        assert sum(block) + following[0] > tokens, "a block ends early"


def test_a_block_is_full_to_the_token() -> None:
    lengths = [5, 4, 3, 2, 1]
    batches = plan_batches(lengths, 5)  # 5; 4; 3; 2 and 1, padded to 4
    found = {size: [len(block) for block in plan_blocks(batches, lengths, size)] for size in (8, 9, 16)}
    assert found[9] == [2, 2] and found[8] == [1, 2, 1] and found[16] == [4]


def test_states_keep_what_they_are_given() -> None:
    ids = [list(range(8, 8 + n)) for n in (3, 2, 4, 1)]
    device = torch.device("cpu")
    block = [BlockBatch(make_batch(ids, np.array(index), device)) for index in ([0, 1], [2], [3])]
    states = States(block, device)
    given_ = {(layer, number): torch.randn(*one.shape, 5) for layer in range(2) for number, one in enumerate(block)}
    for (layer, number), value in given_.items():
        states.put(layer, number, value)
    assert all(torch.equal(states.get(layer, number), value) for (layer, number), value in given_.items())
    states.put(0, 1, -given_[0, 1])
    assert torch.equal(states.get(0, 1), -given_[0, 1])
    assert torch.equal(states.get(0, 0), given_[0, 0]) and torch.equal(states.get(0, 2), given_[0, 2])
    states.drop(0)
    with pytest.raises(KeyError):
        states.get(0, 0)


def test_default_block_is_what_half_of_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory is taken in powers of two: of 400,000 bytes a layer 262,144 are left."""
    monkeypatch.setattr(blocks_module, "_free_memory", lambda: 8 * 2 * 400_000)
    assert default_stream_tokens(8, 100, 2, torch.device("cuda")) == 2**18 // 200
    assert default_stream_tokens(8, 100, 2, torch.device("cpu")) == 400_000 // 200
    monkeypatch.setattr(blocks_module, "_free_memory", lambda: 0)
    assert default_stream_tokens(8, 100, 2, torch.device("cpu")) == 1
    monkeypatch.setattr(blocks_module, "_free_memory", lambda: 1 << 50)
    assert default_stream_tokens(8, 100, 2, torch.device("cpu")) == blocks_module.MOST_TOKENS_CPU


@pytest.mark.parametrize(("blocks_before", "said"), [(0, "no block was finished"), (1, "samples are kept in")])
def test_sigterm_says_what_is_kept(
    blocks_before: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    save(model, "llama")
    original, calls = StreamedAttributor._backward, [0]

    def backward(self: Any, *args: Any) -> None:
        calls[0] += 1
        if calls[0] > 4 * blocks_before:  # four a block
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *args)

    monkeypatch.setattr(StreamedAttributor, "_backward", backward)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(cf.Interrupted, match=said) as stopped:
        cf.attribute_streamed(
            model, TOKENIZER, QUESTIONS, checkpoint=tmp_path / "a", **{**OPTIONS, "stream_tokens": 25}
        )
    assert stopped.value.number == signal.SIGTERM
    assert (tmp_path / "a").exists() == bool(blocks_before)
    assert signal.getsignal(signal.SIGTERM) is before


class _StopError(Exception):
    pass


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt])
@pytest.mark.parametrize("stream_tokens", [50, 25])
def test_continued_bits_equal_undisturbed(
    stream_tokens: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the third block, whose half-added scores must not be kept; continued at another size."""
    model, path = tmp_path / "model", tmp_path / "run.partial"
    save(model, "llama")
    whole = cf.attribute_streamed(model, TOKENIZER, QUESTIONS, **OPTIONS)
    original, calls = StreamedAttributor._backward, [0]

    def backward(self: Any, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == 10:  # four a block
            raise error
        original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(StreamedAttributor, "_backward", backward)
        cf.attribute_streamed(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    assert path.exists()
    options = {**OPTIONS, "stream_tokens": stream_tokens}
    with monkeypatch.context() as patch:
        scored: list[int] = []
        run = StreamedAttributor.run_block
        patch.setattr(
            StreamedAttributor,
            "run_block",
            lambda self, batches, *args, **kwargs: (
                scored.extend(i for batch in batches for i in batch.index.tolist()),
                run(self, batches, *args, **kwargs),
            )[1],
        )
        continued = cf.attribute_streamed(model, TOKENIZER, QUESTIONS, checkpoint=path, **options)
    assert 0 < len(scored) < len(QUESTIONS) and len(set(scored)) == len(scored)
    assert np.array_equal(continued.totals, whole.totals)
    assert np.array_equal(continued.probability, whole.probability)
    assert path.exists()  # until the table is on disk
    continued.save(tmp_path / "table.safetensors")
    assert not path.exists()


def test_another_checkpoints_progress_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, path = tmp_path / "first", tmp_path / "second", tmp_path / "run.partial"
    model = save(first, "llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(second)
    run = StreamedAttributor.run_block
    calls = [0]

    def stopped(self: Any, *args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise _StopError
        run(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(_StopError):
        patch.setattr(StreamedAttributor, "run_block", stopped)
        cf.attribute_streamed(first, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    kept = path.read_bytes()
    with pytest.raises(cf.CulnigError, match="different: model"):
        cf.attribute_streamed(second, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == kept
    with pytest.raises(cf.CulnigError, match="stream_tokens"):
        cf.attribute_streamed(first, TOKENIZER, QUESTIONS, **{**OPTIONS, "stream_tokens": 0})
