"""What is tuned: the distinct products and attention of models, each with its inputs, its candidates, and
the answer to whether a candidate's result is right.
"""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vit_fast.kernels import attention, attention_tiles, linear, linear_norm, linear_tiles
from vit_fast.kernels.tuning import Gpu, dtype_name
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
    sizes += spec.gated, spec.rope_theta is not None
    return _Checkpoint(name, spec.image_size[0], spec.patch, *sizes, down=down, across=across)


@dataclass(frozen=True)
class Case:
    """One operation at one shape, with the fields that tables.FIELDS names."""

    op: str
    shape: Mapping[str, int | str]
    activation: str | None = None

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
        if self.op == "attention":
            values = 3 * s["B"] * s["N"] * s["H"] * s["D"]
        else:
            M, N, K = s["M"], s["N"], s["K"]
            values = M * K + N * K + N + (M * N + 2 * N) * (self.op == "linear_norm")
        return values * self.dtype.itemsize

    def rule(self, gpu: Gpu) -> Any:
        """The config that the kernel's own rule chooses."""
        s, itemsize = self.shape, self.dtype.itemsize
        if self.op == "attention":
            B, H = s["B"], s["H"]
            c = attention_tiles.launch_config(s["Nq"], s["N"], s["D"], itemsize, gpu, B * H)
            return c if H % c.heads == 0 else replace(c, heads=1)
        rule = linear_tiles.launch_config if self.op == "linear" else linear_norm.launch_config
        return rule(s["M"], s["N"], s["K"], itemsize, self._descriptors(gpu), gpu)

    def candidates(self, gpu: Gpu) -> tuple[Any, ...]:
        s, itemsize = self.shape, self.dtype.itemsize
        if self.op == "attention":
            found = attention_tiles.candidates(s["Nq"], s["N"], s["D"], itemsize, gpu)
            return tuple(c for c in found if s["H"] % c.heads == 0)
        descriptors = self._descriptors(gpu)
        if self.op == "linear":
            return linear_tiles.candidates(s["M"], s["N"], s["K"], itemsize, descriptors, gpu)
        return linear_tiles.split_candidates(s["K"], itemsize, descriptors)

    def _descriptors(self, gpu: Gpu) -> bool:
        return gpu.bulk_copies and self.dtype.itemsize == 2


LAUNCH = {"linear": linear.launch, "linear_norm": linear_norm.launch, "attention": attention.launch}
EPS = 1e-6


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
                    # what tables.FIELDS can hold: gated layers, and attention with rotary positions or a mask, are
                    # launched as their rules say
                    if o.op == "linear" or (o.op == "attention" and not model.rope):
                        case = _case(o, dtype_name(dtype))
                        key = (case.op, *case.shape.values())
                        found.setdefault(key, [case, 0.0])[1] += o.count * o.flops / whole
    return [case for case, _ in sorted(found.values(), key=lambda f: -f[1])]


def _case(o: Operation, dtype: str) -> Case:
    if o.op == "attention":
        return Case(o.op, {**o.shape, "dtype": dtype})
    shape = {name: o.shape[name] for name in ("M", "N", "K")} | {"dtype": dtype}
    if o.shape["residual"]:
        # what ends half a block runs with the LayerNorm behind it
        return Case("linear_norm", shape)
    activation = o.shape["activation"]
    shape["epilogue"] = linear.epilogue_name(activation, None, None)
    return Case("linear", shape, activation)


@dataclass(frozen=True)
class Inputs:
    """Input sets of a case on a device: random, all of one shape."""

    case: Case
    operands: tuple[tuple[Any, ...], ...]  # as the kernel's launch takes them, a set each
    gpu: Gpu | None = None  # how it is launched, None for the device's own

    @property
    def sets(self) -> int:
        return len(self.operands)

    def launch(self, config: Any, i: int) -> Any:
        return LAUNCH[self.case.op](*self.operands[i], gpu=self.gpu, config=config)

    def why_wrong(self, config: Any) -> str:
        """What is wrong with this config's result, or "". What the launch raises is the caller's."""
        with _poisoned():
            results = self.launch(config, 0)
        results = results if isinstance(results, tuple) else (results,)
        if not all(y.isfinite().all() for y in results):
            return "its result is not finite, or not written everywhere"
        take, operands = self._some()
        exact = tuple(t.double() if isinstance(t, Tensor) else t for t in operands)
        ops, linear_of, norm = torch_ops(), operands[:3], operands[5:]
        if self.case.op == "attention":
            references = [attention.attention_ref(*exact)]
            baselines = [ops.attention(*operands)]
        elif self.case.op == "linear":
            references, baselines = [linear.linear_ref(*exact)], [ops.linear(*operands)]
        else:
            references = linear_norm.linear_norm_ref(*exact)
            y = ops.linear(*linear_of, None, *operands[3:5])
            baselines = [y, ops.layer_norm(y, *norm)]
        whys = (
            why_inaccurate(y[take], reference, baseline)
            for y, reference, baseline in zip(results, references, baselines)
        )
        return next(filter(None, whys), "")

    def _some(self) -> tuple[Tensor, tuple[Any, ...]]:
        """Which rows or images are held against float64, and the operands that they need."""
        operands = self.operands[0]
        x = operands[0]
        most = IMAGES if self.case.op == "attention" else ROWS
        take = torch.linspace(0, len(x) - 1, min(most, len(x)), device=x.device).round().long()
        if self.case.op == "attention":
            return take, (*(t[take] for t in operands[:3]), operands[3])
        if self.case.op == "linear":
            return take, (x[take], *operands[1:])
        x, weight, bias, scale, residual, *norm = operands
        return take, (x[take], weight, bias, scale, residual[take], *norm)


def set_up(case: Case, device: torch.device, sets: int, gpu: Gpu | None = None) -> Inputs:
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
        if case.op == "linear":
            return randn(M, K), weight, randn(N), case.activation
        return randn(M, K), weight, randn(N), None, randn(M, N), randn(N), randn(N), EPS

    return Inputs(case, tuple(operands() for _ in range(sets)), gpu)


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
        with warnings.catch_warnings():
            # cuBLAS warns of this mode, in which nothing but new memory matters here
            warnings.filterwarnings("ignore", message="(?s).*eterministic")
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
