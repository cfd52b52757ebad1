"""torch.compile, whose graph is made for the very shapes of the task.

On a CPU weights are frozen (packed once), as PyTorch's own guide to fast inference on CPUs does it.
"""

import torch

from ..task import Program, Task, Unavailable


def compiled(task: Task, mode: str) -> Program:
    torch.compiler.reset()
    module = task.sdpa()
    if task.device.type != "cpu":
        return Program(
            torch.compile(module, mode=None if mode == "default" else mode, dynamic=False)
        )
    if mode == "reduce-overhead":
        raise Unavailable("on a CPU this mode is torch.compile's default: there are no CUDA graphs")
    options = {"freezing": True, "max_autotune": mode == "max-autotune"}
    return Program(torch.compile(module, options=options, dynamic=False))
