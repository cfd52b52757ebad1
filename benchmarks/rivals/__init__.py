"""The programs that are compared, each an adapter of a few lines: Task -> Program, or Unavailable with the reason.

A program of this project is made by the task itself (Task.ours); its adapter only names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..task import Program, Task, Unavailable
from .compiled import compiled
from .eager import eager, sdpa
from .onnx_runtime import onnx_runtime
from .openvino import openvino, openvino_streams
from .timm import timm_compiled


@dataclass(frozen=True)
class Rival:
    """package: what it needs beside PyTorch and transformers, as pip knows it. operators: PyTorch counts its calls."""

    name: str
    build: Callable[[Task], Program]
    ours: bool = False
    package: str = ""
    operators: bool = True


def _ours(name: str) -> Rival:
    def build(task: Task) -> Program:
        if name not in task.ours:
            raise Unavailable(f"there is no {name} for this case")
        return task.ours[name]()

    return Rival(name, build, ours=True)


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("transformers, eager", eager),
        Rival("transformers, sdpa", sdpa),
        Rival("transformers, sdpa flash", partial(sdpa, backend="FLASH_ATTENTION")),
        Rival("transformers, sdpa efficient", partial(sdpa, backend="EFFICIENT_ATTENTION")),
        Rival("transformers, sdpa cuDNN", partial(sdpa, backend="CUDNN_ATTENTION")),
        Rival("PyTorch", eager),
        Rival("torch.compile", partial(compiled, mode="default")),
        Rival("torch.compile reduce-overhead", partial(compiled, mode="reduce-overhead")),
        Rival("torch.compile max-autotune", partial(compiled, mode="max-autotune")),
        Rival("ONNX Runtime", onnx_runtime, package="onnxruntime", operators=False),
        Rival("OpenVINO", openvino, package="openvino", operators=False),
        Rival("OpenVINO streams", openvino_streams, package="openvino", operators=False),
        Rival("timm, torch.compile", timm_compiled, package="timm"),
        _ours("vit-fast"),
        _ours("vit-fast ViT"),
    )
}


def rival_of(name: str) -> Rival:
    """Of a program: a step of an ablation is ours, too."""
    return RIVALS.get(name) or _ours(name)
