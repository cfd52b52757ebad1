"""OpenVINO's CPU device on what it converts from PyTorch; its inference precision is the task's dtype.

Two ways to use it: for latency, all threads at one call; and for throughput, a stream for each thread and an image a
request, as its documentation has it for many images.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..task import Program, Task, Unavailable

PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def converted(task: Task, images: int | None = None) -> Any:
    """The task's module as OpenVINO's model, of so many images; all by default. Unavailable where it cannot run."""
    try:
        import openvino as ov
    except ImportError:
        raise Unavailable("openvino is not installed: pip install vit-fast[bench]") from None
    if task.device.type != "cpu":
        raise Unavailable("OpenVINO is compared on the CPU")
    if task.dtype not in PRECISION:
        raise Unavailable(f"OpenVINO's CPU device has no inference precision for {task.dtype}")
    known = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if task.dtype == torch.bfloat16 and "BF16" not in known:
        raise Unavailable("OpenVINO finds no bf16 on this processor")
    # weights and inputs are fp32 in the graph, rounded to the task's dtype before
    example = tuple(x[:images] for x in task.inputs_in(torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = [tuple(x.shape) for x in example]
        return ov.convert_model(task.in_dtype(torch.float32), example_input=example, input=shapes)


def compiled(task: Task, model: Any, hint: str, **more: Any) -> Any:
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": PRECISION[task.dtype],
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        **more,
    }
    return ov.Core().compile_model(model, "CPU", hints)


def openvino(task: Task) -> Program:
    request = compiled(task, converted(task), "LATENCY").create_infer_request()

    def call(*inputs: Tensor) -> Tensor:
        arrays = [x.float().numpy() for x in inputs]
        found = request.infer(arrays, share_inputs=True, share_outputs=True)
        # in memory of the request, which the next call writes to
        return torch.from_numpy(found[0]).to(task.dtype)

    return Program(call)


def openvino_streams(task: Task) -> Program:
    if not task.by_image or len(task.inputs[0]) == 1:
        raise Unavailable("one image is one request: see OpenVINO")
    streams = torch.get_num_threads()
    model = compiled(task, converted(task, images=1), "THROUGHPUT", NUM_STREAMS=streams)
    from openvino import AsyncInferQueue

    queue = AsyncInferQueue(model, streams)
    parts: dict[int, np.ndarray] = {}

    def keep(request: Any, i: int) -> None:
        # by NumPy: PyTorch would start threads of its own beside the streams
        parts[i] = request.get_output_tensor(0).data.copy()

    queue.set_callback(keep)

    def call(*inputs: Tensor) -> Tensor:
        arrays = [x.float().numpy() for x in inputs]
        for i in range(len(arrays[0])):
            queue.start_async([a[i : i + 1] for a in arrays], i, share_inputs=True)
        queue.wait_all()
        y = np.concatenate([parts.pop(i) for i in range(len(arrays[0]))])
        return torch.from_numpy(y).to(task.dtype)

    return Program(call)
