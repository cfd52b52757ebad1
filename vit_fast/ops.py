"""Ops: the operations of a Vision Transformer as one value per backend.

`torch_ops()` is the definition in plain PyTorch, `cpu_ops()` the fast table of a CPU, `triton_ops()` the kernels,
and a mixture is one replace():

    ops = dataclasses.replace(triton_ops(), attention=torch_ops().attention)
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_fast.kernels.rotation import rotate


@dataclass(frozen=True)
class Folding:
    """LayerNorm without a pass of its own: its rows' statistics go from the layer before it to the one behind it.

    statistics(x [..., D]) -> [rows, D / 64, 2] in fp32, of x's rows.
    linear_statistics(x [..., K], weight [N, K], bias, scale, residual) -> y as `linear` gives it, and its statistics.
    linear(x [..., K], stats, weight, column_sums [N], bias [N], eps, activation=None) -> [..., N]: `linear` of
        LayerNorm(x), with what weights.fold_norm_weight and fold_norm_bias made of the weights of both.
    """

    statistics: Callable[[Tensor], Tensor]
    linear_statistics: Callable[..., tuple[Tensor, Tensor]]
    linear: Callable[..., Tensor]


@dataclass(frozen=True)
class Ops:
    """What a ViT is computed with. Results are new tensors in x.dtype; sums are in fp32.

    patch_embed(pixels, weight, bias, prefix, pos, patch) -> [B, R + P, D], P patches in row order behind R rows.
        pixels [B, C, H, W], any strides, in weight.dtype; or uint8, and then pixels - 128 is what is multiplied.
        weight [D, C * patch * patch], bias [D] or None (may be fp32), prefix [R, D] or None: finished rows,
        pos [P, D] or None: added to the patches.
    layer_norm(x [..., N], weight [N], bias [N], eps) -> [..., N]
    linear(x [..., K], weight [N, K], bias=None, activation=None, scale=None, residual=None) -> [..., N],
        residual + scale * activation(x @ weight^T + bias) with the activations of spec.ACTIVATIONS, scale [N].
    attention(q [B, Nq, H, Dh], k, v [B, N, H, Dh], scale, mask=None, rope=None) -> [B, Nq, H * Dh],
        softmax(scale * q @ k^T) @ v.
        mask: bool [B, N], any strides, or None: the keys that count. Each image has at least one, without which its
        rows may be anything; what the others hold is finite, and of no effect.
        rope: float32 [2, P, Dh / 2], cosines and sines, or None: the last P of the N tokens are patches, and their q
        and k turn by it, lane i with lane i + Dh / 2, in fp32, rounded once. q is of the first Nq of the N tokens.
    linear_norm(x, weight, bias, scale, residual, norm_weight, norm_bias, eps) -> y and layer_norm(y), both [..., N],
        y as `linear` gives it without activation. None: `linear`, then `layer_norm`; an ablation of one of these two
        sets it to None.
    pack(weight [N, K]) -> what `linear` also takes in its place, and is faster with; it has nbytes and is_cuda, as a
        tensor has. None: nothing to gain.
    folding: LayerNorm folded into the linear layer behind it. None: it is an operation of its own.
    gated(x [..., K], gate [F, K], up [F, K], gate_bias [F] or None, up_bias [F] or None, activation) -> [..., F],
        activation(x @ gate^T + gate_bias) * (x @ up^T + up_bias); gate and up may be halves of one tensor. None:
        `linear` twice, and the product.
    """

    name: str
    patch_embed: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    differentiable: bool  # autograd works through every operation
    linear_norm: Callable[..., tuple[Tensor, Tensor]] | None = None
    pack: Callable[[Tensor], Any] | None = None
    folding: Folding | None = None
    gated: Callable[..., Tensor] | None = None


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
}


def _patch_embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prefix: Tensor | None,
    pos: Tensor | None,
    patch: int,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    B, C, H, W = pixels.shape
    rows, columns = H // patch, W // patch
    if pixels.dtype == torch.uint8:
        pixels = (pixels.to(torch.int16) - 128).to(weight.dtype)
    x = pixels.reshape(B, C, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    # a GEMM: PyTorch's convolution takes 1.4 times as long on a CPU
    x = linear(x.reshape(B, rows * columns, C * patch * patch), weight)
    for term in (bias, pos):
        if term is not None:
            x = x + term
    x = x.to(weight.dtype)
    return x if prefix is None else torch.cat((prefix.expand(B, -1, -1), x), dim=1)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    y = F.linear(x, weight, bias)
    if activation is not None:
        y = _ACTIVATIONS[activation](y)
    if scale is not None:
        y = y * scale
    return y if residual is None else residual + y


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    rope: Tensor | None = None,
    unmasked: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None,
) -> Tensor:
    if rope is not None:
        q, k = rotate(q, rope, k.shape[1]), rotate(k, rope, k.shape[1])
    if mask is None and unmasked is not None:
        return unmasked(q, k, v, scale)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, N, Dh]
    mask = None if mask is None else mask[:, None, None]  # [B, 1, 1, N]
    o = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return o.transpose(1, 2).flatten(2)


_TORCH = Ops("torch", _patch_embed, _layer_norm, _linear, _attention, differentiable=True)


def torch_ops() -> Ops:
    """The definition, in public PyTorch functions: any device, any floating dtype, autograd."""
    return _TORCH


# made once; lists, because torch.compile warns of functools caches
_CPU: list[Ops] = []
_TRITON: dict[bool, Ops] = {}


def cpu_ops() -> Ops:
    """torch_ops() with oneDNN's linear layers and attention: CPU tensors in fp32 and bf16. See choose_ops for where."""
    if _CPU:
        return _CPU[0]
    from vit_fast.onednn import linear, onednn_linear, pack
    from vit_fast.onednn_attention import onednn_attention

    patch_embed = functools.partial(_patch_embed, linear=onednn_linear)
    attention = functools.partial(_attention, unmasked=onednn_attention)
    ops = Ops("cpu", patch_embed, _layer_norm, linear, attention, False, pack=pack)
    _CPU.append(ops)
    return ops


def triton_ops(folded: bool = False) -> Ops:
    """The kernels: CUDA, or CPU tensors in Triton's interpreter. ImportError without triton.

    `folded`: LayerNorm folded into the linear layers behind it, five launches a block instead of seven, and a second
    copy of the weights of qkv and fc1. Not for rows that are constant but for rounding (kernels/folding.py).
    """
    if folded not in _TRITON:
        from vit_fast.kernels.attention import attention
        from vit_fast.kernels.folding import row_statistics
        from vit_fast.kernels.layer_norm import layer_norm
        from vit_fast.kernels.linear import linear
        from vit_fast.kernels.linear_folded import linear_folded, linear_statistics
        from vit_fast.kernels.linear_gated import linear_gated
        from vit_fast.kernels.linear_norm import linear_norm
        from vit_fast.kernels.patch_embed import patch_embed

        folding = Folding(row_statistics, linear_statistics, linear_folded) if folded else None
        name = "triton, LayerNorm folded" if folded else "triton"
        _TRITON[folded] = Ops(
            name, patch_embed, layer_norm, linear, attention, False, linear_norm, None, folding,
            gated=linear_gated,
        )  # fmt: skip
    return _TRITON[folded]


CPU = ("auto", "plain")


def choose_ops(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    cpu: str = "auto",
) -> tuple[Ops, str]:
    """The table for a model on `device`, and why it is that one. `cpu` "plain": PyTorch's own operations on a CPU."""
    if device.type == "cpu":
        if cpu == "plain":
            return torch_ops(), "plain PyTorch was asked for, cpu='plain'"
        linear, attention = _why_not_onednn(dtype)
        if linear:
            return torch_ops(), linear
        linear = "oneDNN linear layers on packed weights"
        if attention:
            return cpu_ops(), f"{linear}, PyTorch's attention: {attention}"
        return cpu_ops(), f"{linear}, oneDNN attention"
    runs, why = _runs_triton(device)
    if runs and (refusal := not_for_kernels(dtype, head_dim)):
        runs, why = False, refusal
    if not runs:
        return torch_ops(), why
    folded = dtype != torch.float32 and _folding_wins(device)
    return triton_ops(folded), why


def not_for_kernels(dtype: torch.dtype, head_dim: int) -> str:
    """Why the kernels do not take such a model, or ""."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels are for fp32, fp16 and bf16, the model is {dtype}"
    if head_dim > 128:
        return f"the kernels are for head_dim up to 128, the model has {head_dim}"
    return ""


@torch.compiler.assume_constant_result
def _why_not_onednn(dtype: torch.dtype) -> tuple[str, str]:
    """Of the linear layers, and of attention."""
    from vit_fast import onednn, onednn_attention

    return onednn.why_not(dtype), onednn_attention.why_not(dtype)


@torch.compiler.assume_constant_result
def _folding_wins(device: torch.device) -> bool:
    """Whether `vit-fast tune` has found it so on this GPU."""
    from vit_fast.kernels.tuning import gpu_of, switch

    return switch(gpu_of(device), "fold")


@torch.compiler.assume_constant_result
def _runs_triton(device: torch.device) -> tuple[bool, str]:
    # apart from the look itself, which torch.compile cannot trace
    return _look_for_triton(device)


@functools.lru_cache
def _look_for_triton(device: torch.device) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, f"the kernels are for CUDA, the device is {device.type}"
    if torch.version.hip is not None:
        return False, f"the kernels are not tested on ROCm (HIP {torch.version.hip})"
    major, minor = torch.cuda.get_device_capability(device)
    gpu = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    if major < 8:
        return False, f"the kernels need compute capability 8.0, this is {gpu}"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    from vit_fast.kernels import trial

    why = trial.why_not(device)
    return not why, f"{gpu}: {why}" if why else gpu
