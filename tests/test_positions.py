"""Reductions over positions and position masks: every path against plain float64 loops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import families
import numpy as np
import oracle
import pytest
import torch
from plain_rules import RULES, assert_close
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.batching import Batch
from culnig_fast.streaming.attributor import Objective, StreamedAttributor
from culnig_fast.streaming.model import open_streamed

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(11)
SITES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.act")
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 4, 6, 0, 0], [7, 7, 5, 8, 0]])
LENGTHS = torch.tensor([5, 3, 4])
MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()  # marks pads of sample 1 too
WEIGHT = torch.tensor([0.5, -2.0, 1.5])


def logit(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 8]


def plain(model: Any, reduction: str, mask: torch.Tensor | None = None) -> np.ndarray:
    """float64 [neurons] for the batch above: one sample at a time, unpadded, position by position."""
    double = copy.deepcopy(model).double().requires_grad_(True)
    total: Any = 0.0
    for sample, length in enumerate(LENGTHS.tolist()):
        kept, handles = oracle.activation_tensors(double)
        logit(double(input_ids=TOKENS[sample : sample + 1, :length]).logits[:, -1]).sum().backward()
        places = [i for i in range(length) if mask is None or mask[sample, i]]
        parts = []
        for layer in range(len(oracle.decoder_layers(double))):
            for name in SITES:
                act, grad = oracle.columns_of(double, name, layer, kept)
                parts.append(RULES[reduction]([act[i] * grad[i] for i in places]))
        total = total + WEIGHT[sample].item() * np.concatenate(parts)
        for handle in handles:
            handle.remove()
    return np.asarray(total)


def scored(
    model: Any, reduction: str, mask: torch.Tensor | None = None, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    with cf.Attributor(model, sites=SITES, reduction=reduction, **options) as attributor:
        logits = attributor.forward(TOKENS, LENGTHS, positions=mask)
        attributor.backward(logit(logits), weight=WEIGHT)
        return attributor.totals[0].numpy(), attributor.fusion.describe()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("path", ["auto", "taps"])
@pytest.mark.parametrize("reduction", RULES)
def test_every_reduction_on_every_path(reduction: str, path: str, recompute: bool) -> None:
    model = families.build("llama")
    got, fusion = scored(model, reduction, path=path, recompute=recompute)
    assert_close(got, plain(model, reduction))
    if path == "taps":
        assert fusion["taps"] == {"asked for": [0, 1]}
    elif reduction in ("max", "sum", "mean"):
        assert fusion == {"fused": [0, 1], "last_position": True, "taps": {}}
    else:
        assert fusion["taps"] == {f"reduction {reduction!r} is scored on taps": [0, 1]}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reduction", RULES)
def test_a_mask_chooses_positions(reduction: str, recompute: bool) -> None:
    model = families.build("phi3")
    got, fusion = scored(model, reduction, MASK, recompute=recompute)
    assert_close(got, plain(model, reduction, MASK))
    assert list(fusion["taps"].values()) == [[0, 1]]
    everything, _ = scored(model, reduction, torch.ones_like(MASK), path="taps")
    assert np.array_equal(everything, scored(model, reduction, path="taps")[0])


def test_fused_layers_leave_for_a_mask_and_nothing_stays() -> None:
    model = families.build("llama")
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    with cf.Attributor(model, sites=SITES) as attributor:
        attributor.backward(logit(attributor.forward(TOKENS, LENGTHS)), weight=WEIGHT)
        assert attributor.fusion.layers == (0, 1)
        attributor.backward(logit(attributor.forward(TOKENS, LENGTHS, positions=MASK)), weight=WEIGHT)
        assert attributor.fusion.describe()["taps"] == {"a position mask was given": [0, 1]}
        attributor.backward(logit(attributor.forward(TOKENS, LENGTHS)), weight=WEIGHT)
        totals = attributor.totals[0].numpy()
    assert_close(totals, 2 * plain(model, "max") + plain(model, "max", MASK))
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())
    with attributor:
        assert attributor.fusion.layers == (0, 1), "another block starts fused"


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("reduction", RULES)
def test_streamed_equals_resident(reduction: str, mask: torch.Tensor | None, tmp_path: Path) -> None:
    model = families.build("llama")
    model.save_pretrained(tmp_path)
    batch = Batch(TOKENS, LENGTHS, torch.arange(3))
    with StreamedAttributor(open_streamed(tmp_path), sites=SITES, reduction=reduction) as attributor:
        masks = None if mask is None else [mask, mask]
        attributor.run_block(
            [batch, batch], lambda number, logits: Objective(logit(logits), WEIGHT, None), positions=masks
        )
        got, fusion = attributor.totals[0].numpy(), attributor.fusion.describe()
    want, resident = scored(model, reduction, mask)
    assert_close(got, 2 * want)
    assert fusion == resident


def test_attribute_takes_every_reduction() -> None:
    model = families.build("qwen3")
    runs = {
        rule: cf.attribute(model, TOKENIZER, QUESTIONS, reduction=rule, batch_tokens=30, progress=False)
        for rule in RULES
    }
    assert [run.metadata["reduction"] for run in runs.values()] == list(RULES)
    for rule, run in runs.items():
        apart = cf.attribute(model, TOKENIZER, QUESTIONS, reduction=rule, batch_tokens=1, progress=False)
        assert_close(run.totals, apart.totals)
    assert (runs["absmax"].totals >= np.abs(runs["mean"].totals) - 1e-12).all()


def test_bad_masks_are_refused() -> None:
    model = families.build("llama")
    with cf.Attributor(model) as attributor:
        for mask, word in (
            (MASK.long(), "bool"),
            (MASK[:, :4], r"must be \[3, 5\]"),
            (torch.tensor([[True] * 5, [False] * 3 + [True] * 2, [True] * 5]), "no real token of sample 1"),
        ):
            with pytest.raises(cf.CulnigError, match=word):
                attributor.forward(TOKENS, LENGTHS, positions=mask)
    for options, word in (({"padding": "zero"}, "padding"), ({"path": "fused"}, "no position mask")):
        with (
            cf.Attributor(model, **options) as attributor,
            pytest.raises(cf.CulnigError, match=word),
        ):
            attributor.forward(TOKENS, LENGTHS, positions=MASK)
