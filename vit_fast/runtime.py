"""What may run on a table without gradients, and what has to run through PyTorch's own operations.

One answer for ViT, which then takes torch_ops(), and for a drop-in, which then calls transformers' own forward.
"""

import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def mode_forbids() -> str:
    """Why the mode that PyTorch is in needs its own operations, or ""."""
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if torch.compiler.is_compiling():
        return ""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if torch._C._len_torch_dispatch_stack():
        # fake tensors, counters of operations
        return "a TorchDispatchMode is active"
    if torch._C._len_torch_function_stack() and not all(
        isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    ):
        return "a TorchFunctionMode is active"
    return ""


def autocast_is_on(device: torch.device) -> bool:
    """It chooses dtypes operation by operation, so it needs PyTorch's own."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device.type)
