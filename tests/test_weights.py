"""What is derived from parameters: right, fresh after every visible change, and not part of a model."""

import copy
import pickle
from threading import Thread

import pytest
import torch
from torch import nn

from accuracy import assert_as_accurate
from models import NORM, SPEC, images, randomize
from vit_fast import Normalization, ViT, torch_ops
from vit_fast.positions import resize_positions
from vit_fast.weights import SIZES, Derived, fold_bias, fold_weight


class Counted:
    """Twice a parameter, kept by a Derived, and how often it was made."""

    def __init__(self) -> None:
        self.derived, self.times = Derived(), 0

    def __call__(self, p: torch.Tensor) -> torch.Tensor:
        def build():
            self.times += 1
            return 2 * p

        result = self.derived.get("twice", [p], build)
        assert torch.equal(result, 2 * p)
        return result


@pytest.fixture
def twice() -> Counted:
    return Counted()


def test_made_once_while_nothing_changes(twice):
    p = nn.Parameter(torch.randn(4))
    with torch.no_grad():
        assert twice(p) is twice(p)
    with torch.inference_mode():
        twice(p)
    assert twice.times == 1


def in_place(p):
    p.add_(1)


def optimizer(p):
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], lr=0.5).step()


def another_tensor_behind_it(p):
    p.data = p.data + 1


def half(p):
    p.data = p.data.half()


@pytest.mark.parametrize("change", [in_place, optimizer, another_tensor_behind_it, half])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_made_anew_after_a_change(twice, change, mode):
    p = nn.Parameter(torch.randn(4))
    with torch.no_grad():
        twice(p)
    with mode():
        change(p)
    with torch.inference_mode():
        twice(p)
    assert twice.times == 2


def test_made_anew_for_another_parameter_at_the_same_address(twice):
    storage = torch.zeros(4)
    with torch.no_grad():
        for value in range(3):
            storage.fill_(value)
            p = nn.Parameter(storage.data)
            assert p._version == 0
            twice(p)
            del p
    assert twice.times == 3


def test_inference_parameters_are_taken(twice):
    with torch.inference_mode():
        p = torch.randn(4)
        twice(p)
    twice(p)
    assert twice.times == 1
    with torch.inference_mode():
        p.add_(1)
    twice.derived.clear()  # as documented: this change cannot be seen
    twice(p)


def test_kept_results_can_be_saved_for_a_backward(twice):
    p = nn.Parameter(torch.randn(4), requires_grad=False)
    with torch.inference_mode():
        kept = twice(p)
    assert not kept.is_inference()
    x = torch.randn(4, requires_grad=True)
    (x * twice(p)).sum().backward()
    assert torch.equal(x.grad, 2 * p)


def test_a_wanted_gradient_flows_and_nothing_is_kept(twice):
    p = nn.Parameter(torch.randn(4))
    twice(p).sum().backward()
    assert torch.equal(p.grad, torch.full((4,), 2.0))
    assert twice.derived.nbytes() == 0
    with torch.no_grad():
        assert not twice(p).requires_grad
    assert twice(p).requires_grad


def test_the_newest_sizes_are_kept():
    derived, p = Derived(), torch.zeros(4)
    made = []

    def get(key):
        derived.get(key, [p], lambda: made.append(key) or p.clone())

    get("fixed")
    for size in range(SIZES + 3):
        get(("size", size))
        get(("size", 0))  # in use, so it stays
    assert made.count("fixed") == made.count(("size", 0)) == 1
    assert derived.nbytes() == (SIZES + 1) * p.nbytes
    made.clear()
    get("fixed")
    get(("size", 0))
    get(("size", SIZES + 2))
    assert made == []
    get(("size", 1))
    assert made == [("size", 1)]


def test_copies_are_empty(twice):
    p = torch.randn(4)
    twice(p)
    assert twice.derived.nbytes() == p.nbytes
    for other in copy.deepcopy(twice.derived), pickle.loads(pickle.dumps(twice.derived)):
        assert other.nbytes() == 0
        assert torch.equal(other.get("twice", [p], lambda: 3 * p), 3 * p)


def test_threads_share_it():
    derived, p, wrong = Derived(), torch.ones(1), []

    def use(seed):
        for i in range(300):
            key = (i * seed) % (2 * SIZES)
            result = derived.get(("size", key), [p], lambda key=key: p * key)
            if result.item() != key:
                wrong.append(key)

    threads = [Thread(target=use, args=(seed,)) for seed in (1, 3, 5, 7)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "norm",
    [
        NORM,
        Normalization(1.0, (0.0,) * 3, (1.0,) * 3),
        Normalization(1 / 127.5, (1.0, 1.5, 0.5), (0.01, 1.0, 10.0)),
    ],
)
def test_folded_bytes(norm, dtype):
    """Against normalized pixels in PyTorch's convolution."""
    conv = randomize(nn.Conv2d(3, 32, 8, stride=8)).to(dtype)
    pixels = images(2, 3, 24, 32, dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (norm.mean, norm.std))
    exact = (pixels.double() * norm.rescale - mean) / std
    with torch.no_grad():
        weight, bias = fold_weight(conv.weight, norm), fold_bias(conv.weight, conv.bias, norm)
        y = torch_ops().patch_embed(pixels, weight, bias, None, None, 8)
        baseline = conv(exact.float().to(dtype)).flatten(2).mT
        ref = conv.double()(exact).flatten(2).mT
    assert (weight.dtype, y.dtype) == (dtype, dtype)
    assert bias.dtype == torch.promote_types(dtype, torch.float32)
    assert_as_accurate(y, ref, baseline)


def test_positions_are_resized_for_square_grids_only():
    pos = torch.randn(6, 4)
    with pytest.raises(ValueError, match="grid of 2 x 3 patches cannot be resized to 4 x 4"):
        resize_positions(pos, (2, 3), (4, 4))
    assert resize_positions(torch.randn(9, 4), (3, 3), (2, 5)).shape == (10, 4)


@pytest.mark.parametrize(
    "name", ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
)
@pytest.mark.parametrize("how", ["in place", "replaced", "loaded", "assigned"])
def test_a_model_sees_every_change_of_its_parameters(name, how):
    """Between two calls with interpolated positions and folded weights."""
    vit = randomize(ViT(SPEC, NORM))
    pixels = images(2, 3, 40, 48, dtype=torch.uint8)
    with torch.inference_mode():
        before = vit(pixels)
    owner, _, leaf = name.rpartition(".")
    owner = vit.get_submodule(owner)
    new = getattr(owner, leaf).detach().flip(-1)
    if how == "in place":
        with torch.no_grad():
            getattr(owner, leaf).copy_(new)
    elif how == "replaced":
        setattr(owner, leaf, nn.Parameter(new))
    else:
        vit.load_state_dict({**vit.state_dict(), name: new}, assign=how == "assigned")
    with torch.inference_mode():
        after = vit(pixels)
        fresh = copy.deepcopy(vit)(pixels)
    assert torch.equal(after, fresh)
    assert not torch.allclose(after, before, atol=1e-3)


def test_what_is_derived_is_not_in_the_state_dict():
    vit = ViT(SPEC, NORM)
    names = set(vit.state_dict())
    with torch.inference_mode():
        vit(images(1, 3, 40, 48, dtype=torch.uint8))
    assert vit._derived.nbytes() > 0
    assert set(vit.state_dict()) == names
    assert not list(vit.buffers())


def test_normalization_refuses_nonsense():
    with pytest.raises(ValueError, match="3 means for 1 stds"):
        Normalization(1.0, (0.0,) * 3, (1.0,))
    with pytest.raises(ValueError, match="std must not be zero"):
        Normalization(1.0, (0.0,), (0.0,))


def test_a_write_while_it_is_made(twice):
    """By another thread, say: what was made may be of either, so the next call makes it anew."""
    p = torch.ones(4)

    def build():
        made = 2 * p
        p.mul_(3)
        return made

    twice.derived.get("twice", [p], build)
    twice(p)


def test_made_anew_for_another_view_of_the_same_memory(twice):
    """At the same address, with the same version: other strides, another shape, another dtype."""
    p = nn.Parameter(torch.randn(4, 4))
    with torch.no_grad():
        for change in (lambda t: t.view(2, 8), torch.t, lambda t: t.view(torch.int32)):
            twice(p)
            before = p.data_ptr(), p._version
            p.requires_grad_(False).data = change(p.data)
            assert (p.data_ptr(), p._version) == before
            twice(p)
    assert twice.times == 4


def test_what_no_graph_has_read_is_not_made_anew_in_place(twice):
    """Another thread may be at work on it."""
    p = torch.randn(4)
    old = twice(p)
    before = old.clone()
    p.add_(1)
    assert twice(p) is not old and torch.equal(old, before)
