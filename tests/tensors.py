"""Awkward tensors for the kernel tests, on the device where kernels run: the GPU, else the CPU."""

import torch
from torch import Tensor

from vit_fast.kernels.tuning import KNOWN, Gpu, gpu_of

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
# the interpreter computes bf16 products wrongly
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if CUDA else ())

VALUES = ("normal", "tiny", "constant rows", "one channel 1000x")
LAYOUTS = ("contiguous", "rows sliced", "columns sliced", "transposed", "unaligned")


def values(kind: str, *shape: int, seed: int = 0) -> Tensor:
    """float64 [..., N] of one kind."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE)
    match kind:
        case "tiny":
            return 1e-3 * x
        case "constant rows":
            return x[..., :1].expand(shape).clone()
        case "one channel 1000x":
            x[..., shape[-1] // 3] *= 1000
    return x


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout of memory; what lies between them is NaN."""
    *lead, n = x.shape
    match layout:
        case "rows sliced":
            wide = x.new_full((*lead[:-1], 2 * lead[-1], n), float("nan"))
            view = wide[..., ::2, :]
        case "columns sliced":
            view = x.new_full((*lead, n + 16), float("nan"))[..., 8 : n + 8]
        case "transposed":
            view = x.new_full((*lead[:-1], n, lead[-1]), float("nan")).transpose(-1, -2)
        case "unaligned":
            view = x.new_full((x.numel() + 1,), float("nan"))[1:].view(x.shape)
        case _:
            return x.contiguous()
    view.copy_(x)
    return view


def packed(
    B: int = 2, N: int = 60, H: int = 3, Dh: int = 64, dtype: torch.dtype = torch.float32, seed=0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, N, H, Dh], views of one tensor as qkv makes it, on the CPU."""
    return (
        values("normal", B, N, 3 * H * Dh, seed=seed).cpu().to(dtype).view(B, N, 3, H, Dh).unbind(2)
    )


def target(arch: str) -> Gpu:
    """The GPU whose rules a launch follows; hardware copies by descriptor only where this GPU has them."""
    gpu = KNOWN[arch]
    return gpu_of(DEVICE) if CUDA and gpu.bulk_copies else gpu


def f64(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]
