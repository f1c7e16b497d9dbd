"""The engine against the oracle, on every family, and its independence of batching."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import oracle
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.scores import ScoreTable

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(11)
SITES = oracle.ORDER
TOLERANCE = 1e-5
"""Of the site's largest score; float32 rounding of these models stays below a tenth of it."""


def samples_of(questions: list[Any]) -> list[tuple[list[int], int, int]]:
    groups = list(dict.fromkeys(q.group for q in questions))
    return [
        (TOKENIZER(q.prompt)["input_ids"], TOKENIZER.convert_tokens_to_ids(q.answer), groups.index(q.group))
        for q in questions
    ]


def assert_sites_close(table: ScoreTable, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert table.totals.shape == expected.shape
    for site in table.layout.sites:
        where = table.layout.slice(site.module_name, site.layer_idx)
        got, want = table.totals[:, where], expected[:, where]
        scale = np.abs(want).max()
        assert scale > 0, f"the oracle scores nothing at {site}"
        error = np.abs(got - want)
        worst = np.unravel_index(error.argmax(), error.shape)
        assert error.max() <= tolerance * scale, f"{site}: {error.max() / scale:.2e} of the largest, first at {worst}"


def site_error(table: ScoreTable, exact: ScoreTable) -> float:
    """The largest error of any site, as a share of the site's largest score."""
    errors = []
    for site in table.layout.sites:
        where = table.layout.slice(site.module_name, site.layer_idx)
        errors.append(np.abs(table.totals - exact.totals)[:, where].max() / np.abs(exact.totals[:, where]).max())
    return float(max(errors))


@pytest.mark.parametrize("path", ["fused", "taps"])
@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("family", families.LISTED)
def test_totals_equal_the_oracle(family: str, reduction: str, path: str) -> None:
    model = families.placed(family)
    table = cf.attribute(
        model, TOKENIZER, QUESTIONS, sites=SITES, reduction=reduction, batch_tokens=30, path=path, progress=False
    )
    expected = oracle.totals(model, samples_of(QUESTIONS), 3, SITES, reduction=reduction)
    assert_sites_close(table, expected)
    assert table.counts.tolist() == [4, 4, 3]


@pytest.mark.parametrize("family", families.LISTED)
def test_control_clamps_each_weighted_score(family: str) -> None:
    model = families.placed(family)
    plain = cf.attribute(model, TOKENIZER, QUESTIONS, sites=SITES, control=True, clamp_control=False, progress=False)
    clamped = cf.attribute(model, TOKENIZER, QUESTIONS, sites=SITES, control=True, progress=False)
    assert_sites_close(plain, oracle.totals(model, samples_of(QUESTIONS), 3, SITES))
    assert_sites_close(clamped, oracle.totals(model, samples_of(QUESTIONS), 3, SITES, clamp=True))
    assert np.abs(plain.totals - clamped.totals).max() > 0


@pytest.mark.parametrize("path", ["fused", "taps"])
@pytest.mark.parametrize("family", families.LISTED)
def test_zero_padding_equals_the_published_variant(family: str, path: str) -> None:
    model = families.placed(family)
    table = cf.attribute(
        model, TOKENIZER, QUESTIONS, sites=SITES, padding="zero", batch_size=4, path=path, progress=False
    )
    assert_sites_close(table, oracle.totals(model, samples_of(QUESTIONS), 3, SITES, batch_size=4))
    excluded = cf.attribute(model, TOKENIZER, QUESTIONS, sites=SITES, batch_size=4, progress=False)
    assert np.abs(table.totals - excluded.totals).max() > 0


@pytest.mark.parametrize("family", families.LISTED)
def test_scores_do_not_depend_on_the_batch(family: str) -> None:
    model = families.placed(family)
    together = cf.attribute(model, TOKENIZER, QUESTIONS, sites=SITES, batch_tokens=1000, progress=False)
    for options in ({"batch_tokens": 1}, {"batch_tokens": 20}, {"batch_size": 3}):
        apart = cf.attribute(model, TOKENIZER, QUESTIONS, sites=SITES, progress=False, **options)
        assert_sites_close(apart, together.totals)
        np.testing.assert_allclose(apart.probability, together.probability, rtol=1e-5)
    one = QUESTIONS[5]
    alone = cf.attribute(model, TOKENIZER, [one], sites=SITES, progress=False)
    expected = oracle.totals(model, [(*samples_of([one])[0][:2], 0)], 1, SITES)
    assert_sites_close(alone, expected)


@pytest.mark.parametrize("family", families.UNLISTED)
def test_families_nobody_listed_agree_with_one_at_a_time(family: str) -> None:
    model = families.placed(family)
    together = cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    plain = cf.attribute(model, TOKENIZER, QUESTIONS, batch_tokens=1, path="taps", backend="reference", progress=False)
    double = cf.attribute(model.double(), TOKENIZER, QUESTIONS, batch_tokens=1, path="taps", progress=False)
    # Granite multiplies its attention scores by 1: under so sharp a softmax float32 itself is 1e-5 off.
    assert_sites_close(together, double.totals, max(TOLERANCE, 2 * site_error(plain, double)))


def test_the_same_command_gives_the_same_bits() -> None:
    model = families.placed("llama")
    runs = [cf.attribute(model, TOKENIZER, QUESTIONS, batch_tokens=30, progress=False) for _ in range(2)]
    assert np.array_equal(runs[0].totals, runs[1].totals)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    """A bound from rounding alone: some hundred roundings of relative size eps along the deepest path."""
    single = cf.attribute(families.placed("llama"), TOKENIZER, QUESTIONS, progress=False)
    half = cf.attribute(families.placed("llama", dtype), TOKENIZER, QUESTIONS, progress=False)
    error = np.sqrt(((half.totals - single.totals) ** 2).mean() / (single.totals**2).mean())
    assert error <= 30 * torch.finfo(dtype).eps
    assert error > 0


def test_a_confident_answer_keeps_its_score_in_bfloat16() -> None:
    """At P ≥ 0.999 a bf16 softmax has no gradient at all; ours is float32."""
    model = families.placed("llama", torch.bfloat16)
    question = QUESTIONS[4]
    gold = TOKENIZER.convert_tokens_to_ids(question.answer)
    hidden: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    model(input_ids=torch.tensor([TOKENIZER(question.prompt)["input_ids"]], device=model.device))
    handle.remove()
    with torch.no_grad():
        last = hidden[0][0, -1].float()
        model.lm_head.weight[gold] += (16 * last / last.norm() ** 2).to(torch.bfloat16)
    table = cf.attribute(model, TOKENIZER, [question], progress=False)
    assert 0.999 < table.probability[0] < 1
    expected = cf.attribute(model.float(), TOKENIZER, [question], progress=False)
    error = np.abs(table.totals - expected.totals).max()
    assert error <= 0.25 * np.abs(expected.totals).max()
    assert np.abs(table.totals).max() > 0
