"""The operations of a model on random inputs: ours, the vendor's, and the definition that both are judged by."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.results import ROOT
from benchmarks.gpu.setting import Setting
from vit_fast.kernels import attention, layer_norm, linear, patch_embed
from vit_fast.ops import torch_ops
from vit_fast.workload import Operation

# the tolerance rule and the awkward tensors have one home
sys.path.insert(0, str(ROOT / "tests"))
from accuracy import distances

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


class Kernel(NamedTuple):
    """launch(*inputs, ...) is ours, ref(*float64 inputs) the definition, torch(*inputs) PyTorch's own result."""

    launch: Callable[..., Tensor]
    ref: Callable[..., Tensor]
    torch: Callable[..., Tensor]


KERNELS = {
    "linear": Kernel(linear.launch, linear.linear_ref, torch_ops().linear),
    "attention": Kernel(attention.launch, attention.attention_ref, torch_ops().attention),
    "layer_norm": Kernel(layer_norm.launch, layer_norm.layer_norm_ref, torch_ops().layer_norm),
    "patch_embed": Kernel(patch_embed.launch, patch_embed.patch_embed_ref, torch_ops().patch_embed),
}


def label(operation: Operation, dtype: str) -> str:
    """Names the shape, whichever model it is of."""
    s = operation.shape
    match operation.op:
        case "linear":
            words = f"M{s['M']} N{s['N']} K{s['K']}"
            words += f" {s['activation']}" if s["activation"] else ""
            words += " residual" if s["residual"] else ""
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
    """The row of a comparison by the one rule of tests/accuracy.py: `wrong` says what broke it, "" where nothing did."""
    try:
        (largest, row) = distances(y, ref, baseline)
    except AssertionError as error:
        return {"wrong": str(error) or "not as the baseline"}
    broken = [f"{d.measure} {d.error:.3g}, allowed {d.allowed:.3g}" for d in (largest, row) if not d.error <= d.allowed]  # fmt: skip
    return {
        "error": largest.error,
        "allowed": largest.allowed,
        "row_error": row.error,
        "row_allowed": row.allowed,
        "wrong": "; ".join(broken),
    }


def check(op: str, arguments: tuple, launch: Callable[..., Tensor] | None = None) -> dict[str, Any]:
    """Ours (or `launch`) on these arguments against float64; of many images the first and the last."""
    kernel = KERNELS[op]
    y, baseline = (launch or kernel.launch)(*arguments), kernel.torch(*arguments)
    if op == "attention" and len(y) > 2:
        ends = [0, -1]
        arguments = (*(t[ends] for t in arguments[:3]), arguments[3])
        y, baseline = y[ends], baseline[ends]
    return judge(y, kernel.ref(*doubled(arguments)), baseline)


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: SDPBackend) -> Tensor:
    """[B, N, H, D] -> [B, N, H * D] as transformers calls it: heads by transposition, nothing copied."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def vendor(op: str, arguments: tuple) -> dict[str, Callable[[], Tensor]]:
    """The vendor's ways to do it, each on these arguments; bare GEMMs, without the elementwise rest."""
    match op:
        case "linear":
            x, w, b = arguments[:3]
            y = x.new_empty(len(x), len(w))
            return {
                "cuBLAS mm": lambda: torch.mm(x, w.T, out=y),
                "cuBLAS addmm": lambda: torch.addmm(b, x, w.T, out=y),
            }
        case "attention":
            # HF's q, k and v come from three projections: each [B, N, H, D] and dense
            q, k, v = (t.contiguous() for t in arguments[:3])
            return {
                f"SDPA {name}": lambda backend=backend: sdpa(q, k, v, arguments[3], backend)
                for name, backend in BACKENDS.items()
            }
    return {"PyTorch": lambda: KERNELS[op].torch(*arguments)}


def missing(call: Callable[[], object]) -> str:
    """Why PyTorch has no such attention for these tensors on this device, or ""."""
    try:
        call()
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            return str(error).splitlines()[0]
        raise
    return ""
