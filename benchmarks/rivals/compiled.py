"""torch.compile, whose graph is made for the very shapes of the task.

On a CPU its weights are frozen, so that Inductor packs them for oneDNN, as PyTorch's guide to inference on CPUs has it.
"""

import sys
from collections.abc import Callable

import torch
import torch._inductor.config as inductor
from torch import Tensor
from torch._inductor.codecache import PyCodeCache

from ..task import Program, Task, Unavailable


def compiled(task: Task, mode: str) -> Program:
    if task.device.type == "cpu" and mode == "reduce-overhead":
        raise Unavailable("on a CPU this mode is torch.compile's default: there are no CUDA graphs")
    return behind_compile(task.sdpa(), task, mode)


def behind_compile(call: Callable[..., Tensor], task: Task, mode: str = "default") -> Program:
    """What was compiled before it stays: after torch.compiler.reset() it would be compiled again, when it is timed."""
    if task.device.type != "cpu":
        name = None if mode == "default" else mode
        return Program(torch.compile(call, mode=name, dynamic=False))
    program = torch.compile(call, dynamic=False)
    # read when the first call compiles; as an option of torch.compile freezing is without effect in torch 2.13.
    # In the mode that is timed, or it would be compiled once more, and not frozen
    autotune = mode == "max-autotune"
    with torch.inference_mode(), inductor.patch(freezing=True, max_autotune=autotune):
        program(*task.inputs)
    return Program(program)


def forget_compiled() -> None:
    """All that was compiled, and the weights that are frozen in it: Inductor keeps each module that it has written."""
    torch.compiler.reset()
    for module in PyCodeCache.modules:
        sys.modules.pop(module.__name__, None)
    PyCodeCache.cache_clear()
