"""What an accelerated model returns, in every form that transformers' callers ask for: type, keys and values."""

import pytest
import torch
from transformers import ViTForImageClassification, ViTModel
from transformers.utils import output_capturing

from models import DEVICE, images, needs_triton
from twins import ATOL, PIXELS, assert_fast, assert_same, assert_stock, reason, twins
from vit_fast import explain, state, triton_ops
from vit_fast.state import state_of

CLASSES = [ViTModel, ViTForImageClassification]
NEW = hasattr(output_capturing, "resolve_hidden_states_indices")  # transformers >= 5.2x


@pytest.fixture(scope="module", params=CLASSES, ids=lambda c: c.__name__)
def pair(request):
    return twins(request.param)


FORMS = [
    dict(),
    dict(output_hidden_states=True),
    dict(output_hidden_states=False),
    dict(output_hidden_states=None),
    dict(output_hidden_states=0),
    dict(output_hidden_states=1),
    dict(output_hidden_states=-1),
    dict(output_hidden_states=-2),
    dict(output_hidden_states=7),
    dict(return_dict=True),
    dict(return_dict=None),
    dict(return_dict=False),
    dict(return_dict=False, output_hidden_states=True),
    dict(output_attentions=False),
    dict(interpolate_pos_encoding=True),
    dict(interpolate_pos_encoding=False),
    dict(attention_mask=None),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms(pair, form):
    assert_fast(pair[1], pair[0], PIXELS, **form)
    assert_fast(pair[1], pair[0], pixel_values=PIXELS, **form)


@pytest.mark.parametrize("asked", [[0], [1, -1], (2,), {0, 2}, []], ids=str)
def test_lists_of_hidden_states(pair, asked):
    """Releases differ in what a list means; where we do not know, transformers' own forward answers."""
    form = dict(output_hidden_states=asked)
    if NEW or not asked:
        assert_fast(pair[1], pair[0], PIXELS, **form)
    else:
        with torch.no_grad():
            assert_stock(pair[1], pair[0], "output_hidden_states", PIXELS, **form)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("field", ["output_hidden_states", "return_dict"])
def test_defaults_of_the_config(cls, field):
    stock, fast = twins(cls)
    for model in (stock, fast):
        setattr(model.config, field, field == "output_hidden_states")
    if field == "return_dict":
        if cls is ViTModel:  # the classifier of transformers cannot do it
            assert_stock(fast, stock, "config.return_dict", PIXELS)
        return
    assert len(assert_fast(fast, stock, PIXELS).hidden_states) == 3
    for model in (stock, fast):
        model.config.output_hidden_states = False
    assert assert_fast(fast, stock, PIXELS).hidden_states is None


@pytest.mark.parametrize(
    "labels", [torch.tensor([1, 4]), torch.rand(2, 5)], ids=["classes", "soft"]
)
@pytest.mark.parametrize("positional", [False, True])
def test_loss(labels, positional):
    stock, fast = twins(ViTForImageClassification)
    args, kwargs = ((PIXELS, labels), {}) if positional else ((PIXELS,), {"labels": labels})
    assert assert_fast(fast, stock, *args, **kwargs).loss > 0
    assert fast.config.problem_type == stock.config.problem_type is not None


def test_loss_of_a_regression():
    stock, fast = twins(ViTForImageClassification, num_labels=1)
    assert_fast(fast, stock, PIXELS, labels=torch.rand(2))


def test_arguments_by_position():
    stock, fast = twins(ViTModel)
    larger = images(1, 3, 48, 64)
    assert_fast(fast, stock, larger, None, True)
    assert_fast(fast, stock, larger, None, True, None)
    with pytest.raises(TypeError):
        fast(larger, None, True, None, 5)


@pytest.mark.parametrize(
    "size", [(64, 64), (40, 72), (8, 8), (35, 50), (32, 33), (15, 32)], ids=str
)
@pytest.mark.parametrize("cls", CLASSES)
def test_other_sizes(cls, size):
    """Interpolated positions; what the patch does not divide is left out at the edge, as a convolution does."""
    stock, fast = twins(cls)
    assert_fast(
        fast, stock, images(2, 3, *size), interpolate_pos_encoding=True, output_hidden_states=True
    )


@pytest.mark.parametrize(
    "config",
    [
        dict(add_pooling_layer=False),
        dict(image_size=36),
        dict(image_size=(32, 48)),
        dict(qkv_bias=False),
        dict(num_channels=1),
        dict(hidden_act="gelu_pytorch_tanh"),
        dict(hidden_act="quick_gelu"),
        dict(hidden_act="silu"),
        dict(head_dim=16),
        dict(pooler_act="relu", pooler_output_size=24),
        dict(layer_norm_eps=1e-3),
        dict(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5),  # eval mode
    ],
    ids=str,
)
def test_variants(config):
    stock, fast = twins(ViTModel, **config)
    height, width = stock.embeddings.image_size
    assert_fast(fast, stock, images(2, stock.config.num_channels, height, width))


def test_a_classifier_without_labels():
    stock, fast = twins(ViTForImageClassification, num_labels=0)
    assert_fast(fast, stock, PIXELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", CLASSES)
def test_half_precision(cls, dtype):
    stock, fast = twins(cls, dtype)
    assert_fast(fast, stock, PIXELS.to(dtype), output_hidden_states=True)


def test_double_precision():
    stock, fast = twins(ViTModel, torch.float64)
    with torch.no_grad():
        assert_same(fast(PIXELS), stock(PIXELS), 1e-12)
    assert reason(fast) == ""


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_pixels_of_another_dtype_are_converted_as_transformers_does(dtype):
    stock, fast = twins(ViTModel)
    pixels = images(2, 3, 32, 32, dtype=dtype)
    assert_fast(fast, stock, pixels / 255 if dtype != torch.uint8 else pixels // 64)


@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        images(2, 3, 32, 64)[..., ::2],
        PIXELS[:1].expand(3, -1, -1, -1),
    ],
    ids=["channels last", "every other column", "expanded"],
)
def test_strides(pair, pixels):
    assert_fast(pair[1], pair[0], pixels)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(pair, mode):
    """Frozen, so that with grad mode on nothing wants a gradient."""
    stock, fast = pair
    with mode():
        theirs, ours = stock(PIXELS), fast(PIXELS)
    assert reason(fast) == ""
    assert_same(ours, theirs, ATOL[torch.float32])
    assert ours[0].is_inference() == theirs[0].is_inference()
    assert ours[0].requires_grad == theirs[0].requires_grad


def test_results_belong_to_the_caller(pair):
    with torch.no_grad():
        first = pair[1](PIXELS, output_hidden_states=True)
        kept = first[0].clone()
        for state in first.hidden_states:
            state.zero_()
        pair[1](2 * PIXELS)
        assert torch.equal(first[0], kept)
        torch.testing.assert_close(pair[1](PIXELS)[0], kept, rtol=0, atol=1e-5)


def test_the_classifier_computes_one_row_of_the_last_block():
    _, fast = twins(ViTForImageClassification)
    rows = []
    with torch.no_grad():
        fast(PIXELS)
        block = state_of(fast).bound.engine.blocks[-1]
        block.register_forward_hook(lambda module, args, output: rows.append(output[0].shape[1]))
        fast(PIXELS)
        fast(PIXELS, output_hidden_states=True)
    assert rows == [1, 17]


def test_nan_and_inf_pixels(pair):
    stock, fast = pair
    pixels = PIXELS.clone()
    pixels[0, 0, 0, 0], pixels[1, 2, 31, 31] = float("nan"), float("inf")
    with torch.no_grad():
        ours, theirs = fast(pixels)[0], stock(pixels)[0]
    assert reason(fast) == ""
    assert torch.equal(ours.isnan(), theirs.isnan())


@needs_triton
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_the_kernels(cls, dtype, monkeypatch):
    """The engine of a GPU, q, k and v joined from three live weights, also after a change of one of them."""
    monkeypatch.setattr(state, "choose_ops", lambda *args: (triton_ops(), "in a test"))
    stock, fast = twins(cls, dtype)
    for model in (stock, fast):
        model.to(DEVICE)
    pixels = PIXELS.to(DEVICE, dtype)
    assert_fast(fast, stock, pixels, output_hidden_states=True)
    for model in (stock, fast):
        getattr(model, "vit", model).layers[0].attention.v_proj.weight.mul_(-1)
    assert_fast(fast, stock, pixels)
    (found,) = explain(fast)
    assert found.ops == "triton"
    assert found.nbytes > 0
