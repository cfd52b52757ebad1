"""OpenVINO's CPU device on what it converts from PyTorch; its inference precision is the task's dtype."""

import warnings

import torch
from torch import Tensor

from ..task import Program, Task, Unavailable

PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino(task: Task) -> Program:
    try:
        import openvino as ov
    except ImportError:
        raise Unavailable("openvino is not installed: pip install vit-fast[bench]") from None
    if task.device.type != "cpu":
        raise Unavailable("OpenVINO is compared on the CPU")
    if task.dtype not in PRECISION:
        raise Unavailable(f"OpenVINO's CPU device has no inference precision for {task.dtype}")
    core = ov.Core()
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if task.dtype == torch.bfloat16 and "BF16" not in known:
        raise Unavailable("OpenVINO finds no bf16 on this processor")
    # weights and inputs are fp32 in the graph, rounded to the task's dtype before
    example = task.inputs_in(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(
            task.in_dtype(torch.float32),
            example_input=example,
            input=[tuple(x.shape) for x in example],
        )
    hints = {
        "INFERENCE_PRECISION_HINT": PRECISION[task.dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()

    def call(*inputs: Tensor) -> Tensor:
        arrays = [x.float().numpy() for x in inputs]
        found = request.infer(arrays, share_inputs=True, share_outputs=True)
        # the request owns what it gives
        return torch.from_numpy(found[0]).to(task.dtype, copy=True)

    return Program(call)
