"""A large batch on a CPU goes through the encoder part by part: parts.py."""

import platform
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from transformers import ViTModel

import vit_fast
from models import NAFLEX, NORM, SPEC, hf_model, images, patches, randomize
from vit_fast import ViT, parts, torch_ops
from vit_fast.parts import BLOCK, counts

ROWS = SPEC.tokens()
# of an image of SPEC in fp32: its widest tensor, qkv
IMAGE = ROWS * 3 * SPEC.inner_dim * 4


@pytest.fixture
def small(monkeypatch):
    """Blocks of three images of SPEC."""
    monkeypatch.setattr(parts, "BLOCK", 3 * IMAGE)


@pytest.fixture
def batches(monkeypatch):
    """The images of each call of encode, in order."""
    found, encode = [], ViT.encode

    def spy(self, pixels, *args, **kwargs):
        found.append(len(pixels.pixels if hasattr(pixels, "pixels") else pixels))
        return encode(self, pixels, *args, **kwargs)

    monkeypatch.setattr(ViT, "encode", spy)
    return found


def vit(spec=SPEC) -> ViT:
    torch.manual_seed(0)
    return randomize(ViT(spec, NORM)).eval()


def whole(model: ViT, pixels: object, **asked: bool) -> list[Tensor]:
    """Everything that features() gives, image by image."""
    count = len(pixels if isinstance(pixels, Tensor) else pixels.pixels)
    each = [flat(model.features(one, **asked)) for one in parts.split(pixels, [1] * count)]
    return [torch.cat(tensors) for tensors in zip(*each, strict=True)]


def flat(features: object) -> list[Tensor]:
    found = []
    for f in fields(features):
        value = getattr(features, f.name)
        found += [] if value is None else value if isinstance(value, tuple) else [value]
    return found


@pytest.mark.parametrize(
    "batch, rows, spec, itemsize, expected",
    [
        (1, ROWS, SPEC, 4, [1]),
        (0, ROWS, SPEC, 4, [0]),
        (BLOCK // IMAGE, ROWS, SPEC, 4, [BLOCK // IMAGE]),
        (BLOCK // IMAGE + 1, ROWS, SPEC, 4, [(BLOCK // IMAGE + 2) // 2, (BLOCK // IMAGE + 1) // 2]),
        # ViT-B/16-224: 2.4 MB an image behind fc1 in fp32
        (8, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 4, [8]),
        (32, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 4, [11, 11, 10]),
        (32, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 2, [16, 16]),
        # an image alone may be more
        (3, 10_000, replace(SPEC, mlp_dim=8192), 4, [1, 1, 1]),
    ],
)  # fmt: skip
def test_counts(batch, rows, spec, itemsize, expected):
    assert counts(batch, rows, spec, itemsize) == expected


@pytest.mark.parametrize(
    "dtype, batch, expected_batches",
    [
        (torch.float32, 3, [3]),
        (torch.float32, 4, [2, 2]),
        (torch.float32, 7, [3, 2, 2]),
        (torch.bfloat16, 6, [6]),
        (torch.bfloat16, 7, [4, 3]),
    ],
)
def test_every_output_is_that_of_the_images_one_by_one(
    small, batches, dtype, batch, expected_batches
):
    model = vit().to(dtype)
    asked = dict(tokens=True, pooled=True, hidden_states=True, logits=True)
    pixels = images(batch, 3, 32, 32, dtype=dtype)
    with torch.inference_mode():
        found = flat(model.features(pixels, **asked))
        assert batches == expected_batches
        expected = whole(model, pixels, **asked)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 if dtype == torch.float32 else 0.06)


def test_the_class_token_alone_and_bytes(small, batches):
    model = vit()
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        (found,) = flat(model.features(pixels, tokens=False, logits=True))
        assert batches == [3, 2, 2]
        (expected,) = whole(model, pixels, tokens=False, logits=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("grids", [[(4, 4), (2, 8), (3, 5), (1, 16), (2, 2)], [(4, 4)] * 5])
def test_images_of_several_sizes(small, batches, grids):
    model = vit(NAFLEX)
    given = patches(model, grids, 16)
    with torch.inference_mode():
        found = flat(model.features(given, pooled=True))
        assert batches == [3, 2]
        expected = whole(model, given, pooled=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_the_drop_in(small, batches):
    hf = hf_model(ViTModel)
    hf.set_attn_implementation("sdpa")
    pixels = images(7, 3, 32, 32)
    with torch.inference_mode():
        expected = hf(pixels).last_hidden_state
        vit_fast.accelerate(hf)
        found = hf(pixels).last_hidden_state
    assert batches == [3, 2, 2]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_no_tensor_between_layers_is_larger_than_a_block(small):
    sizes, plain = [], torch_ops()

    def spied(op):
        def run(*args, **kwargs):
            y = op(*args, **kwargs)
            sizes.append(y.numel() * y.element_size())
            return y

        return run

    names = ("patch_embed", "layer_norm", "linear", "attention")
    model = vit()
    model.ops = replace(plain, **{n: spied(getattr(plain, n)) for n in names})
    with torch.inference_mode():
        model(images(11, 3, 32, 32))
    assert max(sizes) == 3 * IMAGE == parts.BLOCK


def test_hooks_see_the_whole_batch(small, batches):
    model, seen = vit(), []
    model.blocks[0].register_forward_hook(lambda module, args, y: seen.append(len(args[0])))
    with torch.inference_mode():
        model(images(7, 3, 32, 32))
    assert seen == batches == [7]


def test_gradients_and_transforms_see_the_whole_batch(small, batches):
    model, pixels = vit(), images(7, 3, 32, 32)
    model(pixels).sum().backward()
    assert model.blocks[0].mlp.fc1.weight.grad is not None and batches == [7]
    with torch.no_grad():
        torch.func.vmap(model)(pixels[:, None])
    assert batches == [7, 1]


def test_without_a_gradient_but_with_grad_mode_on(small, batches):
    model = vit().requires_grad_(False)
    model.ops = torch_ops()
    model(images(7, 3, 32, 32))
    assert batches == [7]


def test_the_answer_is_no_view_of_a_larger_tensor(small):
    """Of what the caller keeps, nothing else hangs on."""
    model = vit()
    with torch.inference_mode():
        y = model.features(images(7, 3, 32, 32), tokens=False, pooled=True).pooled
    assert y.untyped_storage().nbytes() == y.numel() * y.element_size()


SCRIPT = """
import resource, sys, torch
from vit_fast.parts import keep_heap
if sys.argv[1] == "kept":
    keep_heap()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(14 << 20, dtype=torch.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_the_heap_keeps_what_was_freed():
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True)
        return int(done.stdout)

    assert faults("kept") < 1000
