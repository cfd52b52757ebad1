"""What the kernels would launch on a named GPU: a tuned table of it, in your cache or shipped, else their own rules.

The one place where the predictions ask the kernels. Tensors are taken to be contiguous and their rows aligned.
"""

import dataclasses

import torch
import triton

from vit_fast.kernels import (
    attention,
    linear,
    linear_folded,
    linear_gated,
    linear_norm,
    linear_tiles,
    patch_embed,
)
from vit_fast.kernels.tuning import Gpu, which_table

from ..hardware import Hardware
from .costs import MOST_BLOCKS, Program, Tile

_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def gpu_record(hw: Hardware) -> Gpu:
    """What the kernels' rules may know of this GPU."""
    return Gpu(hw.device, hw.arch, hw.sms, hw.smem_block_kb << 10)


def source(hw: Hardware) -> str:
    """Where the launch configs come from, in words."""
    found = which_table(gpu_record(hw))
    return "the rules" if found.kind == "rule" else f"{found.path}, measured {found.date}"


def switches(hw: Hardware) -> dict[str, bool]:
    """What was measured to be faster on: "pdl", "fold". Empty where nothing was."""
    return dict(which_table(gpu_record(hw)).switches)


def by_descriptors(hw: Hardware, dtype: str) -> bool:
    """Whether matrix products load by tensor descriptors, and so may ask for weights before they wait."""
    return gpu_record(hw).bulk_copies and _TORCH[dtype].itemsize == 2


def linear_tile(
    M: int, N: int, K: int, dtype: str, epilogue: str, hw: Hardware, behind: str = ""
) -> Tile:
    """The tile of a product with this epilogue ("bias", "gelu", "residual").

    behind: "norm" where LayerNorm is (linear_norm), "folded" where LayerNorm is folded into this product or the next.
    """
    if behind == "norm":
        args = M, N, K, _TORCH[dtype], by_descriptors(hw, dtype), True, gpu_record(hw)
        c = linear_norm.config_for(*args)
    else:
        choose = linear_folded.own_config if behind else linear.config_for
        args = M, N, K, _TORCH[dtype], epilogue, by_descriptors(hw, dtype), True, gpu_record(hw)
        c = choose(*args)
    if c.library:
        # cuBLAS says nothing of its tile; that of the configuration is the pass behind it
        size = _TORCH[dtype].itemsize
        rule = linear_tiles.launch_config(M, N, K, size, by_descriptors(hw, dtype), gpu_record(hw))
        c = dataclasses.replace(rule, library=True)
    return Tile(c.block_m, c.block_n, c.block_k, c.blocks_per_sm, c.splits, c.library)


def gated_tile(M: int, F: int, K: int, dtype: str, hw: Hardware) -> Tile:
    """linear_gated's tile; its columns are those of gate and of up."""
    args = M, F, K, _TORCH[dtype].itemsize, by_descriptors(hw, dtype), gpu_record(hw)
    c = linear_gated.launch_config(*args)
    return Tile(c.block_m, c.block_n, c.block_k, c.blocks_per_sm)


def patch_tile(M: int, D: int, itemsize: int, hw: Hardware) -> Tile:
    """patch_embed's tile; as many blocks a multiprocessor as its shared memory holds."""
    c = patch_embed.launch_config(M, D, itemsize, gpu_record(hw))
    m, n, k = c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_K"]
    held = (hw.smem_sm_kb << 10) // (c["num_stages"] * (m + n) * k * itemsize)
    return Tile(m, n, k, min(MOST_BLOCKS, max(1, held)))


def attention_program(B: int, H: int, Nq: int, N: int, D: int, dtype: str, hw: Hardware) -> Program:
    """attention's program, and what its chunks, tails and parts pad the work to."""
    c = attention.config_for(B, H, Nq, N, D, _TORCH[dtype], gpu_record(hw))
    if c.chunks[0]:
        return Program(c.block_m, sum(c.chunks), sum(attention.head_parts(D)), c.tail_m, c.heads)
    tail = N % c.block_n
    padded = max(16, triton.next_power_of_2(tail)) if tail else 0
    lanes = sum(attention.head_parts(D, c.widest))
    return Program(c.block_m, N - tail + padded, lanes, c.tail_m, 1)
