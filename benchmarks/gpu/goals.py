"""What the project wants to reach on an H200, as data; images a second and milliseconds stand in roofline.py."""

from dataclasses import dataclass

from benchmarks.paper import roofline


@dataclass(frozen=True)
class Goal:
    """Of a model at a batch. measure: "images_s"; "p50_ms", the less the better; BOUND; or a rival: times its speed."""

    model: str
    batch: int
    measure: str
    goal: float
    dream: float


BOUND = "share of the bound's speed"
COMPILED = "torch.compile max-autotune"
CUDA_GRAPHS = "torch.compile reduce-overhead"

_MEASURES = {"images/s": "images_s", "ms": "p50_ms"}
DEVICE = "NVIDIA H200"

GOALS = (
    *(Goal(g.model, g.batch, _MEASURES[g.unit], g.goal, g.dream) for g in roofline.GOALS),
    *(Goal(m, b, BOUND, 0.9, 1.0) for m in ("vit-b-16", "vit-l-16") for b in (64, 256)),
    *(Goal(m, b, COMPILED, 1.25, 1.5) for m in ("vit-b-16", "vit-l-16") for b in (64, 256)),
    *(Goal(m, 8, COMPILED, 1.3, 1.5) for m in ("vit-b-16", "vit-l-16")),
    *(Goal(m, 1, r, 2.0, 3.0) for m in ("vit-b-16", "vit-l-16") for r in (COMPILED, CUDA_GRAPHS)),
)

# the fraction of what each kernel is held against: the fastest bare GEMM, SDPA backend, the copy's bandwidth
KERNELS = {"linear": (1.0, 1.0), "attention": (1.2, 1.5), "layer_norm": (0.9, 1.0)}
