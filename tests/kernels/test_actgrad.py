"""Activation × gradient per sample: every layout, dtype pair and option against float64."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import actgrad, reference
from culnig_kernels.actgrad import actgrad_reduce
from samples import DTYPES, draw, draw_slice, packed_bounds

LENGTHS = [1, 63, 20]
RULES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": lambda rows: rows.amax(0),
    "sum": lambda rows: rows.sum(0),
    "mean": lambda rows: rows.mean(0),
    "absmax": lambda rows: rows.abs().amax(0),
    "last": lambda rows: rows[-1],
}


def plain(act: torch.Tensor, grad: torch.Tensor, lengths: list[int], reduction: str) -> torch.Tensor:
    """The formula at the inputs' own dtype, sample by sample; [S, T, K] or a list of [T, K]."""
    return torch.stack([RULES[reduction]((a * g)[:n]) for a, g, n in zip(act, grad, lengths, strict=True)])


@pytest.mark.parametrize("reduction", RULES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("act_dtype", DTYPES)
def test_every_dtype_pair_on_slices(
    act_dtype: torch.dtype, grad_dtype: torch.dtype, reduction: str, device: torch.device
) -> None:
    act, grad = (
        draw_slice((3, 63, 70), act_dtype, device),
        draw_slice((3, 63, 70), grad_dtype, device, 1, before=8),
    )
    got = actgrad_reduce(act, grad, torch.tensor(LENGTHS), reduction)
    assert got.dtype == torch.float32
    exact = plain(act.double(), grad.double(), LENGTHS, reduction)
    assert_as_exact_as_torch("padded", got, exact, plain(act, grad, LENGTHS, reduction))


@pytest.mark.parametrize("reduction", RULES)
@pytest.mark.parametrize("bounds_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [[1], [127], [1, 1, 63, 2], [16, 17, 64, 65]])
def test_packed(lengths: list[int], bounds_dtype: torch.dtype, reduction: str, device: torch.device) -> None:
    act, grad = (draw_slice((sum(lengths), 257), torch.bfloat16, device, seed) for seed in (0, 1))
    got = actgrad_reduce(act, grad, None, reduction, cu_seqlens=packed_bounds(lengths, bounds_dtype))
    acts, grads = act.split(lengths), grad.split(lengths)
    exact = plain([a.double() for a in acts], [g.double() for g in grads], lengths, reduction)
    assert_as_exact_as_torch("packed", got, exact, plain(acts, grads, lengths, reduction))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 127, 257), (2, 64, 256), (5, 3, 33)])
@pytest.mark.parametrize("tile", actgrad.TILES)
def test_odd_shapes_in_every_tile(
    shape: tuple[int, int, int], tile: actgrad.Tile, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actgrad, "tile_for", lambda *args: tile)
    act, grad = draw(shape, torch.float32, device), draw(shape, torch.float32, device, 1)
    lengths = [max(1, shape[1] - 2 * s) for s in range(shape[0])]
    got = actgrad_reduce(act, grad, torch.tensor(lengths))
    exact = plain(act.double(), grad.double(), lengths, "max")
    assert_as_exact_as_torch("padded", got, exact, plain(act, grad, lengths, "max"))


def test_the_wide_tile_is_for_much_work() -> None:
    assert actgrad.tile_for(1, 1024) == actgrad.NARROW
    assert actgrad.tile_for(64, 14336) == actgrad.WIDE


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_zero_padding_counts_pads(reduction: str, device: torch.device) -> None:
    act = draw((3, 63, 40), torch.float32, device).abs()
    grad = -act
    lengths = torch.tensor(LENGTHS)
    got = actgrad_reduce(act, grad, lengths, reduction, "zero").cpu()
    want = reference.actgrad_reduce(act.cpu(), grad.cpu(), lengths, reduction, "zero")
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    if reduction == "max":
        assert (got[[0, 2]] == 0).all()
        assert (got[1] < 0).all(), "a sample without padding has none to count"
    packed = [torch.cat([x[s, :length] for s, length in enumerate(LENGTHS)]) for x in (act, grad)]
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    got = actgrad_reduce(*packed, reduction=reduction, padding="zero", cu_seqlens=ends).cpu()
    want = actgrad_reduce(act, grad, lengths, reduction).cpu()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0, msg="packed samples have no pads")


@pytest.mark.parametrize("reduction", RULES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("run", [actgrad_reduce, reference.actgrad_reduce], ids=["kernel", "reference"])
def test_only_kept_positions_count(
    run: Callable[..., torch.Tensor], packed: bool, reduction: str, device: torch.device
) -> None:
    act, grad = draw((3, 63, 40), torch.bfloat16, device), draw((3, 63, 40), torch.bfloat16, device, 1)
    keep = torch.rand(3, 63, generator=torch.Generator().manual_seed(2)) < 0.4
    keep[0] = False
    keep[0, 0] = True
    act[~keep.to(device)] = float("nan")  # never read into a score
    keep[:, 60] = True  # padding to samples 0 and 2
    act[1, 60], act[[0, 2], 60] = 1.0, float("nan")
    if packed:
        flat = [torch.cat([x[s, :n] for s, n in enumerate(LENGTHS)]) for x in (act, grad, keep)]
        got = run(*flat[:2], None, reduction, cu_seqlens=packed_bounds(LENGTHS), keep=flat[2])
    else:
        got = run(act, grad, torch.tensor(LENGTHS), reduction, keep=keep)
    on = keep.to(device)
    rows = [[x[s, :n][on[s, :n]] for s, n in enumerate(LENGTHS)] for x in (act, grad)]
    sizes = [len(r) for r in rows[0]]
    assert sizes[0] == 1 < min(sizes[1:])
    exact = plain([r.double() for r in rows[0]], [r.double() for r in rows[1]], sizes, reduction)
    assert_as_exact_as_torch("kept", got, exact, plain(*rows, sizes, reduction))


@pytest.mark.parametrize(
    ("reduction", "padding"), [*((rule, "exclude") for rule in RULES), ("max", "zero"), ("sum", "zero")]
)
def test_nan_comes_out_where_it_went_in(reduction: str, padding: str, device: torch.device) -> None:
    act, grad = draw((3, 63, 40), torch.bfloat16, device), draw((3, 63, 40), torch.bfloat16, device, 1)
    act[1, 62, 7] = grad[2, 19, 9] = float("nan")  # the last real position, which every reduction reads
    act[0, 1:, 3] = float("nan")  # padding
    got = actgrad_reduce(act, grad, torch.tensor(LENGTHS), reduction, padding)
    assert got.isnan().nonzero().tolist() == [[1, 7], [2, 9]]


def test_a_sample_does_not_depend_on_its_batch(device: torch.device) -> None:
    act, grad = draw((3, 63, 40), torch.bfloat16, device), draw((3, 63, 40), torch.bfloat16, device, 1)
    together = actgrad_reduce(act, grad, torch.tensor(LENGTHS))
    alone = actgrad_reduce(act[2:, :20], grad[2:, :20], torch.tensor([20]))
    assert torch.equal(together[2:], alone)


def test_float64_goes_to_the_reference(device: torch.device) -> None:
    act, grad = draw((2, 5, 4), torch.float64, device), draw((2, 5, 4), torch.float64, device, 1)
    got = actgrad_reduce(act, grad, torch.tensor([5, 2], device=device))
    assert got.dtype == torch.float64
    assert torch.equal(got, plain(act, grad, [5, 2], "max"))


def test_bad_arguments_are_named(device: torch.device) -> None:
    act = draw((2, 5, 4), torch.float32, device)
    lengths = torch.tensor([5, 2])
    for message, arguments in {
        "grad must be": (act, act[:, :4], lengths),
        "act must be": (act[0], act[0], lengths),
        "last dimension of act": (act.mT.contiguous().mT, act, lengths),
        "last dimension of grad": (act, act.mT.contiguous().mT, lengths),
        "act must be bfloat16": (act.int(), act, lengths),
        "lengths must be": (act, act, torch.tensor([5])),
        "lengths must lie": (act, act, torch.tensor([5, 0])),
        "exactly one": (act, act),
        "reduction": (act, act, lengths, "median"),
        "padding must": (act, act, lengths, "max", "left"),
        "padding 'zero' goes with": (act, act, lengths, "mean", "zero"),
    }.items():
        with pytest.raises(ValueError, match=message):
            actgrad_reduce(*arguments)
    for message, keep in {
        "keep must be [2, 5]": torch.ones(2, 4, dtype=torch.bool),
        "keep must be bool": torch.ones(2, 5),
        "no position of sample 1": torch.tensor([[True] * 5, [False, False, True, True, True]]),
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            actgrad_reduce(act, act, lengths, keep=keep)
    with pytest.raises(ValueError, match="and keep"):
        actgrad_reduce(act, act, lengths, "max", "zero", keep=torch.ones(2, 5, dtype=torch.bool))
    flat = act[0]
    for message, bounds in {
        "cu_seqlens must rise": [0, 3, 3, 5],
        "must rise from 0 to 5": [0, 4],
        "cu_seqlens must be one-dimensional": [[0, 5]],
    }.items():
        with pytest.raises(ValueError, match=message):
            actgrad_reduce(flat, flat, cu_seqlens=torch.tensor(bounds))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lengths_on_the_device_are_not_waited_for(device: torch.device) -> None:
    act, grad = draw((3, 63, 40), torch.float32, device), draw((3, 63, 40), torch.float32, device, 1)
    lengths = torch.tensor([0, 1000, 20], device=device)
    keep = torch.ones(3, 63, dtype=torch.bool, device=device)
    with torch.cuda.device(device):
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = actgrad_reduce(act, grad, lengths)
            for rule in RULES:
                actgrad_reduce(act, grad, lengths, rule, keep=keep)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (got[0] == -torch.inf).all()
    assert torch.equal(got[1:], plain(act[1:], grad[1:], [63, 20], "max"))
