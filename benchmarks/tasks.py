"""Case -> Task, layer by layer: operation, block, whole model, ablation, end to end (cold_start.py is apart)."""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vit_fast import ViT
from vit_fast.layers import first
from vit_fast.ops import Ops, choose_ops, torch_ops

from . import photographs, subjects
from .registry import Case
from .task import DTYPES, Program, Task, accelerated, output_of


class Reader(nn.Module):
    """transformers' model as one tensor out: that field of its answer. names: what its inputs are, in order."""

    def __init__(self, hf: PreTrainedModel, field: str, names: tuple[str, ...]) -> None:
        super().__init__()
        self.hf, self.field, self.names = hf, field, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.hf(**dict(zip(self.names, inputs, strict=True))), self.field)


class Layer(nn.Module):
    """The first block of transformers' model, [B, N, D] -> [B, N, D]."""

    def __init__(self, hf: PreTrainedModel, depth: int) -> None:
        super().__init__()
        lists = [m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        # its attention reads the config that all share
        self.hf, (self.layer, *_) = hf, lists[0]
        takes_mask = "attention_mask" in inspect.signature(self.layer.forward).parameters
        self.more = {"attention_mask": None} if takes_mask else {}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, **self.more)


def with_sdpa(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    if hasattr(twin, "hf"):
        twin.hf.set_attn_implementation("sdpa")
    return twin


def table(device: torch.device, dtype: torch.dtype, head_dim: int) -> Ops:
    return choose_ops(device, dtype, head_dim)[0]


def bare(module: Reader, what: str, ops: Ops | None = None) -> Program:
    vit = ViT.from_hf(module.hf)
    vit.ops = ops
    return Program(partial(answer, vit, what))


def answer(vit: ViT, what: str, *inputs: Tensor) -> Tensor:
    pixels = inputs[0]
    if len(inputs) > 1:  # images of several sizes
        pixels, mask, shapes = inputs
        pixels = vit.patches(pixels, shapes, mask)
    return output_of(vit, what, pixels)


def steps(target: Ops) -> Iterator[tuple[str, Ops]]:
    """From PyTorch's operations to `target`, one field of Ops after the other: (its name in the table, the table)."""
    ops = replace(torch_ops(), differentiable=target.differentiable)
    yield "ViT, PyTorch operations", ops
    for f in fields(Ops):
        if f.name in ("name", "differentiable"):
            continue
        new = getattr(target, f.name)
        if new is not getattr(ops, f.name):
            ops = replace(ops, **{f.name: new})
            yield f"+ {f.name}", ops


def steps_of(case: Case, device: torch.device) -> list[tuple[str, Ops]]:
    return list(steps(table(device, DTYPES[case.dtype], case.of.model.head_dim)))


def model(case: Case, device: torch.device) -> Task:
    dtype = DTYPES[case.dtype]
    hf = subjects.make(case.subject, case.what).to(device, dtype)
    given = subjects.inputs(case.subject, case.batch)
    module = Reader(hf, subjects.FIELDS[case.what], tuple(given))
    inputs = tuple(x.to(device, dtype if x.is_floating_point() else None) for x in given.values())
    ours: dict[str, Callable[[], Program]] = {
        "vit-fast": lambda: accelerated(with_sdpa(module)),
        "vit-fast ViT": partial(bare, module, case.what),
    }
    if case.layer == "ablation":
        ours = {name: partial(bare, module, case.what, ops) for name, ops in steps_of(case, device)}
    return Task(dtype, device, module, inputs, partial(with_sdpa, module), ours, by_image=True)


def block(case: Case, device: torch.device) -> Task:
    dtype, m = DTYPES[case.dtype], case.of.model
    hf = subjects.make(case.subject, "tokens").to(device, dtype)
    module = Layer(hf, m.depth)
    x = random(case.batch, m.tokens, m.dim).to(device, dtype)

    def ours() -> Program:
        vit, ops = ViT.from_hf(hf), table(device, dtype, m.head_dim)
        one = vit.blocks[0]
        return Program(lambda x: one(x, first(one.norm1, x, ops), ops, None)[0])

    return Task(dtype, device, module, (x,), partial(with_sdpa, module), {"vit-fast": ours})


class Applied(nn.Module):
    """One operation of a table on weights of its own; what the input is, the call says."""

    def __init__(self, ops: Ops, op: str, weights: tuple[Tensor | None, ...], rest: tuple) -> None:
        super().__init__()
        self.ops, self.op, self.rest = ops, op, rest
        for i, w in enumerate(weights):
            self.register_buffer(f"w{i}", w)
        self.count = len(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        weights = [getattr(self, f"w{i}") for i in range(self.count)]
        if self.op == "linear":
            x, *residual = inputs
            return self.ops.linear(x, *weights, self.rest[0], None, *residual)
        return getattr(self.ops, self.op)(*inputs, *weights, *self.rest)

    def on(self, ops: Ops) -> Program:
        weights = tuple(getattr(self, f"w{i}") for i in range(self.count))
        if ops.pack is not None and self.op == "linear":
            weights = (ops.pack(weights[0]), *weights[1:])
        return Program(Applied(ops, self.op, weights, self.rest))


def operation(case: Case, device: torch.device) -> Task:
    dtype, o = DTYPES[case.dtype], case.operation
    s = o.shape
    ops = table(device, dtype, case.of.model.head_dim)

    def weight(*shape: int, over: float = 1.0) -> Tensor:
        return (random(*shape, seed=2) / over**0.5).to(device, dtype)

    match o.op:
        case "linear":
            inputs = (random(s["M"], s["K"]),)
            if s["residual"]:
                inputs += (random(s["M"], s["N"], seed=3),)
            weights, rest = (
                (weight(s["N"], s["K"], over=s["K"]), weight(s["N"])),
                (s["activation"],),
            )
        case "layer_norm":
            inputs = (random(s["M"], s["N"]),)
            weights, rest = (weight(s["N"]), weight(s["N"])), (1e-6,)
        case "attention":
            # as the runtime has them: views of one product
            qkv = random(s["B"], s["N"], 3, s["H"], s["D"]).to(device, dtype)
            inputs = qkv.unbind(2)
            weights, rest = (), (s["D"] ** -0.5,)
        case "patch_embed":
            side, K = s["P"] * s["G"], s["C"] * s["P"] ** 2
            inputs = (random(s["B"], s["C"], side, side),)
            prefix = weight(s["R"], s["D"]) if s["R"] else None
            weights = weight(s["D"], K, over=K), weight(s["D"]), prefix, weight(s["G"] ** 2, s["D"])
            rest = (s["P"],)
        case _:
            raise ValueError(f"no case for the operation {o.op}")
    module = Applied(torch_ops(), o.op, weights, rest)
    inputs = tuple(x.to(device, dtype) for x in inputs)
    ours = {"vit-fast": lambda: module.on(ops)}
    return Task(dtype, device, module, inputs, lambda: copy.deepcopy(module), ours)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TASKS = {
    "operation": operation,
    "block": block,
    "model": model,
    "ablation": model,
    "end to end": photographs.task,
}
