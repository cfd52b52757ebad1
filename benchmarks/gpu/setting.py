"""How large everything is: FULL on a GPU, TOY for a dry run on a CPU, where kernels run in Triton's interpreter."""

import os
from dataclasses import dataclass
from functools import cached_property

from vit_fast.workload import MODELS, Model

MIB = 1 << 20
TOYS = {
    "toy-a": Model("Toy A", 32, 16, 64, 1, 2, 96),
    "toy-b": Model("Toy B", 16, 8, 64, 1, 1, 64, "gelu_tanh"),
}


@dataclass(frozen=True)
class Group:
    """Model and batches that are timed, in order of value; order 0 first."""

    order: int
    model: str
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Rival:
    """torch.compile in one of its modes; backend: the attention that it is held to, None for PyTorch's choice.

    seconds: what compiling is expected to take, and limit what it may, all in all.
    """

    name: str
    mode: str
    backend: str | None
    seconds: float
    limit: float


@dataclass(frozen=True)
class Setting:
    """What cells are made from and run with.

    dtypes: the main one first. tokens, head_dims: of the attention checks, those of the main models first.
    rotate: bytes that timed inputs are rotated through, several times the L2 cache.
    replay_us: about what a timed graph replay takes. burst_ms: the same of a burst of model calls.
    """

    dry: bool
    dtypes: tuple[str, ...]
    models: dict[str, Model]
    groups: tuple[Group, ...]
    end_to_end: tuple[str, ...]  # those that are timed as whole models
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    head_dims: tuple[int, ...]
    odd_sizes: tuple[tuple[int, int, int], ...]  # M, N, K
    patches: tuple[tuple[int, int, int], ...]  # patch, channels, prefix rows
    model_depths: tuple[int, ...]
    model_batch: int
    gemm: int
    copy_bytes: int
    chain: int
    repeats: int
    rounds: int
    rotate: int
    replay_us: float
    burst_ms: float
    workers: int
    backend: str
    rivals: tuple[Rival, ...]
    layouts: tuple[str, ...] = ("rows sliced", "columns sliced", "transposed", "unaligned")

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @cached_property
    def main(self) -> Model:
        return self.models[self.groups[0].model]

    def prepare(self) -> None:
        """In a new worker process: what every cell needs, imported and ready."""
        import torch
        import transformers.models.vit.modeling_vit  # noqa: F401

        import vit_fast.kernels.linear  # noqa: F401

        # cells are forward passes; a graph capture and an autograd graph are no help to each other
        torch.set_grad_enabled(False)
        if not self.dry:
            torch.empty(1, device="cuda")


FULL = Setting(
    dry=False,
    dtypes=("bf16", "fp16", "fp32"),
    models=MODELS,
    groups=(
        Group(0, "vit-b-16", (64, 1)),
        Group(1, "vit-l-16", (64, 1)),
        Group(2, "vit-b-16", (256, 8, 32)),
        Group(3, "vit-l-16", (256, 8, 32)),
        Group(4, "so400m-14-384", (64, 1)),
        Group(4, "clip-l-14-336", (64, 1)),
        Group(4, "dinov2-l-14-518", (64, 1)),
        Group(5, "dinov2-b-14-518", (64, 1)),
        Group(5, "clip-l-14", (64, 1)),
        Group(5, "siglip-b-16", (64, 1)),
        Group(5, "clip-b-32", (256, 1)),
    ),
    end_to_end=("vit-b-16", "vit-l-16", "so400m-14-384", "clip-l-14-336", "dinov2-l-14-518"),
    widths=(768, 1024, 1152, 384, 1280, 1408, 1536, 1664, 4096, 100),
    tokens=(197, 1, 50, 196, 257, 577, 729, 1370),
    head_dims=(64, 72, 80, 32, 88, 96, 104, 128),
    patches=((16, 3, 1), (14, 3, 5), (32, 3, 0), (16, 1, 1)),
    odd_sizes=((1, 768, 768), (7, 200, 90), (50, 768, 3072), (197, 37, 192), (577, 1152, 4304)),
    model_depths=(2, 12),
    model_batch=3,
    gemm=8192,
    copy_bytes=4096 * MIB,
    chain=200,
    repeats=5,
    rounds=15,
    rotate=192 * MIB,
    replay_us=1500.0,
    burst_ms=20.0,
    workers=8,
    backend="inductor",
    rivals=(
        Rival("torch.compile max-autotune", "max-autotune", None, 100, 240),
        Rival("torch.compile reduce-overhead", "reduce-overhead", None, 45, 150),
        Rival("torch.compile default", "default", None, 35, 150),
        Rival("torch.compile max-autotune, cuDNN attention", "max-autotune", "cuDNN", 80, 240),
    ),
)

TOY = Setting(
    dry=True,
    dtypes=("fp16", "fp32"),
    models=TOYS,
    groups=(Group(0, "toy-a", (1,)), Group(1, "toy-b", (2,))),
    end_to_end=("toy-a",),
    widths=(64, 100),
    tokens=(17, 1),
    head_dims=(32, 20),
    patches=((14, 3, 5),),
    odd_sizes=((7, 37, 24),),
    model_depths=(1,),
    model_batch=1,
    gemm=64,
    copy_bytes=MIB,
    chain=2,
    repeats=2,
    rounds=1,
    rotate=0,
    replay_us=0.0,
    burst_ms=0.0,
    workers=1,
    backend="eager",
    rivals=(
        Rival("torch.compile default", "default", None, 1, 60),
        Rival("torch.compile default, flash attention", "default", "flash", 1, 60),
    ),
    layouts=("columns sliced", "transposed"),
)


def hide_gpus() -> None:
    """For this process, before it imports triton, and those that it starts: no GPU, kernels interpreted."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"
