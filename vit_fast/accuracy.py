"""The only tolerance rule: a result is judged by PyTorch's own error in the same dtype."""

from typing import NamedTuple

import torch
from torch import Tensor


class Distance(NamedTuple):
    """How far a result is from its reference by one measure, and how far it may be."""

    measure: str
    error: float
    allowed: float


def assert_as_accurate(
    y: Tensor, ref: Tensor, baseline: Tensor, factor: float = 2.0, allow_nonfinite: bool = False
) -> None:
    """AssertionError where y is further from `ref` than distances() allows."""
    for measure, error, allowed in distances(y, ref, baseline, factor, allow_nonfinite):
        assert error <= allowed, f"{measure} {error:.3g}, allowed {allowed:.3g}"


def distances(
    y: Tensor, ref: Tensor, baseline: Tensor, factor: float = 2.0, allow_nonfinite: bool = False
) -> list[Distance]:
    """y may be `factor` times as far from the float64 `ref` as `baseline` is, plus a unit of rounding.

    `baseline` is PyTorch's result in the same dtype, and with err the distance from ref:
    err(y) <= factor * err(baseline) + eps(dtype) * scale(ref). This holds twice:

    - err is the largest error in the tensor, scale the largest |ref|;
    - err is the relative RMS error of the worst row (along the last axis), scale is 1. The maximum is
      blind when one channel is 1000 times the rest. A row whose reference is zero, or mere rounding
      beside the other rows, has no relative error: its error is taken relative to the RMS of all rows.

    Non-finite values must be the baseline's, NaN for NaN and sign for sign, and are left out; the
    baseline has none unless `allow_nonfinite`. An empty result passes on shape and dtype.
    """
    assert y.shape == baseline.shape == ref.shape, f"{y.shape}, {baseline.shape}, {ref.shape}"
    assert y.dtype == baseline.dtype, f"{y.dtype}, expected {baseline.dtype}"
    assert ref.dtype == torch.float64, f"the reference is {ref.dtype}"
    if y.numel() == 0:
        return []
    eps = torch.finfo(y.dtype).eps
    y, ref, baseline = (t.detach().to(y.device).double() for t in (y, ref, baseline))

    out = ~baseline.isfinite()
    assert allow_nonfinite or not out.any(), f"{int(out.sum())} non-finite values in the baseline"
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        wrong = kind(y) != kind(baseline)
        assert not wrong.any(), (
            f"{kind.__name__} differs from the baseline in {int(wrong.sum())} places"
        )
    y, ref, baseline = (t.masked_fill(out, 0.0) for t in (y, ref, baseline))
    assert ref.isfinite().all(), "the reference is not finite where the baseline is"

    allowed = factor * (baseline - ref).abs().max() + eps * ref.abs().max()
    row_allowed = factor * _worst_row(baseline, ref, eps) + eps
    return [
        Distance("largest error", float((y - ref).abs().max()), float(allowed)),
        Distance(
            "relative RMS error of the worst row",
            float(_worst_row(y, ref, eps)),
            float(row_allowed),
        ),
    ]


def _worst_row(y: Tensor, ref: Tensor, eps: float) -> Tensor:
    """Largest relative RMS error of a row."""
    y, ref = (t.reshape(-1, t.shape[-1] if t.dim() else 1) for t in (y, ref))
    size = ref.square().mean(1).sqrt()
    typical = ref.square().mean().sqrt()
    size = torch.where(size > eps * typical, size, typical)
    # all zero: the largest error has judged it
    size = size.masked_fill(size == 0, 1.0)
    return ((y - ref).square().mean(1).sqrt() / size).max()
