"""What a prediction knows of a GPU: the vendor's figures, and measured ceilings where there are any.

Every figure names its source. One that no vendor document gives and nobody here measured begins
with "estimate". Matrix rates are dense with fp32 accumulation: a datasheet's sparse figure is twice
that and is never used.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vit_fast.kernels import tables

DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}  # bytes of a value


@dataclass(frozen=True)
class Hardware:
    name: str
    device: str  # as the driver names it, and so a tuned table
    arch: int  # compute capability, 90 for 9.0
    sms: int
    clock_mhz: float  # the boost clock that tensor_tflops is stated for
    tensor_tflops: float  # bf16 and fp16, dense, fp32 accumulation
    fp32_tflops: float
    memory_tb_s: float
    l2_mb: float  # MiB
    l2_bytes_per_clock: float | None  # read by all multiprocessors together; None: not bounded
    smem_sm_kb: int  # KiB of shared memory of a multiprocessor
    smem_block_kb: int  # KiB that one block may take
    fp32_lanes: int  # fp32 instructions of a multiprocessor in one clock
    exps_per_sm_clock: int  # exp2, reciprocal, ...: the special function units (MUFU)
    launch_gap_us: float  # from one kernel to the next inside a CUDA graph
    sources: Mapping[str, str]
    measured_tflops: float | None = None  # bf16, an 8192^3 GEMM
    measured_copy_tb_s: float | None = None  # device to device, read + write

    @property
    def slug(self) -> str:
        """The folder of its results files, and the name of its tuned table."""
        return tables.slug(self.device)

    @property
    def flops_per_sm_clock(self) -> float:
        """Dense matrix FLOPs of one multiprocessor in one clock."""
        return self.tensor_tflops * 1e12 / (self.sms * self.clock_mhz * 1e6)

    def peak_tflops(self, dtype: str) -> float:
        """What a large GEMM reaches: measured, else the datasheet's rate times the H200's share of its own."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        if dtype != "fp32" and self.measured_tflops is not None:
            return self.measured_tflops
        datasheet = self.fp32_tflops if dtype == "fp32" else self.tensor_tflops
        return datasheet * H200.measured_tflops / H200.tensor_tflops

    @property
    def copy_tb_s(self) -> float:
        """What a copy reaches: measured, else the datasheet's bandwidth times the H200's share of its own."""
        if self.measured_copy_tb_s is not None:
            return self.measured_copy_tb_s
        return self.memory_tb_s * H200.measured_copy_tb_s / H200.memory_tb_s


_GUIDE = "CUDA C++ Programming Guide"
_COMMON = {
    "arch": f"{_GUIDE}, CUDA-enabled GPUs",
    "smem_sm_kb": f"{_GUIDE}, Technical Specifications per Compute Capability",
    "smem_block_kb": f"{_GUIDE}, Technical Specifications per Compute Capability",
    "fp32_lanes": f"{_GUIDE}, Throughput of Native Arithmetic Instructions: 64 for 8.0, 128 for 8.9 and 9.0",
    "exps_per_sm_clock": f"{_GUIDE}, Throughput of Native Arithmetic Instructions: 16 from 7.x to 9.0",
    "launch_gap_us": "estimate: the H200's",
}
_H100 = "NVIDIA H100 Tensor Core GPU Architecture white paper"
_HOPPER_L2 = "estimate: the 5120 of the A100, no document gives one"
_SAME_DIE = f"{_H100}: the same die, GH100, and the same matrix figures"

H200 = Hardware(
    name="H200",
    device="NVIDIA H200",
    arch=90,
    sms=132,
    clock_mhz=1830,
    tensor_tflops=989.4,
    fp32_tflops=66.9,
    memory_tb_s=4.8,
    l2_mb=50,
    l2_bytes_per_clock=5120,
    smem_sm_kb=228,
    smem_block_kb=227,
    fp32_lanes=128,
    exps_per_sm_clock=16,
    launch_gap_us=1.3,
    measured_tflops=788,
    measured_copy_tb_s=4.3,
    sources=_COMMON
    | {
        "sms": _SAME_DIE,
        "clock_mhz": _SAME_DIE,
        "tensor_tflops": "NVIDIA H200 datasheet, BFLOAT16: 1,979 with sparsity, halved",
        "fp32_tflops": "NVIDIA H200 datasheet, FP32",
        "memory_tb_s": "NVIDIA H200 datasheet",
        "l2_mb": _SAME_DIE,
        "l2_bytes_per_clock": _HOPPER_L2,
        "launch_gap_us": "measured: about 1.3 us a kernel inside a CUDA graph, H200",
        "measured_tflops": "measured: 8192 x 8192 x 8192 in bf16, cuBLAS, H200",
        "measured_copy_tb_s": "measured: copy from device to device, read + write, H200",
    },
)
H100 = Hardware(
    name="H100",
    device="NVIDIA H100 80GB HBM3",
    arch=90,
    sms=132,
    clock_mhz=1830,
    tensor_tflops=989.4,
    fp32_tflops=66.9,
    memory_tb_s=3.35,
    l2_mb=50,
    l2_bytes_per_clock=5120,
    smem_sm_kb=228,
    smem_block_kb=227,
    fp32_lanes=128,
    exps_per_sm_clock=16,
    launch_gap_us=1.3,
    sources=_COMMON
    | {
        "sms": _H100,
        "clock_mhz": f"{_H100}: GPU boost clock of the SXM5 for matrix products",
        "tensor_tflops": f"{_H100}: peak BF16 Tensor, without sparsity",
        "fp32_tflops": _H100,
        "memory_tb_s": "NVIDIA H100 datasheet, SXM",
        "l2_mb": _H100,
        "l2_bytes_per_clock": _HOPPER_L2,
    },
)
_A100 = "NVIDIA A100 Tensor Core GPU Architecture white paper"
A100 = Hardware(
    name="A100",
    device="NVIDIA A100-SXM4-80GB",
    arch=80,
    sms=108,
    clock_mhz=1410,
    tensor_tflops=312,
    fp32_tflops=19.5,
    memory_tb_s=2.039,
    l2_mb=40,
    l2_bytes_per_clock=5120,
    smem_sm_kb=164,
    smem_block_kb=163,
    fp32_lanes=64,
    exps_per_sm_clock=16,
    launch_gap_us=1.3,
    sources=_COMMON
    | {
        "sms": _A100,
        "clock_mhz": _A100,
        "tensor_tflops": f"{_A100}: peak BF16 Tensor, without sparsity",
        "fp32_tflops": _A100,
        "memory_tb_s": "NVIDIA A100 80GB datasheet, SXM",
        "l2_mb": _A100,
        "l2_bytes_per_clock": f"{_A100}: L2 cache read bandwidth",
    },
)
_ADA = "NVIDIA Ada GPU Architecture white paper"
L4 = Hardware(
    name="L4",
    device="NVIDIA L4",
    arch=89,
    sms=58,
    clock_mhz=2040,
    tensor_tflops=121,
    fp32_tflops=30.3,
    memory_tb_s=0.3,
    l2_mb=48,
    l2_bytes_per_clock=None,
    smem_sm_kb=100,
    smem_block_kb=99,
    fp32_lanes=128,
    exps_per_sm_clock=16,
    launch_gap_us=1.3,
    sources=_COMMON
    | {
        "sms": f"{_ADA}, L4",
        "clock_mhz": f"{_ADA}, L4; 72 W may not sustain it",
        "tensor_tflops": "NVIDIA L4 datasheet, BFLOAT16: 242 with sparsity, halved",
        "fp32_tflops": "NVIDIA L4 datasheet, FP32",
        "memory_tb_s": "NVIDIA L4 datasheet",
        "l2_mb": f"{_ADA}, L4",
    },
)
RTX_4090 = Hardware(
    name="RTX 4090",
    device="NVIDIA GeForce RTX 4090",
    arch=89,
    sms=128,
    clock_mhz=2520,
    tensor_tflops=165.2,
    fp32_tflops=82.6,
    memory_tb_s=1.008,
    l2_mb=72,
    l2_bytes_per_clock=None,
    smem_sm_kb=100,
    smem_block_kb=99,
    fp32_lanes=128,
    exps_per_sm_clock=16,
    launch_gap_us=1.3,
    sources=_COMMON
    | {
        "sms": f"{_ADA}, GeForce RTX 4090",
        "clock_mhz": f"{_ADA}, GeForce RTX 4090",
        "tensor_tflops": f"{_ADA}, GeForce RTX 4090: peak BF16 Tensor with FP32 accumulate, without sparsity",
        "fp32_tflops": f"{_ADA}, GeForce RTX 4090",
        "memory_tb_s": f"{_ADA}, GeForce RTX 4090",
        "l2_mb": f"{_ADA}, GeForce RTX 4090",
    },
)

GPUS = {gpu.name: gpu for gpu in (H200, H100, A100, L4, RTX_4090)}
