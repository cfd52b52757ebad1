"""What may run on a table without gradients, and what has to run through PyTorch's own operations.

One answer for ViT, which then takes torch_ops(), and for a drop-in, which then calls transformers' own forward.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def context_forbids(device: torch.device) -> str:
    """Why the context of this call needs PyTorch's own operations, or ""."""
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device.type):
        # it chooses dtypes operation by operation
        return "autocast is on"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if torch.compiler.is_compiling():
        return ""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if torch._C._len_torch_dispatch_stack():
        # fake tensors, counters of operations
        return "a TorchDispatchMode is active"
    return ""


def gradient_wanted(pixels: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether autograd would record this call."""
    if not torch.is_grad_enabled():
        return False
    return pixels.requires_grad or any(p.requires_grad for p in parameters)
