"""What ships, as launches on meta tensors: the shapes that static_check.py compiles."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from ..workload import MODELS, Model
from . import (
    attention,
    attention_tiles,
    folding,
    layer_norm,
    linear,
    linear_folded,
    linear_gated,
    linear_norm,
    linear_tiles,
    patch_embed,
    tables,
)
from .activations import NAMES
from .tuning import Gpu, dtype_name, hardware, which_table

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CONFIGS = {
    "linear": linear_tiles.Config,
    "linear_norm": linear_tiles.Config,
    "attention": attention.Config,
}
MAIN = ("vit-b-16", "vit-l-16", "so400m-14-384")
# tokens, K, F
GATED = {
    "DINOv2-g/14-224": (257, 1536, 4096),
    "DINOv3-H+/16-224": (201, 1280, 5120),
    "DINOv3-7B/16-224": (201, 4096, 8192),
}


def _t(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _model(m: Model, batch: int, dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Each launch of one model as (name, call); those of a last block for the class token too."""
    N, D = m.tokens, m.dim

    def t(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return _t(*shape, dtype=dtype)

    def gemm(x: torch.Tensor, n: int, activation: str | None = None) -> Callable:
        return lambda: linear.launch(x, t(n, x.shape[-1]), t(n), activation, gpu=gpu)

    def add_and_norm(x: torch.Tensor, residual: torch.Tensor) -> Callable:
        args = x, t(D, x.shape[-1]), t(D), None, residual, t(D), t(D), 1e-6
        return lambda: linear_norm.launch(*args, gpu=gpu)

    for pixels in (torch.uint8, dtype):
        x = t(batch, 3, m.image, m.image, dtype=pixels)
        w, b, pos = t(D, 3 * m.patch**2), t(D, dtype=torch.float32), t(m.patches, D)
        args = (x, w, b, t(m.prefix, D) if m.prefix else None, pos, m.patch)
        yield f"patch_embed {str(pixels)[6:]}", lambda a=args: patch_embed.launch(*a, gpu=gpu)

    q, k, v = t(batch, N, 3, m.heads, m.head_dim).unbind(2)
    rope = t(2, m.patches, m.head_dim // 2, dtype=torch.float32) if m.rope else None
    whole = t(batch, N, D)
    yield "layer_norm", lambda: layer_norm.launch(whole, t(D), t(D), 1e-6, gpu=gpu)
    for rows, of in ((whole, ""), (whole[:, :1], " of the class token")):
        fresh = t(*rows.shape)
        yield f"qkv{of}", gemm(rows, D if of else 3 * D)
        args = q[:, : rows.shape[1]], k, v, 1.0, None, rope
        yield f"attention{of}", lambda a=args: attention.launch(*a, gpu=gpu)
        yield f"proj{of}", add_and_norm(fresh, rows)
        fc1 = (
            _gated(fresh, m.mlp, m.activation, gpu) if m.gated else gemm(fresh, m.mlp, m.activation)
        )
        yield f"fc1{of}", fc1
        yield f"fc2{of}", add_and_norm(t(*rows.shape[:2], m.mlp), fresh)
    if dtype != torch.float32:
        yield from _folded(m, whole, t(*whole.shape[:2], m.mlp), gpu)


def _gated(x: torch.Tensor, F: int, activation: str, gpu: Gpu, config=None, bias=True) -> Callable:
    K, dtype = x.shape[-1], x.dtype
    gate, up = _t(2 * F, K, dtype=dtype).split(F)
    biases = _t(2 * F, dtype=dtype).split(F) if bias else (None, None)
    args = x, gate, up, *biases, activation
    return lambda: linear_gated.launch(*args, gpu=gpu, config=config)


def _gated_layers(dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    for name, (tokens, K, F) in GATED.items():
        for batch in (64, 1):
            x = _t(batch * tokens, K, dtype=dtype)
            yield f"{name} batch {batch} gated", _gated(x, F, "silu", gpu)


def _folded(
    m: Model, x: torch.Tensor, hidden: torch.Tensor, gpu: Gpu
) -> Iterator[tuple[str, Callable]]:
    """The launches of a block whose LayerNorms are folded."""
    D, dtype = m.dim, x.dtype
    stats = folding._fake(x)

    def reads(n: int, activation: str | None) -> Callable:
        w, sums = _t(n, D, dtype=dtype), _t(n, dtype=torch.float32)
        args = x, stats, w, sums, sums, 1e-6, activation
        return lambda: linear_folded.launch_folded(*args, gpu=gpu)

    def writes(h: torch.Tensor) -> Callable:
        args = h, _t(D, h.shape[-1], dtype=dtype), _t(D, dtype=dtype), None, x
        return lambda: linear_folded.launch_statistics(*args, gpu=gpu)

    yield "row_statistics", lambda: folding.launch(x, gpu=gpu)
    yield "qkv, norm folded", reads(3 * D, None)
    yield "proj with statistics", writes(x)
    if not m.gated:  # which has no folded form
        yield "fc1, norm folded", reads(m.mlp, m.activation)
    yield "fc2 with statistics", writes(hidden)


def _tiles(dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Every tile of `linear` with every epilogue, with statistics, and with partial sums; and of linear_gated."""

    def t(*shape: int) -> torch.Tensor:
        return _t(*shape, dtype=dtype)

    for M in (50, 1000, 50000):
        for residual in (None, t(M, 768)):
            # rows that are not 16-byte aligned, a K with a tail: pointers on every GPU
            args = t(M, 1001), t(768, 1001), t(768).float(), "gelu", None, residual
            yield "linear, odd K", lambda a=args: linear.launch(*a, gpu=gpu)
        for activation in NAMES:
            yield "gated, odd K", _gated(t(M, 1001), 768, activation, gpu)
    descriptors = gpu.bulk_copies and dtype != torch.float32
    x, w, b, y = t(1024, 1024), t(768, 1024), t(768), t(1024, 768)
    for c in linear_tiles.candidates(1024, 768, 1024, dtype.itemsize, descriptors, gpu):
        for activation in (None, *NAMES):
            for residual in (None, y):
                for scale in (None, b):
                    args = x, w, b, activation, scale, residual
                    yield "linear", lambda a=args, c=c: linear.launch(*a, gpu=gpu, config=c)
        for activation in () if linear_gated.misfit(c) else NAMES:
            for bias in (True, False):
                yield "gated", _gated(x, 768, activation, gpu, c, bias)
        if not c.library:
            args, split = (x, w, b, None, y, b, b, 1e-6), replace(c, splits=2)
            yield "linear_norm", lambda a=args, c=split: linear_norm.launch(*a, gpu=gpu, config=c)
        if not c.library and dtype != torch.float32:
            yield from _folded_tile(x, w, b, y, gpu, c)


def _folded_tile(x, w, b, y, gpu: Gpu, c: linear_tiles.Config) -> Iterator[tuple[str, Callable]]:
    for activation in (None, *NAMES):
        args = x, folding._fake(x), w, b.float(), b.float(), 1e-6, activation
        yield "linear_folded", lambda a=args: linear_folded.launch_folded(*a, gpu=gpu, config=c)
    for scale in (None, b):
        args = x, w, b, scale, y
        yield (
            "linear_statistics",
            lambda a=args: linear_folded.launch_statistics(*a, gpu=gpu, config=c),
        )


def _attention(dtype: torch.dtype, gpu: Gpu) -> Iterator[tuple[str, Callable]]:
    """Attention with tails of every width, for every head_dim, in every configuration worth measuring."""
    for D in (32, 64, 72, 80, 88, 96, 104, 128):
        for N in (50, 196, 197, 257, 577, 729, 1370):
            q, k, v = _t(2, N, 3, 16, D, dtype=dtype).unbind(2)
            for c in attention_tiles.candidates(N, N, D, dtype.itemsize, gpu):
                yield (
                    f"attention of {N} tokens",
                    lambda q=q, k=k, v=v, c=c: attention.launch(q, k, v, 1.0, gpu=gpu, config=c),
                )


# (name, tokens, heads, head_dim, patches that rope turns, masked)
ROPE_AND_MASKS = (
    ("DINOv3-B/16-224", 201, 12, 64, 196, False),
    ("DINOv3-7B/16-512", 1029, 32, 128, 1024, False),
    ("SigLIP2-B NaFlex 256", 256, 12, 64, 0, True),
    ("SigLIP2-so400m NaFlex 256", 256, 16, 72, 0, True),
    ("SigLIP2-so400m NaFlex 1024", 1024, 16, 72, 0, True),
)
# one pass, flash with and without a tail, of queries and of keys
_GRID = tuple(
    (f"{N} tokens", N, 12, D, N - 5 if rope else 0, masked)
    for D in (32, 64, 72, 80, 88, 128)
    for N in (50, 128, 201, 261, 1024, 1029)
    for rope, masked in ((True, False), (False, True), (True, True))
    if D in attention.ROTATED_HEAD_DIMS or not rope
)


def _rope_and_masks(
    dtype: torch.dtype, gpu: Gpu, everything: bool
) -> Iterator[tuple[str, Callable]]:
    """Attention with a mask, with rotary positions, and with both."""
    for name, N, H, D, P, masked in ROPE_AND_MASKS + (_GRID if everything else ()):
        q, k, v = _t(8, N, 3, H, D, dtype=dtype).unbind(2)
        mask = _t(8, N, dtype=torch.bool) if masked else None
        rope = _t(2, P, D // 2, dtype=torch.float32) if P else None
        has = " and ".join(["rope"] * bool(P) + ["mask"] * masked)
        for queries, of in ((N, ""), (1, " of the class token"))[: 1 + everything]:
            args = q[:, :queries], k, v, 1.0, mask, rope
            yield f"{name} attention{of}, {has}", lambda a=args: attention.launch(*a, gpu=gpu)


def _tuned(known: Gpu) -> Iterator[tuple[str, torch.dtype, Callable]]:
    """What was measured on GPUs of this compute capability: each entry of the tables that are in use for them."""
    for found in tables.gpus(known.arch):
        if found.keys() != hardware(known).keys():
            continue
        gpu = Gpu(**found)
        source = which_table(gpu)
        gpu = replace(gpu, pdl=source.switches.get("pdl", False))
        for entry in source.entries:
            op, shape, config = entry["op"], entry["shape"], entry["config"]
            dtype = next((d for d in DTYPES if dtype_name(d) == shape["dtype"]), None)
            if dtype is None:
                continue
            # the launcher looks a config of null up for itself, and finds the rule
            c = config and CONFIGS[op](**tables.config_fields(op, config))
            call = _measured(op, shape, dtype, gpu, c)
            name = " ".join(f"{k}={v}" for k, v in shape.items())
            yield f"tuned {op} {name} on {gpu.name}", dtype, call
            plain = op == "linear" and not {"scale", "residual"} & set(shape["epilogue"].split("+"))
            if plain and source.switches.get("fold") and dtype != torch.float32:
                call = _measured_folded(shape, dtype, gpu)
                yield f"tuned {op} {name}, norm folded, on {gpu.name}", dtype, call


def _measured(op: str, s: Mapping[str, int | str], dtype: torch.dtype, gpu: Gpu, c) -> Callable:
    def t(*shape: int) -> torch.Tensor:
        return _t(*shape, dtype=dtype)

    if op == "attention":
        q = t(s["B"], s["Nq"], 3, s["H"], s["D"]).select(2, 0)
        k, v = t(s["B"], s["N"], 3, s["H"], s["D"]).unbind(2)[1:]
        return lambda: attention.launch(q, k, v, 1.0, gpu=gpu, config=c)
    M, N, K = s["M"], s["N"], s["K"]
    args = t(M, K), t(N, K), t(N)
    if op == "linear_norm":
        args += None, t(M, N), t(N), t(N), 1e-6
        return lambda: linear_norm.launch(*args, gpu=gpu, config=c)
    parts = s["epilogue"].split("+")
    args += (next((p for p in parts if p in NAMES), None),)
    args += t(N) if "scale" in parts else None, t(M, N) if "residual" in parts else None
    return lambda: linear.launch(*args, gpu=gpu, config=c)


def _measured_folded(s: Mapping[str, int | str], dtype: torch.dtype, gpu: Gpu) -> Callable:
    x, sums = _t(s["M"], s["K"], dtype=dtype), _t(s["N"], dtype=torch.float32)
    weight = _t(s["N"], s["K"], dtype=dtype)
    args = x, folding._fake(x), weight, sums, sums, 1e-6
    activation = None if s["epilogue"] == "bias" else s["epilogue"]
    return lambda: linear_folded.launch_folded(*args, activation, gpu=gpu)


def launches(gpu: Gpu, everything: bool) -> Iterator[tuple[str, torch.dtype, Callable]]:
    """(name, dtype, call) of what ships: the main models in bf16 at batch 1 and 64, gated layers in bf16 and fp16,
    attention with rope and with masks, once more with dependent launches and what was measured on GPUs of this kind;
    or all models, tiles and dtypes.
    """
    for dtype in DTYPES if everything else DTYPES[:1]:
        for name in MODELS if everything else MAIN:
            m = MODELS[name]
            for batch in (64, 1):
                for launch, call in _model(m, batch, dtype, gpu):
                    suffix = "" if dtype == torch.bfloat16 else f" in {str(dtype)[6:]}"
                    yield f"{m.name} batch {batch} {launch}{suffix}", dtype, call
        for launch, call in _rope_and_masks(dtype, gpu, everything):
            yield launch, dtype, call
        if everything:
            for launch, call in (*_tiles(dtype, gpu), *_attention(dtype, gpu)):
                yield launch, dtype, call
    for dtype in DTYPES if everything else DTYPES[:2]:
        for launch, call in _gated_layers(dtype, gpu):
            yield f"{launch} in {str(dtype)[6:]}", dtype, call
    yield from _tuned(gpu)
    if gpu.arch >= 90:
        m = MODELS[MAIN[0]]
        for launch, call in _model(m, 1, torch.bfloat16, replace(gpu, pdl=True)):
            yield f"{m.name} batch 1 {launch}, dependent", torch.bfloat16, call
        for launch, call in _gated_layers(torch.bfloat16, replace(gpu, pdl=True)):
            yield f"{launch}, dependent", torch.bfloat16, call
