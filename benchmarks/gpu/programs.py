"""The operations of a model on random inputs: ours, the vendor's, and the definition that both are judged by."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.results import ROOT
from benchmarks.gpu.setting import Setting
from vit_fast.accuracy import distances
from vit_fast.kernels import (
    attention,
    layer_norm,
    linear,
    linear_gated,
    linear_norm,
    patch_embed,
)
from vit_fast.ops import torch_ops
from vit_fast.workload import Operation

# the awkward tensors have one home
sys.path.insert(0, str(ROOT / "tests"))

Result = Tensor | tuple[Tensor, ...]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


class Kernel(NamedTuple):
    """launch(*inputs, ...) is ours, ref(*float64 inputs) the definition, torch(*inputs) PyTorch's own result.

    Each gives a tensor, or a tuple of them.
    """

    launch: Callable[..., Result]
    ref: Callable[..., Result]
    torch: Callable[..., Result]


def linear_norm_in_pytorch(x, w, b, scale, residual, norm_w, norm_b, eps) -> tuple[Tensor, Tensor]:
    y = torch_ops().linear(x, w, b, None, scale, residual)
    return y, torch_ops().layer_norm(y, norm_w, norm_b, eps)


def gated_in_pytorch(x, gate, up, gate_bias, up_bias, activation) -> Tensor:
    linear = torch_ops().linear
    return linear(x, gate, gate_bias, activation) * linear(x, up, up_bias)


KERNELS = {
    "linear": Kernel(linear.launch, linear.linear_ref, torch_ops().linear),
    "linear_norm": Kernel(linear_norm.launch, linear_norm.linear_norm_ref, linear_norm_in_pytorch),
    "gated": Kernel(linear_gated.launch, linear_gated.linear_gated_ref, gated_in_pytorch),
    "attention": Kernel(attention.launch, attention.attention_ref, torch_ops().attention),
    "layer_norm": Kernel(layer_norm.launch, layer_norm.layer_norm_ref, torch_ops().layer_norm),
    "patch_embed": Kernel(patch_embed.launch, patch_embed.patch_embed_ref, torch_ops().patch_embed),
}


def label(operation: Operation, dtype: str) -> str:
    """Names the shape, whichever model it is of."""
    s = operation.shape
    match operation.op:
        case "linear" | "gated":
            words = f"M{s['M']} N{s['N']} K{s['K']}"
            words += f" {s['activation']}" if s["activation"] else ""
            words += " residual" if s.get("residual") else ""
        case "linear_norm":
            words = f"M{s['M']} N{s['N']} K{s['K']}"
        case "attention":
            words = f"B{s['B']} H{s['H']} N{s['N']} D{s['D']}"
        case "layer_norm":
            words = f"M{s['M']} N{s['N']}"
        case "patch_embed":
            words = f"B{s['B']} G{s['G']} P{s['P']} D{s['D']} {'uint8' if s['uint8'] else 'float'}"
    return f"{operation.op} {words} {dtype}"


def inputs(setting: Setting, op: str, shape: Mapping[str, Any], dtype: str, seed: int = 0) -> tuple:
    """Arguments of KERNELS[op].launch for a shape of workload.Operation: new random values for every seed."""
    draw = torch.Generator(setting.device).manual_seed(seed)
    kind = DTYPES[dtype]

    def randn(*size: int, over: float = 1.0) -> Tensor:
        x = torch.randn(size, generator=draw, device=setting.device)
        return (x / over**0.5).to(kind)

    s = shape
    match op:
        case "linear":
            x, w, b = randn(s["M"], s["K"]), randn(s["N"], s["K"], over=s["K"]), randn(s["N"])
            return x, w, b, s["activation"], None, randn(s["M"], s["N"]) if s["residual"] else None
        case "gated":
            x, w, b = (
                randn(s["M"], s["K"]),
                randn(2 * s["N"], s["K"], over=s["K"]),
                randn(2 * s["N"]),
            )
            return x, *w.split(s["N"]), *b.split(s["N"]), s["activation"]
        case "linear_norm":
            x, w, b = randn(s["M"], s["K"]), randn(s["N"], s["K"], over=s["K"]), randn(s["N"])
            return x, w, b, None, randn(s["M"], s["N"]), randn(s["N"]), randn(s["N"]), 1e-6
        case "attention":
            q, k, v = randn(s["B"], s["N"], 3, s["H"], s["D"]).unbind(2)
            return q[:, : s["Nq"]], k, v, s["D"] ** -0.5
        case "layer_norm":
            return randn(s["M"], s["N"]), randn(s["N"]), randn(s["N"]), 1e-6
        case "patch_embed":
            side, pixels = s["P"] * s["G"], s["C"] * s["P"] ** 2
            size = (s["B"], s["C"], side, side)
            image = randn(*size)
            if s["uint8"]:
                image = torch.randint(0, 256, size, generator=draw, device=setting.device)
                image = image.to(torch.uint8)
            # folded filters of bytes carry the 1 / (255 * std) of the normalisation
            w = randn(s["D"], pixels, over=pixels * (4096 if s["uint8"] else 1))
            prefix = randn(s["R"], s["D"]) if s["R"] else None
            return image, w, randn(s["D"]), prefix, randn(s["G"] ** 2, s["D"]), s["P"]
    raise ValueError(f"no operation {op!r}: {', '.join(KERNELS)}")


def doubled(arguments: tuple) -> list:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def judge(y: Tensor, ref: Tensor, baseline: Tensor) -> dict[str, Any]:
    """The row of a comparison by the one rule of tests/accuracy.py. wrong: what broke it, "" where nothing did."""
    try:
        largest, row = both = distances(y, ref, baseline)
    except AssertionError as error:
        return {"wrong": str(error)}
    broken = [f"{what} {error:.3g}, allowed {most:.3g}" for what, error, most in both if not error <= most]  # fmt: skip
    return {
        "error": largest.error,
        "allowed": largest.allowed,
        "row_error": row.error,
        "row_allowed": row.allowed,
        "wrong": "; ".join(broken),
    }


def worst(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The row that comes closest to what is allowed, or passes it; all that is wrong."""
    rows = list(rows)
    wrong = "; ".join(dict.fromkeys(r["wrong"] for r in rows if r["wrong"]))
    return {**max(rows, key=_share), "wrong": wrong}


def _share(row: dict[str, Any]) -> float:
    """How much of what is allowed the errors are; nothing where they could not be told."""
    pairs = ("error", "allowed"), ("row_error", "row_allowed")
    return max((row[e] / row[a] for e, a in pairs if row.get(a)), default=0.0)


def each(result: Result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def check(op: str, arguments: tuple, result: Result) -> dict[str, Any]:
    """The row of what a kernel made of these arguments, against float64; of many images the first and the last."""
    kernel = KERNELS[op]
    baseline = kernel.torch(*arguments)
    if op == "attention" and len(result) > 2:
        ends = [0, -1]
        arguments = (*(t[ends] for t in arguments[:3]), arguments[3])
        result, baseline = result[ends], baseline[ends]
    ref = kernel.ref(*doubled(arguments))
    return worst(judge(*three) for three in zip(each(result), each(ref), each(baseline)))


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend) -> Tensor:
    """[B, N, H, D] -> [B, N, H * D] as transformers calls it: heads by transposition, nothing copied."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def vendor(op: str, arguments: tuple) -> dict[str, Callable[[], Tensor]]:
    """The vendor's ways to do it, each on these arguments; bare GEMMs, without the elementwise rest."""
    match op:
        case "linear" | "linear_norm":
            x, w, b = arguments[:3]
            y = x.new_empty(len(x), len(w))
            return {
                "cuBLAS mm": lambda: torch.mm(x, w.T, out=y),
                "cuBLAS addmm": lambda: torch.addmm(b, x, w.T, out=y),
            }
        case "gated":
            x, w = arguments[0], torch.cat(arguments[1:3])
            y = x.new_empty(len(x), len(w))
            return {"cuBLAS mm": lambda: torch.mm(x, w.T, out=y)}
        case "attention":
            # HF's q, k and v come from three projections: each [B, N, H, D] and dense
            q, k, v = (t.contiguous() for t in arguments[:3])
            return {
                f"SDPA {name}": lambda backend=backend: sdpa(q, k, v, arguments[3], backend)
                for name, backend in BACKENDS.items()
            }
    return {"PyTorch": lambda: KERNELS[op].torch(*arguments)}


def missing(call: Callable[[], object]) -> str:
    """Why PyTorch has nothing for these tensors on this device, in its own words, or "".

    A lack of memory and an error of CUDA's, which spoils the process, are not for this answer: RuntimeError.
    """
    try:
        call()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        # each library says it in words of its own: no kernel, no execution plan, no such head_dim
        return f"{str(error).splitlines()[0]}"[:300] if str(error) else type(error).__name__
    return ""
