"""Samples whose rows are cut into parts: the same maxima to the bit, sums as exact, each row visited once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import splitting
from culnig_kernels.actgrad import actgrad_reduce
from culnig_kernels.gated_act_backward import gated_act_backward
from culnig_kernels.qkv_backward import qkv_backward
from culnig_kernels.splitting import ENOUGH_PROGRAMS, LEAST_ROWS, Split, merged, split
from samples import draw, draw_slice, packed_bounds
from test_actgrad import plain
from test_gated import check_backward as check_gated
from test_gated import inputs as gated_inputs
from test_qkv import check as check_qkv
from test_qkv import inputs as qkv_inputs
from test_rotary import KINDS
from test_rotary import check as check_rotary

LENGTHS = [256, 1, 201]
PADDED, PACKED = (3, 256), (458,)
BF16 = torch.bfloat16
LAYOUTS = pytest.mark.parametrize("rows", [PADDED, PACKED], ids=["padded", "packed"])


@pytest.mark.parametrize("rows", [1, 127, 128, 255, 256, 300, 8192])
@pytest.mark.parametrize("programs", [1, 7, 263, 264, 527, 528, 10_000])
def test_parts_cover_the_rows_and_are_enough(programs: int, rows: int) -> None:
    parts, each = split(programs, rows)
    assert parts * each >= rows > (parts - 1) * each
    if programs >= ENOUGH_PROGRAMS or rows < 2 * LEAST_ROWS:
        assert parts == 1
    else:
        assert parts > 1 and each >= LEAST_ROWS
        assert programs * parts >= min(ENOUGH_PROGRAMS, programs * rows // LEAST_ROWS) / 2


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Into how many parts each launch cuts its samples."""
    seen: list[int] = []

    def note(programs: int, rows: int) -> Split:
        found = split(programs, rows)
        seen.append(found.parts)
        return found

    for module in ("actgrad", "gated_act_backward", "heads_backward"):
        monkeypatch.setattr(f"culnig_kernels.{module}.split", note)
    return seen


def cut_and_whole(run: Callable[[], Any], parts: list[int], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a launch returns with samples cut, and with samples whole."""
    cut = run()
    assert parts and all(n > 1 for n in parts)
    with monkeypatch.context() as patch:
        patch.setattr(splitting, "ENOUGH_PROGRAMS", 1)
        uncut = run()
    assert parts[-1] == 1
    return [cut, uncut]


def bounds_of(rows: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {"lengths": torch.tensor(LENGTHS)} if rows == PADDED else {"cu_seqlens": packed_bounds(LENGTHS)}


@LAYOUTS
def test_gated(rows: tuple[int, ...], device: torch.device, parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = gated_inputs((*rows, 70), BF16, device)
    run = lambda: gated_act_backward(*tensors, scores=("up", "gate"), **bounds_of(rows))  # noqa: E731
    for cut, uncut in zip(*cut_and_whole(run, parts, monkeypatch), strict=True):
        assert torch.equal(cut, uncut)
    check_gated(tensors, LENGTHS, rows == PACKED, reduction="sum")


@LAYOUTS
def test_heads(rows: tuple[int, ...], device: torch.device, parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    given = qkv_inputs(rows, KINDS[1], BF16, device)
    run = lambda: qkv_backward(**given, score=True, **bounds_of(rows))  # noqa: E731
    for cut, uncut in zip(*cut_and_whole(run, parts, monkeypatch), strict=True):
        assert torch.equal(cut, uncut)
    check_qkv(given, LENGTHS, "sum")


@LAYOUTS
def test_one_projection(rows: tuple[int, ...], device: torch.device, parts: list[int]) -> None:
    check_rotary(rows, LENGTHS, KINDS[0], dtype=BF16, device=device, reduction="sum")
    assert parts[0] > 1


@LAYOUTS
@pytest.mark.parametrize("reduction", ["max", "absmax", "sum", "mean"])
def test_act_times_grad(
    reduction: str, rows: tuple[int, ...], device: torch.device, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    act, grad = draw_slice((*rows, 70), BF16, device), draw_slice((*rows, 70), BF16, device, 1, before=8)
    run = lambda: actgrad_reduce(act, grad, reduction=reduction, **bounds_of(rows))  # noqa: E731
    if reduction == "mean":
        cut = run()
        assert not parts  # each part would have to say how many positions it counted
    else:
        cut, uncut = cut_and_whole(run, parts, monkeypatch)
        assert reduction == "sum" or torch.equal(cut, uncut)
    acts, grads = (list(t) if rows == PADDED else list(t.split(LENGTHS)) for t in (act, grad))
    exact = plain([a.double() for a in acts], [g.double() for g in grads], LENGTHS, reduction)
    assert_as_exact_as_torch(reduction, cut, exact, plain(acts, grads, LENGTHS, reduction))


def test_padding_masks_and_nan_in_parts(device: torch.device, parts: list[int]) -> None:
    act, grad, lengths = draw((3, 256, 70), BF16, device), draw((3, 256, 70), BF16, device, 1), torch.tensor(LENGTHS)
    keep = torch.zeros(3, 256, dtype=torch.bool, device=device)
    keep[0, 250], keep[1, 0], keep[2, 3] = True, True, True
    got = actgrad_reduce(act, grad, lengths, keep=keep)
    assert torch.equal(got, (act.float() * grad.float())[[0, 1, 2], [250, 0, 3]])
    zero = actgrad_reduce(act.abs(), -grad.abs(), lengths, padding="zero")
    assert (zero[0] < 0).any() and (zero[1:] == 0).all()
    act[2, 200, 7] = act[2, 201, 9] = torch.nan  # the second lies in the padding
    assert actgrad_reduce(act, grad, lengths).isnan().nonzero().tolist() == [[2, 7]]
    assert min(parts) > 1


def test_merging_keeps_nan_and_order() -> None:
    found = torch.tensor([[1.0, 5.0], [3.0, torch.nan], [2.0, 2.0], [-1.0, 7.0]])
    assert merged(found, 1, "max") is found
    largest = merged(found, 2, "max")
    assert largest[0, 0] == 3 and largest[0, 1].isnan() and largest[1].tolist() == [2, 7]
    assert merged(found, 2, "sum")[1].tolist() == [1, 9]
