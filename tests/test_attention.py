"""Attention on a GPU: deterministic where torch can be, never by cuDNN's plans, and torch's settings as they were."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from command_line import invoke
from simulated_gpu import SimulatedGpu, on_gpu
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.attention import DETERMINISTIC_WORKSPACES, WORKSPACE, SteadyAttention, deterministic, without_cudnn

TOKENIZER, QUESTIONS = make_tokenizer(), make_questions(4)
ATTENTION = F.scaled_dot_product_attention


def settings() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    before = settings()
    yield
    assert settings() == before


class Witness:
    """Stands in for torch's attention, and writes down the settings under which it and its backward ran."""

    def __init__(self, refusing: bool = False) -> None:
        self.forward: list[tuple[bool, ...]] = []
        self.backward: list[tuple[bool, ...]] = []
        self.refusing = refusing

    def __call__(self, query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        self.forward.append(settings())
        if self.refusing and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("Deterministic behavior was enabled, but this operation is not deterministic: CuBLAS")
        out = ATTENTION(query, *rest, **options)
        if out.requires_grad:
            out.register_hook(lambda grad: self.backward.append(settings()))
        return out


@pytest.mark.usefixtures("interpreter")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is no need to simulate one")
@pytest.mark.parametrize("refusing", [False, True])
def test_fused_layers_are_deterministic_where_torch_is(refusing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = Witness(refusing)
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    monkeypatch.setattr("culnig_fast.attention.F", SimpleNamespace(scaled_dot_product_attention=witness))
    with SimulatedGpu():
        model = on_gpu(families.build("llama"))
        cf.attribute(model, TOKENIZER, QUESTIONS, path="fused", batch_tokens=12, progress=False)
    assert witness.backward
    if refusing:
        # A layer tries once, in the run that proves it, and goes by other means from then on, not cuDNN's.
        assert sum(found[0] for found in witness.forward) == len(model.model.layers)
        assert not any(found[3] for found in witness.forward if not found[0])
        assert not any(found[0] for found in witness.backward)
    else:
        assert all(found[:3] == (True, False, False) for found in (*witness.forward, *witness.backward))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is no need to simulate one")
def test_nothing_is_made_deterministic_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's products would be refused meanwhile."""
    witness = Witness()
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr("culnig_fast.attention.F", SimpleNamespace(scaled_dot_product_attention=witness))
    with SimulatedGpu():
        cf.attribute(on_gpu(families.build("llama")), TOKENIZER, QUESTIONS, path="fused", progress=False)
    assert witness.backward
    assert not any(found[0] or found[3] for found in witness.forward)
    assert not any(found[0] for found in witness.backward)


def test_the_commands_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    assert invoke("tasks", "--json") == 0
    assert os.environ[WORKSPACE] in DETERMINISTIC_WORKSPACES
    monkeypatch.setenv(WORKSPACE, ":0:0")
    assert invoke("tasks", "--json") == 0
    assert os.environ[WORKSPACE] == ":0:0", "what the user has set stands"


def test_on_a_cpu_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    attention, x = SteadyAttention(), torch.randn(1, 1, 3, 4, requires_grad=True)
    seen = []
    out = attention(x, x, x)
    out.register_hook(lambda grad: seen.append(settings()))
    attention.gradients(out, [x], torch.ones_like(out))
    assert not seen[0][0]


def test_the_model_s_own_attention_leaves_cudnn_out(monkeypatch: pytest.MonkeyPatch) -> None:
    witness, model = Witness(), families.build("llama")
    with cf.Attributor(model, path="taps") as attributor:
        monkeypatch.setattr(F, "scaled_dot_product_attention", witness)
        attributor.forward(torch.arange(3, 15).view(2, 6), torch.tensor([6, 4]))
    cf.evaluate(model, TOKENIZER, QUESTIONS, progress=False)
    assert len(witness.forward) >= 4
    assert not any(found[3] for found in witness.forward)


@pytest.mark.parametrize("block", [deterministic, without_cudnn])
def test_settings_come_back_after_an_error(block: Any) -> None:
    *_, enabled = settings()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = settings()
        with pytest.raises(ValueError, match="on purpose"), block():
            assert settings() != before
            raise ValueError("on purpose")
        assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_cudnn_sdp(enabled)


@pytest.mark.parametrize("block", [deterministic, without_cudnn])
def test_threads_do_not_restore_each_other_s(block: Any) -> None:
    """One enters while another is inside, and leaves after it: what it found was not the caller's."""
    before = settings()
    first, second = block(), block()
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with second:
            inside.set()
            leave.wait(10)
            seen.append(settings())

    with first:
        within = settings()
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    assert settings() == within  # the other is still inside
    leave.set()
    thread.join()
    assert seen == [within]
    assert settings() == before
