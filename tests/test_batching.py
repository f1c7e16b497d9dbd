"""Batches: a partition, under the budget, padded on the right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from culnig_fast.batching import make_batch, padding_waste, plan_batches
from culnig_fast.errors import CulnigError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 200))
def test_batches_partition_the_samples_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    longest_of = [max(lengths[i] for i in batch) for batch in batches]
    assert longest_of == sorted(longest_of, reverse=True)


@given(LENGTHS, st.integers(1, 7))
def test_fixed_batches_keep_the_order(lengths: list[int], size: int) -> None:
    batches = plan_batches(lengths, 1, size)
    assert np.concatenate(batches).tolist() == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])


def test_a_batch_is_padded_on_the_right() -> None:
    batch = make_batch([[5, 6], [9], [7, 8, 4]], np.array([1, 2]), torch.device("cpu"))
    assert batch.input_ids.tolist() == [[9, 9, 9], [7, 8, 4]]
    assert batch.lengths.tolist() == [1, 3]
    assert batch.index.tolist() == [1, 2]


@pytest.mark.parametrize(("tokens", "size"), [(0, None), (5, 0)])
def test_no_room_is_refused(tokens: int, size: int | None) -> None:
    with pytest.raises(CulnigError):
        plan_batches([1], tokens, size)


def test_padding_waste_counts_positions() -> None:
    assert padding_waste([4, 2, 3], [np.array([0, 1]), np.array([2])]) == pytest.approx(1 - 9 / 11)
    assert padding_waste([], []) == 0


@pytest.mark.parametrize("budget", [2048, 16384])
def test_batches_of_a_benchmark_waste_little(budget: int) -> None:
    """Lengths spread as multiple-choice prompts are: most near the middle, a few twice as long."""
    generator = np.random.default_rng(0)
    lengths = (120 + 60 * generator.gamma(2.0, size=8000)).astype(int).tolist()
    waste = padding_waste(lengths, plan_batches(lengths, budget))
    assert waste <= 0.03
    unsorted = plan_batches(lengths, budget, batch_size=16)
    assert padding_waste(lengths, unsorted) > 0.2
