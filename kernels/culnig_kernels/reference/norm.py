"""RMS norm and its activation-only backward."""

from __future__ import annotations

import torch

from culnig_kernels import validate
from culnig_kernels.reference.precision import work_dtype


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(offset + weight) · z / rms(z) where z is x, or x + residual.

    Args:
        x: [..., H] bf16, fp16 or fp32.
        weight: [H]; Llama's norm has offset 0, Gemma's 1.
        eps: added to the mean square.
        offset: added to the weight.
        residual: of x's shape; the sum is rounded to x's dtype before it is normalised, as the model's own add does.

    Returns:
        the norm [..., H] of x's dtype; z [..., H] of x's dtype (x itself without a residual); 1 / rms, float32 [...].

    Raises:
        ValueError: shapes disagree.
    """
    check_rms_norm(x, weight, residual)
    work = work_dtype(x, weight)
    z = x if residual is None else (x.to(work) + residual.to(work)).to(x.dtype)
    y, rstd = normalise(z.to(work), weight.to(work), eps, offset)
    return y.to(x.dtype), z, rstd.squeeze(-1)


def rms_norm_backward(
    dy: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    offset: float = 0.0,
    d_residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of the norm with respect to z, which is that of x and of the residual alike; none for the
    weight.

    Args:
        dy: [..., H] gradient with respect to the norm.
        z: [..., H] what was normalised, as `rms_norm` returned it.
        weight: [H].
        rstd: float32 [...] as `rms_norm` returned it.
        offset: as given to `rms_norm`.
        d_residual: [..., H] the gradient that reaches z by another way, added to the result.

    Returns:
        [..., H] of z's dtype, rounded once.

    Raises:
        ValueError: shapes disagree.
    """
    check_rms_norm_backward(dy, z, weight, rstd, d_residual)
    work = work_dtype(dy, z, weight)
    gradient = normalise_backward(dy.to(work), z.to(work), weight.to(work), rstd.to(work)[..., None], offset)
    return (gradient if d_residual is None else gradient + d_residual.to(work)).to(z.dtype)


def normalise(z: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm [..., H], 1 / rms [..., 1]), in the inputs' own dtype."""
    rstd = torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)
    return z * rstd * (offset + weight), rstd


def normalise_backward(
    dy: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, offset: float
) -> torch.Tensor:
    """∂z [..., H], in the inputs' own dtype; rstd [..., 1]."""
    direction, unit = dy * (offset + weight), z * rstd
    return rstd * (direction - unit * (direction * unit).mean(-1, keepdim=True))


def check_rms_norm(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Raise ValueError, naming the argument, unless `rms_norm` can take the arguments."""
    if x.dim() < 1:
        raise ValueError("x must be [..., H], not a scalar")
    validate.shape("weight", weight, (x.shape[-1],))
    if residual is not None:
        validate.shape("residual", residual, tuple(x.shape))


def check_rms_norm_backward(
    dy: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    d_residual: torch.Tensor | None,
) -> None:
    """Raise ValueError, naming the argument, unless `rms_norm_backward` can take the arguments."""
    if z.dim() < 1:
        raise ValueError("z must be [..., H], not a scalar")
    validate.shape("dy", dy, tuple(z.shape))
    validate.shape("weight", weight, (z.shape[-1],))
    validate.shape("rstd", rstd, tuple(z.shape[:-1]))
    if d_residual is not None:
        validate.shape("d_residual", d_residual, tuple(z.shape))
