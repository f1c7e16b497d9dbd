"""Scores of mixtures: the engine against loops in float64; absence; lists and kernels."""

from __future__ import annotations

import copy
from typing import Any

import families
import moe_oracle
import numpy as np
import pytest
import torch
from listed_mixture import as_list
from moe_checks import QUESTIONS, TOKENIZER, TOKENS, attributed, logits_of, samples_of, sites_of, some_neurons, worst
from simulated_gpu import GPU, SimulatedGpu

import culnig_fast as cf
from culnig_fast.mixtures.experts import one_launch


# These models' norms and routers round to float32 whatever they hold, so float64 is held to a few float32 roundings.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("family", families.MIXTURES)
def test_totals_equal_the_oracle(family: str, reduction: str, dtype: torch.dtype, tolerance: float) -> None:
    model = families.build(family, dtype)
    table = attributed(model, reduction=reduction)
    expected = moe_oracle.totals(model, samples_of(QUESTIONS), 2, sites_of(model), reduction)
    assert worst(table.totals, expected, table.layout) <= tolerance


@pytest.mark.parametrize("family", families.MIXTURES)
def test_the_oracle_computes_what_the_model_does(family: str) -> None:
    model = families.build(family, torch.float64)
    plain = logits_of(model)
    with moe_oracle.written_out(model), torch.enable_grad():
        written = model(input_ids=TOKENS).logits
    assert torch.allclose(written, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_token_that_was_not_routed_to_an_expert_is_absent_and_not_zero(family: str) -> None:
    model = families.build(family, torch.float64)
    tokens, answer = [9, 12, 30, 5], 6
    _, scores, reached = moe_oracle.sample_scores(
        copy.deepcopy(model).requires_grad_(True), tokens, answer, sites_of(model), "max"
    )
    with cf.Attributor(model, sites=sites_of(model)) as attributor:
        # Pads are routed too, here and there, and must not count as visits.
        logits = attributor.forward(torch.tensor([[*tokens, 0, 0, 33]]), torch.tensor([4]))
        probability = torch.softmax(logits, -1)[:, answer]
        attributor.backward(probability)
    got, layout = attributor.totals[0].numpy(), attributor.layout
    assert np.abs(got - scores).max() <= 1e-11 * np.abs(scores).max()
    experts, _ = layout.expert_of(np.arange(layout.size))
    _, layers, _ = layout.locate(np.arange(layout.size))
    absent = np.array([e >= 0 and (layer, e) not in reached for e, layer in zip(experts, layers, strict=True)])
    assert absent.any()
    assert not got[absent].any()
    # Some neuron of an expert that saw part of the tokens is below 0: with absence as 0 its maximum would be 0.
    assert (got[(experts >= 0) & ~absent] < 0).any()
    assert not np.isnan(got).any()


@pytest.mark.parametrize("family", families.MIXTURES)
def test_a_score_depends_on_its_sample_alone(family: str) -> None:
    model = families.build(family, torch.float64)
    together = attributed(model, batch_tokens=1000)
    alone = attributed(model, batch_size=1)
    assert worst(together.totals, alone.totals, together.layout) <= 1e-12
    repeated = attributed(model, recompute=True, batch_tokens=1000)
    assert np.array_equal(repeated.totals, together.totals)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_kernels_score_experts_as_plain_torch_does(reduction: str) -> None:
    model = families.build("qwen3_moe")
    few = QUESTIONS[:3]
    plain = attributed(model, few, backend="reference", reduction=reduction)
    for backend in ("triton", "auto"):
        table = attributed(model, few, backend=backend, reduction=reduction)
        assert worst(table.totals, plain.totals, plain.layout) <= 1e-6


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_models_own_way_to_run_experts_does_not_matter(implementation: str) -> None:
    model = families.build("gpt_oss")
    expected = attributed(model).totals
    model.set_experts_implementation(implementation)
    assert model.model.layers[0].mlp.experts.config._experts_implementation == implementation
    assert np.array_equal(attributed(model).totals, expected)


def test_experts_in_a_list_score_as_fused_ones() -> None:
    fused = families.build("mixtral", torch.float64)
    listed = as_list(fused)
    assert torch.allclose(logits_of(listed), logits_of(fused), rtol=1e-9, atol=1e-10)
    # The same question twice: equal rows in one batch must each find their own gradient.
    again = [cf.Question(f"again {q.id}", "other", q.prompt, "A") for q in QUESTIONS[:5]]
    for reduction, positions in (("max", "all"), ("sum", "all"), ("last", "all"), ("max", "last")):
        options = {"reduction": reduction, "positions": positions, "batch_tokens": 1000}
        want = attributed(fused, [*QUESTIONS, *again], **options)
        got = attributed(listed, [*QUESTIONS, *again], **options)
        assert got.layout == want.layout
        assert worst(got.totals, want.totals, want.layout) <= 1e-11
    neurons = some_neurons(listed)
    with cf.suppress(fused, neurons):
        suppressed = logits_of(fused)
    with cf.suppress(listed, neurons):
        assert torch.allclose(logits_of(listed), suppressed, rtol=1e-9, atol=1e-10)
        hooked = logits_of(listed)
        inside = attributed(listed)
    baked = cf.bake(listed, neurons)
    assert torch.equal(logits_of(baked), hooked)
    assert worst(inside.totals, attributed(baked).totals, inside.layout) <= 1e-11
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in listed.modules())


def test_one_question_at_a_time_is_watched_and_diagnosed() -> None:
    model = families.build("mixtral")
    experts = cf.discover(model).layout(["mlp.experts.gate_proj"])
    watch = cf.NeuronSet.from_flat(experts, [3, 60, 200])
    with cf.Attributor(model, watch=watch) as attributor:
        logits = attributor.forward(TOKENS, torch.tensor([5, 3]))
        attributor.backward(logits[:, 5])
        assert attributor.watched is not None
        assert torch.allclose(attributor.watched.sum(0).double(), attributor.totals[0, watch.flat(attributor.layout)])
    broken = TOKENIZER(QUESTIONS[1].prompt)["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[broken] = torch.nan
    with pytest.raises(cf.CulnigError, match=r"q1.*neuron \d+ of mlp\.experts\.up_proj in layer 0 is nan"):
        attributed(model, QUESTIONS[:2], sites=["mlp.experts.up_proj"])


def test_fused_layers_are_refused_with_the_reason() -> None:
    model = families.build("mixtral")
    with pytest.raises(cf.CulnigError, match="its MLP is a mixture of experts"), cf.Attributor(model, path="fused"):
        pass
    assert attributed(model).metadata["fusion"]["taps"] == {"its MLP is a mixture of experts": [0, 1]}


def test_dense_layers_of_a_mixture_run_fused_beside_experts() -> None:
    model = families.build("qwen3_moe_dense_first")
    options = {"sites": None, "batch_tokens": 20}
    fused, taps = (attributed(model, path=path, **options) for path in ("auto", "taps"))
    assert fused.metadata["fusion"]["fused"] == [0]
    assert fused.layout.module_names[-4:] == (
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.experts.gate_proj",
        "mlp.experts.up_proj",
    )
    assert worst(fused.totals, taps.totals, taps.layout) <= 1e-5
    general = cf.select_general(fused, None, None, mlp_share=0.2, attention_share=0.0)
    assert set(general.module_names) == {"mlp.gate_proj", "mlp.experts.gate_proj"}


@pytest.mark.parametrize("family", families.MIXTURES)
@pytest.mark.parametrize("rule", ["last token", "last position", "every second token"])
def test_tokens_that_do_not_count_are_absent_at_experts(family: str, rule: str) -> None:
    """The last token alone, as a reduction and as a position, and the maximum over some tokens."""
    model = families.build(family)
    last = rule.startswith("last")

    def counted(token: int, length: int) -> bool:
        return token == length - 1 if last else token % 2 == (length - 1) % 2

    options: dict[str, Any] = {"reduction": "last"}
    if rule != "last token":
        options = {"positions": lambda question, tokens: [counted(t, len(tokens.ids)) for t in range(len(tokens.ids))]}
    table = attributed(model, QUESTIONS[1:], **options)
    how = {"reduction": "sum" if last else "max", "counted": counted}
    expected = moe_oracle.totals(model, samples_of(QUESTIONS[1:]), 2, sites_of(model), **how)
    assert worst(table.totals, expected, table.layout) <= 1e-5


@pytest.mark.parametrize("reduction", ["mean", "absmax"])
def test_further_reductions_are_over_the_tokens_that_reached_an_expert(reduction: str) -> None:
    """One sample; every expert's rows by its own routing, from the totals of the sum and of the maximum of ±."""
    model = families.build("mixtral", torch.float64)
    tokens, lengths = torch.tensor([[3, 4, 5, 6, 7]]), torch.tensor([5])

    def totals(how: str, sign: float = 1.0) -> np.ndarray:
        with cf.Attributor(model, sites=("mlp.experts.gate_proj",), reduction=how) as attributor:
            logits = attributor.forward(tokens, lengths)
            attributor.backward(sign * logits[:, 5].double())
            return attributor.totals[0].numpy()

    found = totals(reduction)
    if reduction == "absmax":
        np.testing.assert_allclose(found, np.maximum(totals("max"), totals("max", -1.0)), rtol=1e-9, atol=1e-15)
        return
    summed, reached = totals("sum"), totals("absmax") > 0
    counts = np.round(summed[reached] / found[reached])
    assert ((counts >= 1) & (counts <= 5)).all() and len(set(counts.tolist())) > 1
    np.testing.assert_allclose(found[reached] * counts, summed[reached], rtol=1e-9)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="torch 2.10 brought grouped products")
@pytest.mark.parametrize("family", families.MIXTURES)
def test_all_experts_products_at_once_are_those_one_by_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is asked for all at once; the sums are of the same terms, in whatever order a product adds them."""
    model = families.build(family)
    expected = attributed(model)
    asked: list[bool] = []
    monkeypatch.setattr("culnig_fast.mixtures.experts.one_launch", lambda values, weight: asked.append(True) or True)
    assert worst(attributed(model).totals, expected.totals, expected.layout) <= 1e-5
    assert asked


def test_products_are_asked_for_at_once_on_a_gpu_alone() -> None:
    weight = torch.zeros(2, 16, 24, dtype=torch.bfloat16)
    assert not one_launch(torch.zeros(3, 16, dtype=torch.bfloat16), weight)
    with SimulatedGpu():
        values = torch.zeros(3, 16, dtype=torch.bfloat16, device=GPU)
        assert one_launch(values, weight) == hasattr(torch.nn.functional, "grouped_mm")
        assert not one_launch(values, weight[..., :20])
        assert not one_launch(values.float(), weight.float())
