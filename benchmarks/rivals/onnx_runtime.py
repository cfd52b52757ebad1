"""ONNX Runtime's CPU provider on what torch.onnx exports, all graph optimisations on.

What its transformers.optimizer fuses in that is slower here: benchmarks/LOG.md.
"""

import io
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from ..task import Program, Task, Unavailable

# the first with an operator for attention: before it SDPA becomes products, a softmax and a search for NaN
OPSET = 23


def onnx_runtime(task: Task) -> Program:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed: pip install vit-fast[bench]") from None
    if task.device.type != "cpu":
        raise Unavailable("ONNX Runtime is compared on the CPU")
    if task.dtype != torch.float32:
        raise Unavailable("ONNX Runtime's CPU provider computes these models in fp32 only")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                task.sdpa(), task.inputs, dynamo=True, opset_version=OPSET, verbose=False
            )
            program.save(path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        (y,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(y)

    return Program(call)
