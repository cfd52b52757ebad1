"""Case -> Task, layer by layer: block, whole model and ablation; see operation.py, photographs.py and cold_start.py."""

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
from vit_fast.ops import Ops, torch_ops

from . import photographs, subjects
from .case import Case
from .operation import operation, random, table
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


TASKS = {
    "operation": operation,
    "block": block,
    "model": model,
    "ablation": model,
    "end to end": photographs.task,
}
