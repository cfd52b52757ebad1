"""What is tuned: the distinct linear and attention operations of models, each with its inputs, its candidates, and
the answer to whether a candidate's result is right.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_fast.kernels import attention, linear, tables
from vit_fast.kernels.tuning import Gpu, dtype_name, epilogue
from vit_fast.ops import not_for_kernels, torch_ops
from vit_fast.spec import ViTSpec
from vit_fast.workload import MODELS, Model, Operation, operations

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROWS, IMAGES = 2048, 4  # of a result that are held against float64, first and last among them


@dataclass(frozen=True)
class _Checkpoint(Model):
    """A model whose images need not be square."""

    down: int = 0
    across: int = 0

    @property
    def patches(self) -> int:
        return self.down * self.across


def model_named(source: str) -> Model:
    """A name in workload.MODELS, a folder or a hub id, whose checkpoint is loaded to read its sizes.

    OSError or ValueError as ViT.from_pretrained; ValueError for a model that the kernels do not take.
    """
    if source in MODELS and not os.path.isdir(source):
        return MODELS[source]
    if "/" not in source and not os.path.isdir(source):
        raise ValueError(
            f"{source!r} is no known model: expected one of {', '.join(MODELS)}, a folder that save_pretrained "
            "wrote, or a hub id 'name/model'"
        )
    from vit_fast.model import ViT

    return model_of(source, ViT.from_pretrained(source, device="cpu").spec)


def model_of(name: str, spec: ViTSpec) -> Model:
    """A spec -> the same as a row of workload.MODELS. ValueError where there is none for it."""
    why = not_for_kernels(torch.bfloat16, spec.head_dim)
    if not why and spec.inner_dim != spec.dim:
        why = f"its heads are {spec.inner_dim} wide, its tokens {spec.dim}: only equal widths are tuned"
    if why:
        raise ValueError(f"{name!r} cannot be tuned: {why}")
    down, across = spec.grid()
    sizes = (spec.dim, spec.depth, spec.heads, spec.mlp_dim, spec.activation, spec.prefix_tokens)
    return _Checkpoint(name, spec.image_size[0], spec.patch, *sizes, down, across)


@dataclass(frozen=True)
class Case:
    """One operation at one shape, with the fields that tables.FIELDS names."""

    op: str
    shape: Mapping[str, int | str]
    activation: str | None = None
    residual: bool = False

    @property
    def name(self) -> str:
        return f"{self.op} " + " ".join(f"{k}={v}" for k, v in self.shape.items())

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.shape["dtype"]]

    @property
    def nbytes(self) -> int:
        """Of one set of inputs."""
        s = self.shape
        if self.op == "linear":
            M, N, K = s["M"], s["N"], s["K"]
            values = M * K + N * K + N + M * N * self.residual
        else:
            values = 3 * s["B"] * s["N"] * s["H"] * s["D"]
        return values * self.dtype.itemsize

    def rule(self, gpu: Gpu) -> Any:
        """The config that the kernel's own rule chooses."""
        return _module(self.op).launch_config(*self._choice(gpu))

    def candidates(self, gpu: Gpu) -> tuple[Any, ...]:
        return _module(self.op).candidates(*self._choice(gpu))

    def _choice(self, gpu: Gpu) -> tuple:
        s, itemsize = self.shape, self.dtype.itemsize
        if self.op == "attention":
            return s["Nq"], s["N"], s["D"], itemsize, gpu
        return s["M"], s["N"], s["K"], itemsize, gpu.bulk_copies and itemsize == 2, gpu


def _module(op: str):
    return {"linear": linear, "attention": attention}[op]


def cases_of(
    models: Iterable[Model], batches: Sequence[int], dtypes: Iterable[torch.dtype]
) -> list[Case]:
    """Each operation once, what takes the largest share of a forward pass first."""
    found: dict[tuple, list] = {}
    for dtype in dtypes:
        for model in models:
            for batch in batches:
                forward = list(operations(model, batch, dtype.itemsize))
                whole = sum(o.count * o.flops for o in forward)
                for o in forward:
                    if o.op in tables.FIELDS:
                        case = _case(o, dtype_name(dtype))
                        key = (case.op, *case.shape.values())
                        found.setdefault(key, [case, 0.0])[1] += o.count * o.flops / whole
    return [case for case, _ in sorted(found.values(), key=lambda f: -f[1])]


def _case(o: Operation, dtype: str) -> Case:
    if o.op == "attention":
        return Case(o.op, {**o.shape, "dtype": dtype})
    activation, residual = o.shape["activation"], o.shape["residual"]
    shape = {name: o.shape[name] for name in ("M", "N", "K")}
    shape |= {"dtype": dtype, "epilogue": epilogue(activation, residual)}
    return Case(o.op, shape, activation, residual)


@dataclass(frozen=True)
class Inputs:
    """Input sets of a case on a device: random, all of one shape."""

    case: Case
    operands: tuple[tuple[Any, ...], ...]  # as the kernel's launch takes them, a set each

    @property
    def sets(self) -> int:
        return len(self.operands)

    def launch(self, config: Any, i: int) -> Tensor:
        return _module(self.case.op).launch(*self.operands[i], config=config)

    def why_wrong(self, config: Any) -> str:
        """What is wrong with this config's result, or "". What the launch raises is the caller's."""
        with _poisoned():
            y = self.launch(config, 0)
        if not y.isfinite().all():
            return "its result is not finite, or not written everywhere"
        take, operands = self._some()
        exact = tuple(t.double() if isinstance(t, Tensor) else t for t in operands)
        if self.case.op == "linear":
            reference = linear.linear_ref(*exact)
            baseline = torch_ops().linear(*operands)
        else:
            reference = attention.attention_ref(*exact)
            baseline = torch_ops().attention(*operands)
        return why_inaccurate(y[take], reference, baseline)

    def _some(self) -> tuple[Tensor, tuple[Any, ...]]:
        """Which rows or images are held against float64, and the operands that they need."""
        operands = self.operands[0]
        x = operands[0]
        most = ROWS if self.case.op == "linear" else IMAGES
        take = torch.linspace(0, len(x) - 1, min(most, len(x)), device=x.device).round().long()
        if self.case.op == "attention":
            return take, (*(t[take] for t in operands[:3]), operands[3])
        x, weight, bias, activation, scale, residual = operands
        residual = None if residual is None else residual[take]
        return take, (x[take], weight, bias, activation, scale, residual)


def set_up(case: Case, device: torch.device, sets: int) -> Inputs:
    """Random inputs, whatever the sizes the results are about 1. torch.OutOfMemoryError where they do not fit."""
    draw = torch.Generator(device).manual_seed(0)
    s = case.shape

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device, dtype=case.dtype)

    def operands() -> tuple[Any, ...]:
        if case.op == "attention":
            q, k, v = randn(s["B"], s["N"], 3, s["H"], s["D"]).unbind(2)
            return q[:, : s["Nq"]], k, v, s["D"] ** -0.5
        M, N, K = s["M"], s["N"], s["K"]
        weight = randn(N, K).div_(K**0.5)
        residual = randn(M, N) if case.residual else None
        return randn(M, K), weight, randn(N), case.activation, None, residual

    return Inputs(case, tuple(operands() for _ in range(sets)))


def why_inaccurate(y: Tensor, reference: Tensor, baseline: Tensor) -> str:
    """The project's rule: at most twice as far from the float64 reference as PyTorch in the same dtype, plus a unit.

    In the largest error of all, and in the relative RMS error of the worst row.
    """
    eps = torch.finfo(y.dtype).eps

    def errors(t: Tensor) -> tuple[float, float]:
        distance = (t.double() - reference).flatten(0, -2)
        size = reference.flatten(0, -2).square().mean(1).sqrt()
        size = size.clamp_min(eps * float(size.square().mean().sqrt()))
        row = (distance.square().mean(1).sqrt() / size).max()
        return float(distance.abs().max()), float(row)

    units = eps * float(reference.abs().max()), eps
    for what, error, torch_error, unit in zip(
        ("largest error", "relative error of the worst row"), errors(y), errors(baseline), units
    ):
        allowed = 2 * torch_error + unit
        if not error <= allowed:
            return f"its {what} is {error:.3g}, allowed is {allowed:.3g}"
    return ""


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """New memory holds NaN: what a kernel does not write cannot pass for what an earlier one wrote there."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
