"""torch.compile, whose graph is made for the very shapes of the task.

On a CPU its weights are frozen, so that Inductor packs them for oneDNN, as PyTorch's guide to inference on CPUs has it.
"""

import torch
import torch._inductor.config as inductor

from ..task import Program, Task, Unavailable


def compiled(task: Task, mode: str) -> Program:
    torch.compiler.reset()
    module = task.sdpa()
    if task.device.type != "cpu":
        name = None if mode == "default" else mode
        return Program(torch.compile(module, mode=name, dynamic=False))
    if mode == "reduce-overhead":
        raise Unavailable("on a CPU this mode is torch.compile's default: there are no CUDA graphs")
    program = torch.compile(module, dynamic=False)
    # read when the first call compiles; as an option of torch.compile freezing is without effect in torch 2.13
    with inductor.patch(freezing=True, max_autotune=mode == "max-autotune"):
        program(*task.inputs)
    return Program(program)
