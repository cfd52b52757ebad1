import pytest
import torch

from accuracy import assert_as_accurate
from pairwise import pairwise
from tensors import DEVICE, DTYPES, f64, target, values

pytest.importorskip("triton")
from vit_fast.kernels.patch_embed import launch, patch_embed, patch_embed_ref
from vit_fast.ops import torch_ops

pytestmark = pytest.mark.usefixtures("on_device")

LAYOUTS = ("NCHW", "NHWC", "cropped", "transposed", "one image for all")
CASES = pairwise(
    patch=(8, 14, 16, 32),
    grid=((1, 1), (2, 3), (7, 5)),
    width=(192, 384, 768, 200),
    channels=(3, 1, 4),
    prefix=(0, 1, 5),
    extras=("bias", "pos", "bias pos", ""),
    pixels=("uint8", "float"),
    layout=LAYOUTS,
    batch=(1, 2),
    arch=("sm_80", "sm_90"),
    dtype=DTYPES,
)


def image(pixels, layout, B, C, H, W, dtype):
    """[B, C, H, W] in a layout; around a crop lies what must not be read."""
    if pixels == "uint8":
        random = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (B, C, H, W), generator=random, dtype=torch.uint8, device="cpu")
        x = x.to(DEVICE)
        around = 255
    else:
        x, around = values("normal", B, C, H, W).to(dtype), float("nan")
    match layout:
        case "NHWC":
            return x.contiguous(memory_format=torch.channels_last)
        case "cropped":
            wide = x.new_full((B, C, H + 7, W + 5), around)
            wide[:, :, 3 : H + 3, 1 : W + 1] = x
            return wide[:, :, 3 : H + 3, 1 : W + 1]
        case "transposed":
            return x.transpose(2, 3).contiguous().transpose(2, 3)
        case "one image for all":
            return x[:1].expand(B, -1, -1, -1)
    return x


def weights(pixels, C, patch, D, R, patches, extras, dtype):
    K = C * patch * patch
    # uint8 filters are folded: they carry the 1/(255 * std) of the normalisation
    w = values("normal", D, K, seed=1) / K**0.5 / (64 if pixels == "uint8" else 1)
    b = values("normal", D, seed=2).to(dtype) if "bias" in extras else None
    prefix = values("normal", R, D, seed=3).to(dtype) if R else None
    pos = values("normal", patches, D, seed=4).to(dtype) if "pos" in extras else None
    return w.to(dtype), b, prefix, pos


@pytest.mark.parametrize(
    "patch, grid, width, channels, prefix, extras, pixels, layout, batch, arch, dtype", CASES
)
def test_against_float64(
    patch, grid, width, channels, prefix, extras, pixels, layout, batch, arch, dtype
):
    x = image(pixels, layout, batch, channels, grid[0] * patch, grid[1] * patch, dtype)
    w, b, prefix, pos = weights(
        pixels, channels, patch, width, prefix, grid[0] * grid[1], extras, dtype
    )
    y = launch(x, w, b, prefix, pos, patch, gpu=target(arch))
    ref = patch_embed_ref(x if pixels == "uint8" else x.double(), *f64(w, b, prefix, pos), patch)
    assert_as_accurate(y, ref, torch_ops().patch_embed(x, w, b, prefix, pos, patch))
    if prefix is not None:
        assert torch.equal(y[:, : len(prefix)], prefix.expand(batch, -1, -1))


def test_every_byte_value():
    """All 256 values, exactly: one pixel a patch, an identity filter."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    y = patch_embed(x, torch.ones(1, 1).half(), None, None, None, 1)
    assert torch.equal(y.flatten(), (torch.arange(256) - 128).half())


def test_224_pixels():
    x = image("uint8", "NHWC", 1, 3, 224, 224, torch.float16)
    args = weights("uint8", 3, 16, 192, 1, 196, "bias pos", torch.float16)
    y = patch_embed(x, *args, 16)
    assert y.shape == (1, 197, 192)
    assert_as_accurate(
        y, patch_embed_ref(x, *f64(*args), 16), torch_ops().patch_embed(x, *args, 16)
    )


def test_nonfinite_pixels_stay_in_their_patch():
    x = torch.randn(2, 3, 32, 32)
    x[1, 0, 20, 3] = float("nan")
    y = patch_embed(x, torch.randn(64, 768), None, None, None, 16)
    assert y[1, 2].isnan().all()
    y[1, 2] = 0
    assert y.isfinite().all()


def test_empty_batch():
    w = torch.randn(64, 768)
    assert patch_embed(
        torch.empty(0, 3, 32, 32), w, None, w[:1, :64].T[:1].repeat(1, 64), None, 16
    ).shape == (0, 5, 64)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pixels": torch.ones(1, 4, 32, 32)}, "weight is (64, 768), expected [D, 1024]"),
        ({"pixels": torch.ones(3, 32, 32)}, "pixels is (3, 32, 32)"),
        ({"pixels": torch.ones(1, 3, 33, 32)}, "33 x 32 pixels, expected a multiple of 16"),
        ({"pixels": torch.ones(1, 3, 0, 32)}, "0 x 32 pixels"),
        (
            {"pixels": torch.ones(1, 3, 32, 32).half()},
            "pixels are torch.float16 on",
        ),
        ({"pixels": torch.ones(1, 3, 32, 32).int()}, "pixels are torch.int32"),
        ({"pos": torch.ones(5, 64)}, "pos is (5, 64), expected (4, 64)"),
        ({"bias": torch.ones(63)}, "bias is (63,), expected (64,)"),
        ({"prefix": torch.ones(1, 63)}, "prefix is (1, 63), expected (1, 64)"),
    ],
)
def test_wrong_arguments(change, words):
    arguments = {"pixels": torch.ones(1, 3, 32, 32), "weight": torch.ones(64, 768), "bias": None}
    arguments |= {"prefix": None, "pos": None, "patch": 16} | change
    arguments = {
        k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(ValueError) as error:
        patch_embed(**arguments)
    assert words in str(error.value)


def test_an_image_beyond_32_bit_offsets_is_refused():
    x = torch.empty_strided((1, 3, 16, 16), (1, 2**30, 16, 1), dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="spans over 2.31 values"):
        launch(x, torch.empty(8, 768, device="meta"), None, None, None, 16, gpu=target("sm_90"))
