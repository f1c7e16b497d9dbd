"""Scores and sets the published way, in plain loops on a float32 model (CULNIG, sections 2, 3, 5 and 6).

Batches of 16 in file order, padded on the left; P itself is differentiated; pads score 0 before the maximum; control
scores are clamped at 0; sums are Python numbers in dictionaries; N counts ids once; pools are cut by int().
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import oracle
import torch

SITES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
Name = tuple[str, int, int]
Scores = dict[Name, dict[str, float]]


class Sample(NamedTuple):
    """One prompt, its answer's token, its country and its item's id."""

    tokens: Sequence[int]
    answer: int
    country: str
    item: str


def scores(model: Any, samples: Sequence[Sample], control: bool) -> tuple[Scores, int]:
    """Every neuron's weighted sum per country, and N."""
    sums: Scores = defaultdict(lambda: defaultdict(float))
    for start in range(0, len(samples), 16):
        batch = samples[start : start + 16]
        longest = max(len(sample.tokens) for sample in batch)
        pads = [longest - len(sample.tokens) for sample in batch]
        ids = torch.tensor([[0] * pad + list(sample.tokens) for pad, sample in zip(pads, batch, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        kept, handles = oracle.activation_tensors(model)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        p = torch.softmax(logits, -1)[torch.arange(len(batch)), [sample.answer for sample in batch]]
        p.sum().backward()
        for handle in handles:
            handle.remove()
        for layer in range(len(oracle.decoder_layers(model))):
            for name in SITES:
                for row, sample in enumerate(batch):
                    one = {key: _row(value, row) for key, value in kept.items()}
                    act, grad = oracle.columns_of(model, name, layer, one)
                    product = torch.from_numpy(act * grad)
                    product[: pads[row]] = 0.0
                    best = p[row].detach() * product.max(0).values
                    for column, value in enumerate(best.tolist()):
                        sums[name, layer, column][sample.country] += max(0.0, value) if control else value
        model.zero_grad()
    return sums, len({sample.item for sample in samples})


class _Kept(NamedTuple):
    """One sample's activation and gradient, in the shape that the oracle cuts."""

    value: torch.Tensor
    grad: torch.Tensor

    def __getitem__(self, where: Any) -> torch.Tensor:  # type: ignore[override]
        return self.value[where]


def _row(whole: torch.Tensor, row: int) -> Any:
    assert whole.grad is not None
    return _Kept(whole.detach()[row : row + 1], whole.grad[row : row + 1])


def general(neur: Any, control: Any, crc: Any, mlp: float, attention: float, surface: float) -> set[Name]:
    """Section 5 in loops."""
    chosen: set[Name] = set()
    for pool, share in ((("mlp.gate_proj",), mlp), (SITES[:3], attention)):
        names = [name for name in neur[0] if name[0] in pool]
        value = {n: sum(neur[0][n].values()) / neur[1] - sum(control[0][n].values()) / control[1] for n in names}
        read = {n: sum(crc[0][n].values()) for n in names}
        best = sorted(names, key=value.__getitem__, reverse=True)[: int(len(names) * share)]
        superficial = sorted(names, key=read.__getitem__, reverse=True)[: int(len(names) * surface)]
        chosen |= set(best) - set(superficial)
    return chosen


def specific(neur: Any, control: Any, crc: Any, country: str, share: float, surface: float, z: float) -> set[Name]:
    """Section 6 in loops."""
    names = [name for name in neur[0] if name[0] != "mlp.up_proj"]
    value = {
        n: {c: neur[0][n][c] / neur[1] - control[0][n].get(c, 0.0) / control[1] for c in neur[0][n]} for n in names
    }
    best = sorted(names, key=lambda n: value[n][country], reverse=True)[: int(len(names) * share)]
    read = sorted(names, key=lambda n: crc[0][n][country], reverse=True)[: int(len(names) * surface)]
    chosen = set()
    for name in best:
        d = list(value[name].values())
        mean = sum(d) / len(d)
        deviation = (sum((x - mean) ** 2 for x in d) / len(d)) ** 0.5
        if name not in read and deviation and (value[name][country] - mean) / deviation >= z:
            chosen.add(name)
    return chosen
