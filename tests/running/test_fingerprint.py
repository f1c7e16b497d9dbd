"""Every element of a model counts in its fingerprint, and so does its place; memory and threads do not."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch

from culnig_fast.running import fingerprint as prints
from culnig_fast.running.fingerprint import fingerprint, implementations


def number(weight: torch.Tensor) -> list[int]:
    return prints._number(weight, {})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces for small weights."""
    monkeypatch.setattr(prints, "_PIECE", 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5), (11,), ()])
@pytest.mark.usefixtures("small_pieces")
def test_every_element_and_its_place_count(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(shape) * 50).to(dtype)
    flat = weight.view(-1)
    plain, found = number(weight), {}
    for i in range(len(flat)):
        other = flat.clone()
        other[i] = ~other[i] if dtype == torch.bool else -other[i] - 1
        found[i] = number(other.view(shape))
        for j in range(i):
            exchanged = flat.clone()
            exchanged[[i, j]] = exchanged[[j, i]]
            if not torch.equal(exchanged, flat):
                assert number(exchanged.view(shape)) != plain
    assert all(value != plain for value in found.values())
    assert len({tuple(value) for value in found.values()}) == len(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_pieces")
def test_pairs_of_signs_count(dtype: torch.dtype) -> None:
    weight = torch.randn(64).to(dtype)
    flipped = []
    for i in range(1, 64):
        other = weight.clone()
        other[[0, i]] *= -1
        flipped.append(tuple(number(other)))
    assert len({*flipped, tuple(number(weight)), tuple(number(-weight))}) == 65


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 5, 64, 1001])
@pytest.mark.usefixtures("small_pieces")
def test_where_a_weight_lies_in_memory_does_not_count(elements: int, dtype: torch.dtype) -> None:
    memory = torch.randn(elements + 3).to(dtype)
    weight = memory[3:]
    assert number(weight) == number(weight.clone())
    strided = torch.stack([weight, weight], 1)
    assert number(strided[:, 0]) == number(weight)


def in_plain_python(words: list[int]) -> int:
    """The number of a weight of few words, from its definition alone."""
    total = 0
    for place, word in enumerate(words, start=1):
        x = place * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        product = word * ((x ^ (x >> 31)) | 1) % 2**64
        product -= 2**64 if product >= 2**63 else 0
        total += product ^ (product >> 32)
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


def test_numbers_are_those_of_plain_integers() -> None:
    """On every device and machine: a checkpoint may be continued elsewhere."""
    weight = torch.randn(5, 4)
    words = weight.view(torch.int64).flatten().tolist()
    assert number(weight) == [5, 4, in_plain_python([in_plain_python(words)])]
    assert number(torch.empty(2, 0)) == [2, 0]
    assert number(torch.empty(2, 3, device="meta")) == [2, 3]


def exchanged(model: Any, path: str, along: int) -> Any:
    with torch.no_grad():
        weight = model.get_parameter(path)
        index = torch.arange(weight.shape[along])
        index[:2] = torch.tensor([1, 0])
        weight.copy_(weight.index_select(along, index))
    return model


@pytest.mark.parametrize(
    ("family", "path", "dimensions"),
    [("llama", "model.layers.1.mlp.down_proj.weight", 2), ("qwen3_moe", "model.layers.1.mlp.experts.down_proj", 3)],
)
def test_exchanged_rows_columns_and_experts_are_another_model(family: str, path: str, dimensions: int) -> None:
    model = families.build(family)
    if dict(model.named_parameters()).get(path) is None:
        pytest.skip("this version of transformers holds the experts in a list")
    numbers = [fingerprint(model)["weights"][path]]
    for along in range(dimensions):
        numbers.append(fingerprint(exchanged(families.build(family), path, along))["weights"][path])
    assert len({tuple(value) for value in numbers}) == dimensions + 1


def test_implementations_count() -> None:
    model = families.build("llama")
    plain = fingerprint(model)
    assert plain["attention"] == "sdpa"
    model.set_attn_implementation("eager")
    changed = fingerprint(model)
    assert changed["attention"] == "eager" and {**changed, "attention": "sdpa"} == plain
    parts = families.build("gemma3_multimodal")
    parts.config.vision_config._attn_implementation = "eager"
    assert implementations(parts)["attention"] == "eager, sdpa"
