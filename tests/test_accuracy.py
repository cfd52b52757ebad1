"""The tolerance rule itself: it passes what is right and sees each way of being wrong."""

import pytest
import torch

from accuracy import assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def red(*args, **kwargs) -> None:
    with pytest.raises(AssertionError):
        assert_as_accurate(*args, **kwargs)


@pytest.fixture(params=DTYPES, ids=str)
def results(request):
    """A float64 reference [8, 1000] and its rounding to a dtype, the best baseline there is."""
    ref = torch.randn(8, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ref, ref.to(request.param)


def test_green_for_the_baseline_and_for_one_more_rounding(results):
    ref, baseline = results
    assert_as_accurate(baseline.clone(), ref, baseline)
    eps = torch.finfo(baseline.dtype).eps
    assert_as_accurate((ref * (1 + eps / 2)).to(baseline.dtype), ref, baseline)


def test_zeros_beside_one_massive_channel(results):
    """99.9% of the values are lost, and the maximum error is that of rounding 1000."""
    ref, baseline = results
    massive = ref.clone()
    massive[:, 7] = 1000.3
    y = torch.zeros_like(baseline)
    y[:, 7] = 1000.3
    red(y, massive, massive.to(baseline.dtype))


def test_a_single_wrong_element(results):
    ref, baseline = results
    y = baseline.clone()
    y[3, 500] += 0.2
    red(y, ref, baseline)


def test_a_constant_offset_in_one_row(results):
    """Small beside the largest value of the tensor, large beside its own row."""
    ref, baseline = results
    ref = ref.clone()
    ref[0] *= 100
    y = ref.to(baseline.dtype)
    assert_as_accurate(y.clone(), ref, y)
    wrong = y.clone()
    wrong[5] += 6 * torch.finfo(y.dtype).eps
    assert (wrong - ref).abs().max() < torch.finfo(y.dtype).eps * ref.abs().max()
    red(wrong, ref, y)


def test_three_times_the_error(results):
    ref, _ = results
    dtype = results[1].dtype
    noise = torch.randn(ref.shape, dtype=ref.dtype, generator=torch.Generator().manual_seed(1))
    noise *= 20 * torch.finfo(dtype).eps
    baseline = (ref + noise).to(dtype)
    assert_as_accurate((ref - 1.5 * noise).to(dtype), ref, baseline)
    red((ref + 3 * noise).to(dtype), ref, baseline)
    assert_as_accurate((ref + 3 * noise).to(dtype), ref, baseline, factor=4.0)


def test_nonfinite_values(results):
    ref, baseline = results
    nan, inf = float("nan"), float("inf")
    for value in (nan, inf, -inf):
        y = baseline.clone()
        y[2, 3] = value
        red(y, ref, baseline)  # the baseline has none
        red(baseline, ref, y, allow_nonfinite=True)  # it has, y has not
        red(y, ref, y)  # not allowed
        assert_as_accurate(y.clone(), ref, y, allow_nonfinite=True)
        for other in {nan, inf, -inf} - {value}:
            z = y.clone()
            z[2, 3] = other
            red(z, ref, y, allow_nonfinite=True)
        y[2, 4] += 0.2  # beside it, all is judged as before
        spoilt = baseline.clone()
        spoilt[2, 3] = value
        red(y, ref, spoilt, allow_nonfinite=True)


def test_shape_and_dtype(results):
    ref, baseline = results
    red(baseline[:4], ref, baseline)
    red(baseline.double(), ref, baseline)
    red(baseline, ref.float(), baseline)
    assert_as_accurate(baseline[:0].clone(), ref[:0], baseline[:0])
    red(baseline[:0].double(), ref[:0], baseline[:0])
    assert_as_accurate(baseline[0, 0].clone(), ref[0, 0], baseline[0, 0])


@pytest.mark.parametrize("value", [0.0, 1e-25])
def test_rows_of_nothing(results, value):
    """Zeros, or rounding where zeros are due: they do not pass everything, nor hide what is wrong elsewhere."""
    ref, baseline = results
    ref, eps = ref.clone(), torch.finfo(baseline.dtype).eps
    ref[1] = value
    baseline = ref.to(baseline.dtype)
    noisy = baseline.clone()
    noisy[1] = eps / 4
    assert_as_accurate(noisy, ref, baseline)
    wrong = noisy.clone()
    wrong[1] = 0.1
    red(wrong, ref, noisy)
    wrong = noisy.clone()
    wrong[2] += 8 * eps
    red(wrong, ref, noisy)


def test_all_zero():
    zero = torch.zeros(2, 3)
    assert_as_accurate(zero.clone(), zero.double(), zero)
    red(zero + 1e-30, zero.double(), zero)
