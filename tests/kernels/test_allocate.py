"""The pool that kernels' outputs come from on a CPU."""

from __future__ import annotations

import threading

import pytest
import torch
from culnig_kernels import allocate
from culnig_kernels.allocate import Pool

CPU = torch.device("cpu")
MEGABYTES = 2**18
"""Elements of float32 in one."""


@pytest.fixture(autouse=True)
def poisoned_outputs() -> None:
    """In place of the conftest's: here the function itself is looked at."""


def test_what_was_given_back_is_used_again() -> None:
    pool = Pool()
    first = pool.take((3, MEGABYTES), torch.float32)
    place = first.data_ptr()
    pool.give(first)
    assert pool.held == 3 * 2**20
    again = pool.take((2 * MEGABYTES, 2), torch.bfloat16)  # two megabytes do, in three
    assert again.data_ptr() == place and again.shape == (2 * MEGABYTES, 2) and again.is_contiguous()
    assert pool.held == 0
    assert pool.take((3, MEGABYTES), torch.float32).data_ptr() != place


def test_the_block_that_fits_best_is_taken_and_a_far_larger_one_never() -> None:
    pool = Pool()
    large, middle, small = (pool.take((n, MEGABYTES), torch.float32) for n in (9, 4, 3))
    places = [tensor.data_ptr() for tensor in (large, middle, small)]
    pool.give(large, middle, small)
    taken = [pool.take((3, MEGABYTES), torch.float32).data_ptr() for _ in range(2)]
    assert taken == [places[2], places[1]]
    pool.give(torch.empty(0))
    assert pool.held == 9 * 2**20


def test_new_memory_is_made_only_after_as_much_was_let_go() -> None:
    pool = Pool()
    pool.give(*[torch.empty(n, MEGABYTES) for n in (1, 2, 4)])
    pool.take((16, MEGABYTES), torch.float32)
    assert pool.held == 0
    pool.give(*[torch.empty(n, MEGABYTES) for n in (8, 2)])
    pool.take((3, MEGABYTES), torch.float32)
    assert pool.held == 2 * 2**20  # the eight are gone, the oldest first


def test_two_views_of_one_block_are_one_block() -> None:
    pool, whole = Pool(), torch.empty(4, MEGABYTES)
    left, right = whole.split(2)
    pool.give(left, right, None, whole)
    assert pool.held == 4 * 2**20
    one, other = (pool.take((4, MEGABYTES), torch.float32) for _ in range(2))
    assert one.data_ptr() != other.data_ptr()


def test_small_tensors_are_left_to_the_allocator() -> None:
    pool = Pool()
    pool.give(pool.take((10,), torch.float32))
    assert pool.held == 0


def test_a_pool_serves_its_own_block_and_thread_alone() -> None:
    pool, place = Pool(), torch.empty(MEGABYTES)
    pool.give(place)

    def elsewhere() -> None:
        found.append(allocate.empty((MEGABYTES,), torch.float32, CPU).data_ptr())

    found: list[int] = []
    with allocate.using(pool):
        with allocate.using(Pool()):
            elsewhere()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert place.data_ptr() not in found
        assert allocate.empty((MEGABYTES,), torch.float32, CPU).data_ptr() == place.data_ptr()
    pool.give(place)
    elsewhere()
    assert found[-1] != place.data_ptr()


def test_other_devices_never_touch_the_pool() -> None:
    pool = Pool()
    with allocate.using(pool):
        assert allocate.empty((MEGABYTES,), torch.float32, torch.device("meta")).is_meta
    pool.give(torch.empty(MEGABYTES, device="meta"))
    assert pool.held == 0
