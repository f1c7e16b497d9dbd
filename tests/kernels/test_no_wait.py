"""The scoring loop on a GPU: the host never waits for it."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.running import loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: only there can a host wait for one"),
]


@pytest.mark.parametrize("path", ["fused", "taps"])
def test_no_synchronisation_while_a_batch_is_scored(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises on every call that waits, from the batch's making to its last accumulation."""
    model, tokenizer, questions = families.build("llama").cuda(), make_tokenizer(), make_questions(12)
    cf.attribute(model, tokenizer, questions, path=path, batch_tokens=20, progress=False)  # compiles the kernels
    checked = 0

    def strictly(work: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal checked
            checked += 1
            torch.cuda.set_sync_debug_mode("error")
            try:
                return work(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    for name in ("make_batch", "_score_batch"):
        monkeypatch.setattr(loop, name, strictly(getattr(loop, name)))
    cf.attribute(model, tokenizer, questions, path=path, batch_tokens=20, progress=False)
    assert checked > 2
