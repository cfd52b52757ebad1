"""A large batch on a CPU goes through the encoder part by part: parts.py."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTModel

import vit_fast
from models import NAFLEX, NORM, SPEC, hf_model, images, no_gradient, patches, randomize
from vit_fast import ViT, parts, torch_ops
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
    "side, batch, expected_batches",
    [(32, 16, [16]), (32, 17, [9, 8]), (64, 4, [4]), (64, 5, [3, 2])],
)
def test_all_tokens_of_this_size_count(monkeypatch, batches, side, batch, expected_batches):
    monkeypatch.setattr(parts, "BLOCK", 16 * IMAGE)
    with torch.inference_mode():
        vit()(images(batch, 3, side, side))
    assert batches == expected_batches


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


def test_gradients_transforms_and_counters_see_the_whole_batch(small, batches):
    model, pixels = vit(), images(7, 3, 32, 32)
    model.ops = torch_ops()
    model(pixels).sum().backward()
    assert model.blocks[0].mlp.fc1.weight.grad is not None
    with torch.no_grad(), FlopCounterMode(display=False):
        model(pixels)
    with torch.no_grad():
        torch.func.vmap(model)(pixels[None])
    assert batches == [7, 7, 7]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_is_of_the_whole_batch(small):
    model, pixels = vit(), images(9, 3, 32, 32)
    model.ops = torch_ops()
    with torch.no_grad():
        traced = torch.jit.trace(model, pixels[:7], check_trace=False)
        torch.testing.assert_close(traced(pixels), model(pixels), rtol=0, atol=2e-5)


def test_a_compiled_model_sees_the_whole_batch(small, batches):
    with torch.inference_mode():
        torch.compile(vit(), backend="eager", fullgraph=True)(images(7, 3, 32, 32))
    assert batches == [7]


@pytest.mark.parametrize("ops, expected", [(torch_ops(), [7]), (no_gradient(), [3, 2, 2])])
def test_without_a_gradient_but_with_grad_mode_on(small, batches, ops, expected):
    model = vit().requires_grad_(False)
    model.ops = ops
    model(images(7, 3, 32, 32))
    assert batches == expected


def test_other_devices_are_not_for_parts():
    assert parts.stay_apart(torch.empty(2), no_gradient())
    assert not parts.stay_apart(torch.empty(2, device="meta"), no_gradient())


def test_no_more_rows_than_asked_for(small, batches):
    with torch.inference_mode():
        y, kept = vit().run(images(7, 3, 32, 32), torch_ops(), rows=1)
    assert batches == [3, 2, 2] and y.shape == (7, 1, SPEC.dim) and not kept


def test_the_answer_is_no_view_of_a_larger_tensor(small):
    """Of what the caller keeps, nothing else hangs on."""
    with torch.inference_mode():
        found = flat(vit().features(images(7, 3, 32, 32), hidden_states=True))
    for t in found:
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size()
