"""Memory that runs out, numbers that are not finite, probabilities that vanish: counted once, named, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from culnig_kernels import native
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.running import loop
from culnig_fast.running.budget import MOST_TOKENS, Budget, is_out_of_memory, measured_tokens, round_budget
from culnig_fast.running.samples import Samples

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(23)
OPTIONS: dict[str, Any] = {"batch_tokens": 60, "progress": False}


def fails_above(tokens: int) -> Any:
    """An operation that allocates for its tokens, and fails above so many."""

    def check(rows: torch.Tensor) -> None:
        count = rows.shape[0] * rows.shape[1]
        if count > tokens:
            raise RuntimeError(f"[enforce fail at alloc_cpu.cpp] not enough memory: you tried to allocate {count}")

    return check


@contextmanager
def limited(model: Any, where: str, tokens: int) -> Iterator[None]:
    """Memory for so many padded tokens in one layer's forward, or in its backward after later layers were scored."""
    check = fails_above(tokens)
    if where == "within a fused layer":  # its projections are scored last
        original = native.qkv_backward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                native, "qkv_backward", lambda qkv, *args, **options: (check(qkv), original(qkv, *args, **options))[1]
            )
            yield
        return
    layer = model.model.layers[0] if where != "forward" else model.model.layers[1]
    if where == "forward":
        handle = layer.register_forward_pre_hook(lambda module, args: check(args[0]))
    else:

        def hook(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if first.requires_grad:
                first.register_hook(check)

        target = layer if where == "backward" else layer.mlp.gate_proj
        handle = target.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("options", [{}, {"batch_size": 7, "padding": "zero"}, {"control": True, "reduction": "sum"}])
@pytest.mark.parametrize("where", ["forward", "backward", "within a layer", "within a fused layer"])
def test_out_of_memory_counts_every_sample_once(where: str, options: dict[str, Any]) -> None:
    """The undisturbed totals, whether memory ran out before scores were added, after those of a layer or in between."""
    model = families.build("llama")
    given = {**OPTIONS, **options}
    if "batch_size" in options:
        del given["batch_tokens"]
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, **given)
    assert whole.metadata["halvings"] == 0
    with limited(model, where, 20):
        table = cf.attribute(model, TOKENIZER, QUESTIONS, **given)
    assert table.metadata["halvings"] >= 2
    scale = np.abs(whole.totals).max()
    assert np.abs(table.totals - whole.totals).max() <= 1e-5 * scale
    np.testing.assert_allclose(table.probability, whole.probability, rtol=1e-5)
    assert table.ids == whole.ids


def test_a_site_added_before_memory_ran_out_is_not_added_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it forgotten what a broken backward has added, that layer's totals would double: seen to fail so."""
    model = families.build("llama")
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    original = loop._score_batch
    monkeypatch.setattr(loop, "_score_batch", lambda *args: original(*args[:-1], set()))
    with limited(model, "backward", 20):
        table = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    later = whole.layout.slice("mlp.gate_proj", 1)
    assert np.abs(table.totals - whole.totals)[:, later].max() > 1e-3 * np.abs(whole.totals[:, later]).max()


def interrupted(patch: pytest.MonkeyPatch, after: int) -> None:
    """Stop the loop before it runs another batch."""
    original, calls = loop._score_batch, [0]

    def score(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise KeyboardInterrupt
        return original(*args)

    patch.setattr(loop, "_score_batch", score)


def test_a_halved_budget_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = families.build("llama"), tmp_path / "run.partial"
    with limited(model, "backward", 20):
        whole = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupted(patch, 9)
            cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, checkpoint_seconds=0.0, **OPTIONS)
        table = cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, **OPTIONS)
    assert np.array_equal(table.totals, whole.totals)
    assert table.metadata == whole.metadata


def test_another_budget_continues_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = families.build("llama"), tmp_path / "run.partial"
    whole = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, 1)
        cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, checkpoint_seconds=0.0, **OPTIONS)
    assert path.exists()
    table = cf.attribute(model, TOKENIZER, QUESTIONS, checkpoint=path, batch_tokens=11, progress=False)
    assert np.abs(table.totals - whole.totals).max() <= 1e-5 * np.abs(whole.totals).max()
    assert table.metadata["batch_tokens"] == 11


def test_a_sample_that_does_not_fit_by_itself_is_named() -> None:
    model = families.build("llama")
    long = make_questions(23, longest=30)
    expected = r"'q\d+' of (2[1-9]|3\d) tokens does not fit.*bfloat16"
    with limited(model, "forward", 20), pytest.raises(cf.CulnigError, match=expected):
        cf.attribute(model, TOKENIZER, long, **OPTIONS)


def test_other_errors_are_not_taken_for_memory() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape '[2]' is invalid"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_budget_is_halved_and_divides_a_batch() -> None:
    budget = Budget(64)
    assert budget.rows(9, 7) == 9
    budget.halve(63)
    assert (budget.limit, budget.halvings) == (31, 1)
    assert budget.rows(9, 7) == 4
    budget.halve(28)
    assert (budget.limit, budget.rows(9, 20)) == (14, 1)
    assert [round_budget(n) for n in (0, 1, 2, 3, 5, 6, 100, 16384, 20000, 25000)] == [
        *(1, 1, 2, 3, 4, 6, 96, 16384, 16384, 24576),
    ]


class FakeMeter:
    """A card of so many bytes on which a token takes `per_token` and everything else `fixed`."""

    def __init__(self, free: int, per_token: int, fixed: int = 0) -> None:
        self.free, self.per_token, self.fixed, self.tokens = free, per_token, fixed, 0

    def start(self) -> None:
        self.tokens = 0

    def run(self, tokens: int) -> int:
        if self.fixed + self.per_token * tokens > self.free:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.tokens = max(self.tokens, tokens)
        return tokens

    def needed(self) -> int:
        return self.fixed + self.per_token * self.tokens

    def available(self) -> int:
        return self.free


def test_the_measured_budget_keeps_to_its_share() -> None:
    meter = FakeMeter(free=10_000_000, per_token=1000)
    assert measured_tokens(meter.run, [meter], 0.8) == 6144
    assert measured_tokens(FakeMeter(10**12, 1000).run, [FakeMeter(10**12, 1000)], 0.8) == MOST_TOKENS
    small = FakeMeter(free=1_000_000, per_token=1000, fixed=100_000)
    budget = measured_tokens(small.run, [small], 0.8)
    assert budget >= 256
    assert small.fixed + budget * small.per_token <= 0.8 * small.free
    other = FakeMeter(free=10_000_000, per_token=4000)

    def both(tokens: int) -> int:
        other.run(tokens)
        return meter.run(tokens)

    assert measured_tokens(both, [meter, other], 0.8) == 1536
    with pytest.raises(torch.cuda.OutOfMemoryError):
        measured_tokens(FakeMeter(10, 1000).run, [FakeMeter(10, 1000)], 0.8)


def test_measuring_adds_nothing() -> None:
    from culnig_fast.attribution import measure

    model = families.build("llama")
    samples = Samples(
        tuple(q.id for q in QUESTIONS),
        [TOKENIZER(q.prompt)["input_ids"] for q in QUESTIONS],
        torch.tensor([4] * len(QUESTIONS)),
        torch.zeros(len(QUESTIONS), dtype=torch.int64),
        False,
        None,
    )
    meter = FakeMeter(free=10_000_000, per_token=1000)
    meter.tokens = 10
    meter.start = lambda: None  # type: ignore[method-assign]
    with cf.Attributor(model) as attributor:
        assert measure(attributor, samples, [meter], 0.8) >= 1
        assert not attributor.totals.any()


def poison(model: Any, where: str) -> list[Any]:
    """Spoil the pass of every question whose prompt holds w63: hooks to take away afterwards."""

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        model.seen = kwargs["input_ids"]

    def spoil(output: torch.Tensor, value: float) -> torch.Tensor:
        return torch.where((model.seen == 63).any(1)[:, None, None], torch.full_like(output, value), output)

    def spoil_gradient(module: Any, args: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: spoil(grad, torch.nan))

    mlp = model.model.layers[1].mlp
    hooks: dict[str, tuple[Any, Any]] = {
        "activation": (mlp.gate_proj, lambda module, args, output: spoil(output, torch.inf)),
        "gradient": (mlp.down_proj, spoil_gradient),
        "logits": (model.lm_head, lambda module, args, output: spoil(output, torch.nan)),
    }
    module, hook = hooks[where]
    return [model.register_forward_pre_hook(remember, with_kwargs=True), module.register_forward_hook(hook)]


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("activation", "'bad'.*the activation of neuron 0 of mlp.gate_proj in layer 1 is inf"),
        ("gradient", "'bad'.*the gradient of neuron 0 of mlp.up_proj in layer 1 is nan"),
        ("logits", "'bad'.*its logits give log P = nan"),
    ],
)
def test_what_is_not_finite_is_named_soon(
    where: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample that did it, among others of its batch, and before the batches that follow; nothing of it is kept."""
    model, path = families.build("llama"), tmp_path / "run.partial"
    questions = [q for q in QUESTIONS if "w63" not in q.prompt]
    questions.insert(3, cf.Question("bad", "x", "w9 w63 w12 w30", "A"))
    monkeypatch.setattr(loop, "FINITE_SECONDS", 0.0)
    handles = poison(model, where)
    with pytest.raises(cf.CulnigError, match=sentence):
        cf.attribute(model, TOKENIZER, questions, path="taps", checkpoint=path, checkpoint_seconds=0.0, **OPTIONS)
    for handle in handles:
        handle.remove()
    assert path.exists()
    # What was kept before is finite, and continues without the fault.
    whole = cf.attribute(model, TOKENIZER, questions, path="taps", **OPTIONS)
    table = cf.attribute(model, TOKENIZER, questions, path="taps", checkpoint=path, **OPTIONS)
    assert np.array_equal(table.totals, whole.totals)


def test_a_probability_that_vanishes_is_counted() -> None:
    """A gold logit 2,000 below the best: P is 0 in float64, and the table says whose."""
    model = families.build("llama")
    lost = [q for q in QUESTIONS if q.answer == "B"]
    column = TOKENIZER.convert_tokens_to_ids("B")
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: output - 2000 * (torch.arange(output.shape[-1]) == column)
    )
    table = cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS)
    handle.remove()
    assert lost
    assert table.metadata["underflow"] == [q.id for q in lost]
    assert np.isfinite(table.totals).all()
    assert cf.attribute(model, TOKENIZER, QUESTIONS, **OPTIONS).metadata["underflow"] == []
