"""Watch: what it sees, and that looking costs next to nothing."""

import pytest
import torch
from torch import nn

from vit_fast.watch import Watch


def tree() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)),
        nn.LayerNorm(3),
        nn.Linear(3, 3, bias=False),
    )


ATTRIBUTES = {nn.Dropout: ("p", "training"), nn.LayerNorm: ("eps",)}

CHANGES = {
    "child": lambda m: setattr(m[0], "0", nn.Linear(3, 3)),
    "child by the back door": lambda m: m[0]._modules.update({"0": nn.Linear(3, 3)}),
    "one more child": lambda m: m[0].append(nn.Identity()),
    "the first child": lambda m: m[1].add_module("x", nn.Identity()),
    "no child": lambda m: m.pop(2),
    "parameter": lambda m: setattr(m[2], "weight", nn.Parameter(m[2].weight.data)),
    "parameter by the back door": lambda m: m[2]._parameters.update(weight=torch.zeros(3, 3)),
    "a bias where there was none": lambda m: setattr(m[2], "bias", nn.Parameter(torch.zeros(3))),
    "no bias": lambda m: setattr(m[0][0], "bias", None),
    "memory": lambda m: setattr(m[2].weight, "data", torch.zeros(3, 3)),
    "dtype": lambda m: m[2].half(),
    "class": lambda m: setattr(m[2], "__class__", type("Other", (nn.Linear,), {})),
    "hook": lambda m: m[1].register_forward_hook(lambda *a: None),
    "pre-hook": lambda m: m[1].register_forward_pre_hook(lambda *a: None),
    "forward": lambda m: setattr(m[2], "forward", lambda x: x),
    "dropout": lambda m: setattr(m[0][1], "p", 0.2),
    "eps": lambda m: setattr(m[1], "eps", 1.0),
    "mode": lambda m: m.eval(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("hooked", [False, True])
def test_sees(change, hooked):
    model = tree()
    if hooked:
        for module in model.modules():
            module.register_forward_hook(lambda *a: None)
    watch = Watch(model.modules(), ATTRIBUTES)
    assert watch.unchanged()
    model(torch.randn(2, 3))
    assert watch.unchanged()
    change(model)
    assert not watch.unchanged()
    assert Watch(model.modules(), ATTRIBUTES).unchanged()


def test_sees_a_patched_class(monkeypatch):
    model = tree()
    watch = Watch(model.modules())
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert not watch.unchanged()


def test_a_parameter_of_one_element_with_the_same_value():
    """== on such tensors is a bool: identity has to be asked for."""
    model = nn.Linear(1, 1)
    watch = Watch(model.modules())
    model.weight = nn.Parameter(model.weight.detach().clone())
    assert not watch.unchanged()


def test_leaves_writes_alone():
    model = tree()
    watch = Watch(model.modules(), ATTRIBUTES)
    with torch.no_grad():
        model[2].weight.add_(1)
    assert watch.unchanged()


@pytest.mark.parametrize(
    "change",
    [lambda m: delattr(m, "eps"), lambda m: setattr(m, "eps", torch.ones(2))],
    ids=["taken away", "a tensor"],
)
def test_an_attribute_that_is_no_number_any_more(change):
    model = tree()
    watch = Watch(model.modules(), ATTRIBUTES)
    assert watch.unchanged()
    change(model[1])
    assert not watch.unchanged()


@pytest.mark.parametrize(
    "write",
    [lambda t: t.add_(1), lambda t: setattr(t, "data", t.clone())],
    ids=["in place", "other memory"],
)
def test_sees_writes_into_buffers(write):
    model = tree()
    model[2].register_buffer("angles", torch.ones(3))
    with torch.inference_mode():
        model[2].register_buffer("unversioned", torch.ones(3))
    watch = Watch(model.modules())
    assert watch.unchanged()
    write(model[2].angles)
    assert not watch.unchanged()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "2", nn.Identity()),
        lambda m: setattr(m, "weight", nn.Parameter(torch.ones(3))),
        lambda m: setattr(m, "angles", torch.ones(3)),
        lambda m: setattr(m, "angles", None),
    ],
    ids=["child", "parameter", "buffer", "no buffer"],
)
def test_the_root_counts_by_its_children_and_tensors_alone(change):
    model = tree()
    model.weight = nn.Parameter(torch.ones(3))
    model.register_buffer("angles", torch.ones(3))
    watch = Watch(model[0].modules(), root=model)
    model.forward = lambda x: x
    model.register_forward_hook(lambda *a: None)
    assert watch.unchanged()
    change(model)
    assert not watch.unchanged()


def test_gradients():
    model = tree()
    watch = Watch(model.modules())
    assert watch.wants_gradient()
    model.requires_grad_(False)
    assert not watch.wants_gradient()
    model[1].bias.requires_grad_(True)
    assert watch.wants_gradient()
