"""transformers' own models as they are, and PyTorch's own operations."""

from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..task import Program, Task, Unavailable


def eager(task: Task) -> Program:
    return Program(task.module)


def sdpa(task: Task, backend: str | None = None) -> Program:
    """backend: the SDPBackend that attention is held to; None is PyTorch's choice."""
    module = task.sdpa()
    if backend is None:
        return Program(module)
    held = partial(sdpa_kernel, getattr(SDPBackend, backend))
    try:
        with held():
            module(*task.inputs)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        # PyTorch says it in words of its own: no kernel for this device, dtype or head_dim
        said = str(error).splitlines() or [type(error).__name__]
        raise Unavailable(f"on {task.device.type}: {said[0]}") from None
    return Program(module, held)
