"""Attention on a CPU as one partition of the oneDNN Graph API: both products and the softmax, head by head in cache.

PyTorch's own (flash) attention multiplies through MKL, which on some processors leaves half of AVX-512 idle, and has no
bf16 products without AMX. oneDNN has both, and reads q, k and v by stride. Scores and softmax are in fp32 for bf16 too;
what multiplies v is rounded to bf16, as in any flash attention.

PyTorch brings oneDNN Graph as a fuser of TorchScript, which finds such partitions by profiling, and then rounds a bf16
model's scores to bf16. Here the partition is written down instead, with its types (`_partition`), and given to the
operator that runs the fuser's own, `prim::oneDNNFusionGroup`: nothing is traced or profiled, the fuser stays off.
TorchScript forgets the types of a graph that it prepares to run, so the partition is put into the one that is prepared
already; only the older of its two executors shows that one, hence the switch in `_build`.

oneDNN holds scores in memory, which PyTorch's attention does not: of one head a thread where there are more than two
heads a thread, else of all heads. `takes` bounds them.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_fast import onednn
from vit_fast.kernels.operators import check_tensor, define, refuse

DTYPES = onednn.DTYPES
# shapes, strides and threads that are kept compiled; 10 ms and 0.6 MB each (benchmarks/LOG.md)
KEPT = 64
# of a head: below so many a call's fixed cost is more than what oneDNN gains
SCORES = 2500
# more heads a thread than this are multiplied one by one, fewer all at once: oneDNN's rule, RATIO in its source
AT_ONCE = 2
# lanes of a head, at most: what known models have; of 256 in fp32 oneDNN's sums miss the accuracy rule by a little
LANES = 128
# in memory at a time, up to 8 bytes each: 256 MB
HELD = 32_000_000

_NAMES = ("_create_function_from_graph", "_jit_set_profiling_executor", "parse_ir")
_TYPES = {torch.float32: "Float", torch.bfloat16: "BFloat16"}
# None: an executor that the partition was not put into gives no tensor
_PREPARED = """graph(%q : Tensor, %k : Tensor, %v : Tensor, %scale : Tensor):
  %none : NoneType = prim::Constant()
  return (%none)"""
_SWITCH = threading.Lock()


def why_not(dtype: torch.dtype) -> str:
    """Why this machine does not run attention in `dtype` through oneDNN, or ""; tried once in a process."""
    return onednn.why_not(dtype) or _trial(dtype)


@functools.cache
def _trial(dtype: torch.dtype) -> str:
    for name in _NAMES:
        if not hasattr(torch._C, name):
            return f"torch {torch.__version__} has no torch._C.{name}"
    # in a thread of its own no mode of the caller's is on: fake tensors, counters, inference mode
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_try, dtype).result()


def _try(dtype: torch.dtype) -> str:
    """Two small attentions with scores up to some 50, which bf16 scores do not pass: heads at once and one by one."""
    generator = torch.Generator().manual_seed(0)
    for heads in (AT_ONCE, AT_ONCE * torch.get_num_threads() + 1):
        x = torch.randn(1, 21, 3, heads, 64, generator=generator, dtype=torch.float32)
        q, k, v = x.to(dtype).unbind(2)
        try:
            o = _through_onednn(q, k, v, 2.0)
        except (AttributeError, RuntimeError, TypeError) as error:  # private: may be others
            words = " ".join(str(error).split())
            return f"torch {torch.__version__} does not run this partition of oneDNN Graph: {words[:200]}"
        exact = _sdpa(q.double(), k.double(), v.double(), 2.0)
        error, known = (float((t - exact).abs().max()) for t in (o, _sdpa(q, k, v, 2.0)))
        allowed = 2 * known + torch.finfo(dtype).eps * float(exact.abs().max())
        if not error <= allowed:
            return f"oneDNN Graph of torch {torch.__version__} is off by {error:.2g}, allowed {allowed:.2g}"
    return ""


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _typed(dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int] | None = None) -> str:
    """A tensor type as TorchScript writes it; strides None: contiguous."""
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    numbers = ", ".join(map(str, shape)), ", ".join(map(str, strides))
    return f"{_TYPES[dtype]}({numbers[0]}, strides=[{numbers[1]}], requires_grad=0, device=cpu)"


def _partition(
    dtype: torch.dtype,
    q_shape: tuple[int, ...],
    keys: int,
    strides: tuple[tuple[int, ...], ...],
) -> str:
    """q [B, H, Nq, Dh], k [B, H, Dh, N], v [B, H, N, Dh] of these strides -> o, in memory as [B, Nq, H, Dh]."""
    B, H, Nq, Dh = q_shape
    scores = (B, H, Nq, keys)
    return f"""graph(
      %q : {_typed(dtype, q_shape, strides[0])},
      %k : {_typed(dtype, (B, H, Dh, keys), strides[1])},
      %v : {_typed(dtype, (B, H, keys, Dh), strides[2])},
      %scale : {_typed(torch.float32, (1,))}):
  %last : int = prim::Constant[value=-1]()
  %none : NoneType = prim::Constant()
  %s : {_typed(torch.float32, scores)} = aten::matmul(%q, %k)
  %x : {_typed(torch.float32, scores)} = aten::mul(%s, %scale)
  %p : {_typed(dtype, scores)} = aten::softmax(%x, %last, %none)
  %o : {_typed(dtype, q_shape, (Nq * H * Dh, Dh, H * Dh, 1))} = aten::matmul(%p, %v)
  return (%o)"""


def _nested(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether each axis steps over all that axes of smaller strides reach, as oneDNN asks of strides but 0."""
    reach = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if 0 < stride < reach:
            return False
        reach = max(reach, stride * size)
    return True


@functools.lru_cache(maxsize=KEPT)
def _build(
    dtype: torch.dtype,
    q_shape: tuple[int, ...],
    keys: int,
    strides: tuple[tuple[int, ...], ...],
    threads: int,  # oneDNN divides the work when it compiles
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """What runs _partition of these arguments, from any thread that has so many. It is compiled by its first call.

    None: oneDNN does not take a tensor of these strides.
    """
    B, H, _, Dh = q_shape
    shapes = q_shape, (B, H, Dh, keys), (B, H, keys, Dh)
    if not all(map(_nested, shapes, strides)):
        return None
    run = torch._C._create_function_from_graph("attention", torch._C.parse_ir(_PREPARED))
    with _SWITCH:
        before = torch._C._jit_set_profiling_executor(False)
        try:
            graph = run.get_debug_state().graph
        finally:
            torch._C._jit_set_profiling_executor(before)
    group = graph.create("prim::oneDNNFusionGroup", list(graph.inputs()), 1)
    group.g_("Subgraph", torch._C.parse_ir(_partition(dtype, q_shape, keys, strides)))
    group.is_("output_layouts", [0])  # plain strides
    graph.appendNode(group)
    graph.eraseOutput(0)
    graph.registerOutput(group.output())
    return run


@functools.lru_cache
def _scale(scale: float) -> Tensor:
    # it is kept: not of the default dtype or on the default device of now
    return torch.tensor([scale], dtype=torch.float32, device="cpu")


def _through_onednn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    by_head = q.transpose(1, 2), k.permute(0, 2, 3, 1), v.transpose(1, 2)
    run = _build(
        q.dtype,
        tuple(by_head[0].shape),
        k.shape[1],
        tuple(t.stride() for t in by_head),
        torch.get_num_threads(),
    )
    if run is None:
        return _sdpa(q, k, v, scale)
    return run(*by_head, _scale(scale)).transpose(1, 2).flatten(2)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q @ k^T) @ v, as Ops.attention without mask and rope.

    q [B, Nq, H, Dh], k, v [B, N, H, Dh], any strides, in fp32 or bf16 -> [B, Nq, H * Dh], in their dtype under autocast
    too. Through oneDNN, or through PyTorch's where why_not says so, takes() that it is faster, or a tensor overlaps
    itself. ValueError names what does not fit. A gradient is an error.
    """
    name = "onednn_attention"
    if q.dtype not in DTYPES:
        refuse(name, f"q is {q.dtype}, expected {' or '.join(map(str, DTYPES))}")
    if q.dim() != 4 or k.dim() != 4:
        refuse(name, f"q is {tuple(q.shape)}, k {tuple(k.shape)}, expected [B, N, H, Dh]")
    B, _, H, Dh = q.shape
    check_tensor(name, "k", k, (B, k.shape[1], H, Dh), q.device, q.dtype)
    check_tensor(name, "v", v, tuple(k.shape), q.device, q.dtype)
    autocast = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not autocast:
        return _run(q, k, v, scale)
    # for each state of it TorchScript has another executor, which does not know the partition
    with contextlib.ExitStack() as stack:
        for device in autocast:
            stack.enter_context(torch.autocast(device, enabled=False))
        return _run(q, k, v, scale)


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    B, Nq, H, Dh = q.shape
    taken = Dh <= LANES and takes(q.dtype, B * H, Nq, k.shape[1], torch.get_num_threads())
    if not taken or 0 in q.shape or why_not(q.dtype):
        return _sdpa(q, k, v, scale)
    return _through_onednn(q, k, v, scale)


def takes(dtype: torch.dtype, heads: int, queries: int, keys: int, threads: int) -> bool:
    """Whether oneDNN is the faster one for so many rows of each head (benchmarks/LOG.md), and its scores find room.

    heads: of all images.
    """
    at_a_time = heads if heads <= AT_ONCE * threads else threads
    if at_a_time * queries * keys > HELD:
        return False
    # of a single row PyTorch's fp32 product is a fast one; for its bf16 product see above
    alone = dtype == torch.bfloat16 and queries == 1 and keys >= 64
    return alone or queries * keys >= SCORES


def _fake(q, k, v, scale) -> Tensor:
    B, Nq, H, Dh = q.shape
    return q.new_empty(B, Nq, H * Dh)


onednn_attention = define(
    "onednn_attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor",
    {"CPU": _attention},
    _fake,
)
