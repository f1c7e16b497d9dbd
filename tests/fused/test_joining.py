"""Projections that lie one behind the other in memory are joined where they are; others by a copy."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from torch import nn
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.fused.joining import joined, own_memory
from culnig_fast.fused.trace import NotFusable


def linears(places: list[tuple[int, int]], inputs: int = 4, bias: bool = False) -> tuple[list[nn.Linear], torch.Tensor]:
    """Projections whose weights are rows [start, stop) of one tensor."""
    memory = torch.randn(16, inputs)
    made = []
    for start, stop in places:
        linear = nn.Linear(inputs, stop - start, bias=bias)
        linear.weight = nn.Parameter(memory[start:stop], requires_grad=False)
        made.append(linear)
    return made, memory


def test_neighbours_are_joined_without_a_copy() -> None:
    projections, memory = linears([(2, 5), (5, 6), (6, 10)], bias=True)
    addresses = [projection.weight.data_ptr() for projection in projections]
    with joined(projections) as whole:
        assert whole.weight.data_ptr() == memory[2:].data_ptr()
        assert torch.equal(whole.weight, memory[2:10])
        assert whole.bias is not None
        assert torch.equal(whole.bias, torch.cat([projection.bias for projection in projections]))
    assert [projection.weight.data_ptr() for projection in projections] == addresses


def test_what_does_not_lie_in_order_is_copied() -> None:
    for places in ([(0, 3), (4, 6)], [(3, 6), (0, 3)], [(0, 3), (2, 5)]):
        projections, memory = linears(places)
        with own_memory(), joined(projections) as whole:
            assert torch.equal(whole.weight, torch.cat([memory[start:stop] for start, stop in places])), places
    separate = [nn.Linear(4, 3, bias=False), nn.Linear(4, 2, bias=False)]
    with joined(separate) as whole:
        assert torch.equal(whole.weight, torch.cat([projection.weight for projection in separate]))
    transposed = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    memory = torch.randn(8, 4)
    for projection, part in zip(transposed, memory.split(4), strict=True):
        projection.weight = nn.Parameter(part.t(), requires_grad=False)
    with own_memory(), joined(transposed) as whole:
        assert torch.equal(whole.weight, torch.cat([part.t() for part in memory.split(4)]))


@pytest.mark.parametrize("shared", ["between processes", "as views"])
def test_weights_that_others_may_see_stay_where_they_are(shared: str) -> None:
    model, whole = families.build("llama"), families.build("llama")
    moved = model.model.layers[1].self_attn.q_proj
    if shared == "between processes":
        for parameter in model.model.layers[1].parameters():
            parameter.share_memory_()
        view = moved.weight.data
    else:
        memory = torch.cat([moved.weight.detach(), torch.zeros_like(moved.weight)])
        moved.weight.data = memory[: moved.out_features]
        view = memory[: moved.out_features]
    table, expected = (cf.attribute(m, make_tokenizer(), make_questions(5), progress=False) for m in (model, whole))
    assert table.metadata["fusion"] != expected.metadata["fusion"]
    assert np.abs(table.totals - expected.totals).max() <= 1e-5 * np.abs(expected.totals).max()
    assert moved.weight.data_ptr() == view.data_ptr() and moved.weight.is_shared() == (shared == "between processes")
    with torch.no_grad():
        view[0, 0] = 7.0
    assert moved.weight[0, 0] == 7.0
    with (
        pytest.raises(NotFusable, match="memory that others may see"),
        joined([moved, whole.model.layers[1].mlp.up_proj]),
    ):
        pass


def test_neighbours_that_others_may_see_are_joined_where_they_are() -> None:
    projections, memory = linears([(2, 5), (5, 6)])
    memory.share_memory_()
    for projection, (start, stop) in zip(projections, [(2, 5), (5, 6)], strict=True):
        projection.weight.data = memory[start:stop]
    with joined(projections) as whole:
        assert whole.weight.data_ptr() == memory[2:].data_ptr()
    assert all(projection.weight.is_shared() for projection in projections)
