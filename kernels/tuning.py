"""What a launch rule may know about a GPU.

A kernel file's `launch_config` is a pure function of the shape and of this record: nothing is
measured when a user calls, and the same rule can be compiled for a GPU that is not there.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. triton.cdiv costs 5 us on the host."""
    return -(-a // b)


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: int  # compute capability, 90 for 9.0
    sms: int
    smem: int  # bytes of shared memory that one block may take
    pdl: bool = False  # launch kernels before the one in front has ended: dependent.py

    @property
    def bulk_copies(self) -> bool:
        """Tensor descriptors are copied by hardware, and the matrix unit reads shared memory (9.x
        and 10.x).
        """
        return self.arch // 10 in (9, 10)


# shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability";
# multiprocessors: the vendor's datasheets
KNOWN = {
    "sm_80": Gpu("A100", 80, 108, 163 << 10),
    "sm_86": Gpu("A10", 86, 72, 99 << 10),
    "sm_89": Gpu("L4", 89, 58, 99 << 10),
    "sm_90": Gpu("H100/H200", 90, 132, 227 << 10),
    "sm_100": Gpu("B200", 100, 148, 227 << 10),
    "sm_120": Gpu("RTX 5090", 120, 170, 99 << 10),
}


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind `device`; for the interpreter's CPU tensors the H100/H200, whose rules it then
    follows.
    """
    if device.type != "cuda":
        return KNOWN["sm_90"]
    p = torch.cuda.get_device_properties(device)
    return Gpu(
        p.name, p.major * 10 + p.minor, p.multi_processor_count, p.shared_memory_per_block_optin
    )


def dtype_name(dtype: torch.dtype) -> str:
    """ "bf16", "fp16" or "fp32"."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def tuned(gpu: Gpu, op: str, **shape: int | str) -> dict | None:
    """The measured configuration of this shape on this GPU, or None."""
    return None
