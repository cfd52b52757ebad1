"""Kernels that may ship once they have run right, and faster, on a GPU: what the GPU program tries.

Written in Gluon (triton.experimental), for compute capability 9.0. On a machine without a GPU they are compiled
(check.py), and their source is run on CPU tensors under a model of barriers and copies (tests/gluon_model.py); no GPU
has run them yet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """One kernel with one config. run takes what kernels.<op>.launch takes, and raises ValueError
    where the kernel cannot do it.
    """

    name: str
    op: str  # "linear" or "attention"
    applies: Callable[[Mapping], bool]  # to an Operation.shape of vit_fast.workload
    run: Callable[..., Tensor]


def _candidates() -> tuple[Candidate, ...]:
    from . import flash_specialised, gemm_cooperative, gemm_pingpong

    def whole_rows(shape: Mapping) -> bool:
        return shape["N"] % 8 == shape["K"] % 8 == 0

    found = []
    for module in (gemm_pingpong, gemm_cooperative):
        for c in module.CONFIGS:
            name = f"{module.NAME} {c}"
            found.append(Candidate(name, "linear", whole_rows, partial(module.run, config=c)))
    for c in flash_specialised.ALL_CONFIGS:
        found.append(
            Candidate(
                f"{flash_specialised.NAME} {c}",
                "attention",
                lambda shape, c=c: c in flash_specialised.configs(shape["D"]),
                partial(flash_specialised.run, config=c),
            )
        )
    return tuple(found)


try:
    import triton.experimental.gluon.nvidia.hopper  # noqa: F401

    CANDIDATES, REASON = _candidates(), ""
except ImportError as error:
    # REASON: why there is none
    CANDIDATES, REASON = (), f"Triton's Gluon for Hopper cannot be imported: {error}"
