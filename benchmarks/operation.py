"""One operation of a table of operations (vit_fast.Ops) on weights of its own, as a Task."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vit_fast import layers
from vit_fast.ops import Ops, choose_ops, torch_ops
from vit_fast.positions import rope_frequencies, rope_table

from .task import DTYPES, Program, Task

if TYPE_CHECKING:
    from .case import Case

EPS = 1e-6
ROPE_THETA = 100.0  # DINOv3's
Shape = Mapping[str, Any]
Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Given:
    """call(ops, *inputs, **weights) -> Tensor is the operation; packed: the weights that a table may pack."""

    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    packed: tuple[str, ...] = ()


class Applied(nn.Module):
    """An operation by one table: its weights are buffers, its inputs those of the call."""

    def __init__(self, ops: Ops, call: Callable[..., Tensor], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.ops, self.call, self.names = ops, call, tuple(weights)
        for name, w in weights.items():
            self.register_buffer(name, w)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.ops, *inputs, **{n: getattr(self, n) for n in self.names})

    def on(self, ops: Ops, packed: tuple[str, ...]) -> Program:
        weights = {n: getattr(self, n) for n in self.names}
        if ops.pack is not None:
            weights |= {n: ops.pack(weights[n]) for n in packed}
        return Program(lambda *inputs: self.call(ops, *inputs, **weights))


def operation(case: "Case", device: torch.device) -> Task:
    """The Task of a case of layer "operation"."""
    dtype, o = DTYPES[case.dtype], case.operation

    def draw(*shape: int, seed: int = 1, over: int = 1) -> Tensor:
        return (random(*shape, seed=seed) / over**0.5).to(device, dtype)

    given = GIVEN[o.op](o.shape, draw, case)
    module = Applied(torch_ops(), given.call, given.weights)
    ops = table(device, dtype, case.of.model.head_dim)
    ours = {"vit-fast": lambda: module.on(ops, given.packed)}
    return Task(dtype, device, module, given.inputs, lambda: copy.deepcopy(module), ours)


def table(device: torch.device, dtype: torch.dtype, head_dim: int) -> Ops:
    return choose_ops(device, dtype, head_dim)[0]


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(s: Shape, draw: Draw, case: "Case") -> Given:
    weights = dict(weight=draw(s["N"], s["K"], seed=2, over=s["K"]), bias=draw(s["N"], seed=3))
    inputs = (draw(s["M"], s["K"]),)
    if s["residual"]:
        inputs += (draw(s["M"], s["N"], seed=4),)

    def call(ops, x, residual=None, *, weight, bias) -> Tensor:
        return ops.linear(x, weight, bias, activation=s["activation"], residual=residual)

    return Given(call, inputs, weights, ("weight",))


def linear_norm(s: Shape, draw: Draw, case: "Case") -> Given:
    """Its answer is the normalized rows, which are made of those before; a table without it has two operations."""
    given = linear(s, draw, case)
    norms = dict(norm_weight=draw(s["N"], seed=5), norm_bias=draw(s["N"], seed=6))

    def call(ops, x, residual, *, weight, bias, norm_weight, norm_bias) -> Tensor:
        if ops.linear_norm is not None:
            return ops.linear_norm(x, weight, bias, None, residual, norm_weight, norm_bias, EPS)[1]
        y = ops.linear(x, weight, bias, residual=residual)
        return ops.layer_norm(y, norm_weight, norm_bias, EPS)

    return Given(call, given.inputs, given.weights | norms, given.packed)


def gated(s: Shape, draw: Draw, case: "Case") -> Given:
    M, N, K = s["M"], s["N"], s["K"]
    weights = {
        "gate": draw(N, K, seed=2, over=K),
        "up": draw(N, K, seed=3, over=K),
        "gate_bias": draw(N, seed=4),
        "up_bias": draw(N, seed=5),
    }

    def call(ops, x, *, gate, up, gate_bias, up_bias) -> Tensor:
        return layers.gated(x, ops, (gate, up), (gate_bias, up_bias), s["activation"])

    return Given(call, (draw(M, K),), weights, ("gate", "up"))


def layer_norm(s: Shape, draw: Draw, case: "Case") -> Given:
    def call(ops, x, *, weight, bias) -> Tensor:
        return ops.layer_norm(x, weight, bias, EPS)

    weights = dict(weight=draw(s["N"], seed=2), bias=draw(s["N"], seed=3))
    return Given(call, (draw(s["M"], s["N"]),), weights)


def attention(s: Shape, draw: Draw, case: "Case") -> Given:
    """With the rotary positions, and the mask of images of several sizes, that the model has."""
    model, weights = case.of.model, {}
    # as the runtime has them: views of one product
    qkv = draw(s["B"], s["N"], 3, s["H"], s["D"])
    if model.rope:
        side = model.image // model.patch
        rope = rope_table((side, side), rope_frequencies(s["D"], ROPE_THETA))
        weights["rope"] = rope.to(qkv.device)
    found = case.of.inputs(model, s["B"]).get("pixel_attention_mask")
    if found is not None:
        weights["mask"] = found.bool().to(qkv.device)

    def call(ops, q, k, v, **places: Tensor) -> Tensor:
        return ops.attention(q, k, v, s["D"] ** -0.5, **places)

    return Given(call, qkv.unbind(2), weights)


def patch_embed(s: Shape, draw: Draw, case: "Case") -> Given:
    side, K = s["P"] * s["G"], s["C"] * s["P"] ** 2
    weights = {
        "weight": draw(s["D"], K, seed=2, over=K),
        "bias": draw(s["D"], seed=3),
        "pos": draw(s["G"] ** 2, s["D"], seed=4),
    }
    if s["R"]:
        weights["prefix"] = draw(s["R"], s["D"], seed=5)

    def call(ops, pixels, *, weight, bias, pos, prefix=None) -> Tensor:
        return ops.patch_embed(pixels, weight, bias, prefix, pos, s["P"])

    return Given(call, (draw(s["B"], s["C"], side, side),), weights)


GIVEN: Mapping[str, Callable[[Shape, Draw, "Case"], Given]] = {
    "linear": linear,
    "linear_norm": linear_norm,
    "gated": gated,
    "layer_norm": layer_norm,
    "attention": attention,
    "patch_embed": patch_embed,
}
