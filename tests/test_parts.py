"""A large batch on a CPU goes through the encoder part by part: parts.py."""

import os
import platform
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from transformers import ViTModel

import vit_fast
from models import NAFLEX, NORM, SPEC, hf_model, images, patches, randomize
from vit_fast import ViT, parts, torch_ops
from vit_fast.parts import BLOCK, counts
from vit_fast.pixels import Patches

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


def alone(pixels: Tensor | Patches, i: int) -> Tensor | Patches:
    """Image i."""
    if isinstance(pixels, Tensor):
        return pixels[i : i + 1]
    return Patches(*(None if t is None else t[i : i + 1] for t in pixels))


def one_by_one(model: ViT, pixels: Tensor | Patches, **asked: bool) -> list[Tensor]:
    """Everything that features() gives, image by image."""
    count = len(pixels if isinstance(pixels, Tensor) else pixels.pixels)
    each = [flat(model.features(alone(pixels, i), **asked)) for i in range(count)]
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
        # 13 fit, not 14
        (27, 197, replace(SPEC, heads=12, head_dim=64, mlp_dim=3072), 4, [9, 9, 9]),
        # ViT-S/32-224: the pixels of a patch are more than what is behind fc1
        (64, 50, replace(SPEC, patch=32, heads=6, head_dim=64, mlp_dim=1536), 4, [32, 32]),
        (2, 0, SPEC, 4, [2]),
        # an image alone may be more
        (3, 10_000, replace(SPEC, mlp_dim=8192), 4, [1, 1, 1]),
    ],
)  # fmt: skip
def test_counts(batch, rows, spec, itemsize, expected):
    assert counts(batch, rows, spec, itemsize) == expected


@pytest.mark.parametrize("rows", [50, 197, 257, 577, 1370])
def test_every_part_fits_and_one_less_would_not(rows):
    spec = replace(SPEC, heads=12, head_dim=64, mlp_dim=3072)
    image = rows * 3072 * 4
    for batch in range(1, 130):
        found = counts(batch, rows, spec, 4)
        assert sum(found) == batch and max(found) - min(found) <= 1
        assert max(found) * image <= BLOCK
        assert len(found) == 1 or -(-batch // (len(found) - 1)) * image > BLOCK


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
        expected = one_by_one(model, pixels, **asked)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 if dtype == torch.float32 else 0.06)


@pytest.mark.parametrize(
    "changes, asked",
    [
        ({}, {"logits": True}),
        ({"distillation_token": True, "distillation_head": True}, {"logits": True}),
        # no row of the last norm, and a few
        ({}, {"hidden_states": True}),
        ({}, {"hidden_states": True, "pooled": True}),
    ],
)
def test_a_few_rows_and_bytes(small, batches, changes, asked):
    model = vit(replace(SPEC, **changes))
    pixels = images(7, 3, 32, 32, dtype=torch.uint8)
    with torch.inference_mode():
        found = flat(model.features(pixels, tokens=False, **asked))
        assert len(batches) > 1 and sum(batches) == 7
        expected = one_by_one(model, pixels, tokens=False, **asked)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("grids", [[(4, 4), (2, 8), (3, 5), (1, 16), (2, 2)], [(4, 4)] * 5])
def test_images_of_several_sizes(small, batches, grids):
    model = vit(NAFLEX)
    given = patches(model, grids, 16)
    with torch.inference_mode():
        found = flat(model.features(given, pooled=True))
        assert batches == [3, 2]
        expected = one_by_one(model, given, pooled=True)
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


@pytest.mark.parametrize(
    "register",
    [
        lambda model, hook: model.blocks[0].register_forward_hook(hook),
        lambda model, hook: register_module_forward_hook(
            lambda module, *rest: hook(module, *rest) if module is model.blocks[0] else None
        ),
    ],
    ids=["of a block", "of all modules"],
)
def test_hooks_see_the_whole_batch(small, batches, register):
    model, seen = vit(), []
    handle = register(model, lambda module, args, y: seen.append(len(args[0])))
    with handle, torch.inference_mode():
        model(images(7, 3, 32, 32))
    assert seen == batches == [7]


def test_a_derived_class_and_tensors_of_another_class_see_the_whole_batch(small, batches):
    class Derived(ViT):
        def embed(self, pixels, ops):
            return super().embed(pixels - pixels.mean(0), ops)

    class Shard(Tensor):
        pass

    pixels = images(7, 3, 32, 32)
    with torch.inference_mode():
        Derived(SPEC)(pixels)
        vit()(pixels.as_subclass(Shard))
    assert batches == [7, 7]


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
    with torch.inference_mode():
        found = flat(vit().features(images(7, 3, 32, 32), hidden_states=True))
    for t in found:
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size()


def test_the_heap_is_led_to_keep_more_whatever_the_batch(monkeypatch):
    calls = []
    monkeypatch.setattr(parts, "keep_heap", lambda: calls.append(None))
    with torch.inference_mode():
        vit()(images(1, 3, 32, 32))
    assert len(calls) == 1


SCRIPT = """
import resource, torch
from vit_fast.parts import keep_heap
with torch.device("meta"):
    keep_heap()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(14 << 20, dtype=torch.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults() * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="malloc may be another library's")
def test_the_heap_keeps_what_was_freed():
    # any of these settings turns off what keep_heap makes use of
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    run = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=env)
    # of 560 MiB; all of them without it, in most processes
    assert int(done.stdout) < 60 << 20
