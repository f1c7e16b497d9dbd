"""The scoring loop on a GPU: the host never waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import families
import pytest
import torch
from each_batch import around_each_batch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: only there can a host wait for one"),
]


@pytest.mark.parametrize("path", ["fused", "taps"])
def test_no_synchronisation_while_a_batch_is_scored(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises on every call that waits, from the batch's making to its last accumulation."""
    model, tokenizer, questions = families.build("llama").cuda(), make_tokenizer(), make_questions(12)
    cf.attribute(model, tokenizer, questions, path=path, batch_tokens=20, progress=False)  # compiles the kernels
    batches = 0

    @contextlib.contextmanager
    def strictly() -> Iterator[None]:
        nonlocal batches
        batches += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    around_each_batch(monkeypatch, strictly)
    cf.attribute(model, tokenizer, questions, path=path, batch_tokens=20, progress=False)
    assert batches > 2
