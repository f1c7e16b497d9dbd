"""transformers looks for several sequences in a row, but where it is told that there is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import families
import pytest
import torch
from transformers import masking_utils

from culnig_fast.last_position import LastPosition
from culnig_fast.one_sequence import one_sequence_a_row

PACKED = torch.tensor([[0, 1, 0, 1, 2]])


def found() -> bool:
    return masking_utils.find_packed_sequence_indices(PACKED) is not None


def test_inside_the_block_and_its_thread_alone() -> None:
    assert found()
    with one_sequence_a_row(), ThreadPoolExecutor(1) as other:
        assert not found()
        with one_sequence_a_row():
            assert not found()
        assert not found()
        assert other.submit(found).result()
    assert found()


def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), one_sequence_a_row():
        raise ZeroDivisionError
    assert found()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_a_model_answers_is_unchanged(family: str) -> None:
    model = families.build(family)
    ids = torch.randint(3, 60, (1, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=PACKED, use_cache=False).logits
        whole = model(input_ids=ids, use_cache=False).logits
        head = LastPosition(model, model.get_output_embeddings())
        logits = head.logits(ids, torch.tensor([5]))
        head.remove()
        again = model(input_ids=ids, position_ids=PACKED, use_cache=False).logits
    torch.testing.assert_close(logits, whole[:, -1])
    assert torch.equal(again, packed)
    assert not torch.allclose(packed, whole)
