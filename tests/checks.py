"""The measure of a kernel's error: that of plain torch at the same dtype, never a guessed tolerance."""

from __future__ import annotations

import torch


def assert_as_exact_as_torch(name: str, got: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> None:
    """Fail unless got errs at most twice as much as plain, in the maximum and in the root mean square.

    Args:
        name: what is compared, for the message.
        got: the kernel's result, any dtype.
        exact: float64, the same formula on the same inputs.
        plain: the same formula in torch at the kernel's input dtype.
    """
    assert exact.dtype == torch.float64, "the oracle must be float64"
    assert got.shape == exact.shape == plain.shape, f"{name}: {got.shape}, {exact.shape}, {plain.shape}"
    error, allowed = (x.detach().double().cpu() - exact.cpu() for x in (got, plain))
    assert allowed.isfinite().all(), f"{name}: plain torch is not finite here; choose other inputs"
    wrong = ~error.isfinite() | (error.abs() > 2 * allowed.abs().max())
    rms, rms_allowed = (x.square().mean().sqrt().item() for x in (error, allowed))
    report = (
        f"{name}: maximum {error.abs().max():.3e} (torch {allowed.abs().max():.3e}), "
        f"RMS {rms:.3e} (torch {rms_allowed:.3e})"
    )
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{report}; {int(wrong.sum())} of {wrong.numel()} wrong, first at {where}: "
            f"{got[where].item()} for {exact[where].item()}"
        )
    assert rms <= 2 * rms_allowed, report
