"""Runs a Gluon kernel's own source on CPU tensors, on the model of a multiprocessor in gluon_machine.py."""

import inspect
import textwrap
import threading
from collections.abc import Callable
from types import SimpleNamespace

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from gluon_machine import Machine, Shared
from vit_fast.kernels.activations import activation_ref


class Pointer:
    def __init__(self, t: torch.Tensor):
        self.t = t

    def __add__(self, offs: torch.Tensor):
        return self.t, offs


def _load(pointer, mask, other) -> torch.Tensor:
    t, offs = pointer
    return torch.where(mask, t[offs.clamp(max=len(t) - 1)], torch.tensor(other, dtype=t.dtype))


def _language(machine: Machine) -> dict[str, object]:
    """The names that the kernels use, on CPU tensors."""

    def allocate(dtype, shape, layout):
        return Shared(shape, dtype, barrier=dtype == torch.int64)

    def fence() -> None:
        unfenced = getattr(threading.current_thread(), "unfenced", [])
        while unfenced:
            unfenced.pop().fenced = True

    gl = SimpleNamespace(
        constexpr=None, float32=torch.float32, int64=torch.int64, static_range=range,
        program_id=lambda axis: machine.program, num_programs=lambda axis: machine.programs,
        warp_specialize=machine.warp_specialize, allocate_shared_memory=allocate,
        NVMMADistributedLayout=lambda *a: None, SliceLayout=lambda *a: None, DotOperandLayout=lambda *a: None,
        cdiv=lambda a, b: -(-a // b), zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        arange=lambda a, b, layout: torch.arange(a, b), load=_load,
        where=lambda c, a, b: torch.where(c, a, torch.tensor(b)),
        max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis), maximum=torch.maximum, exp2=torch.exp2,
        reshape=torch.reshape, permute=torch.permute, split=lambda x: x.unbind(-1),
        convert_layout=lambda x, layout: x.clone(),
    )  # fmt: skip
    mbarrier = SimpleNamespace(
        init=lambda barrier, count: barrier.init(count), MBarrierLayout=lambda: None,
        wait=machine.wait, arrive=machine.arrive, expect=machine.expect,
    )  # fmt: skip
    return dict(
        gl=gl, mbarrier=mbarrier, fence_async_shared=fence, warpgroup_mma=machine.mma,
        warpgroup_mma_wait=machine.mma_wait, copy_in=machine.copy_in, copy_out=machine.copy_out,
        store_wait=machine.store_wait,
    )  # fmt: skip


def _plain(kernel, names: dict, edit: tuple[str, str], made: dict, edited: list) -> Callable:
    """The Gluon function as a Python function over `names`, and those that it calls."""
    if kernel not in made:
        source = textwrap.dedent(inspect.getsource(kernel.fn)).removeprefix("@gluon.jit\n")
        if edit[0] and edit[0] in source:
            source = source.replace(*edit)
            edited.append(kernel)
        scope = {**kernel.fn.__globals__, **names}
        exec(source, scope)
        made[kernel] = scope[kernel.fn.__name__]
        for name, value in kernel.fn.__globals__.items():
            if isinstance(value, type(kernel)):
                scope[name] = _plain(value, names, edit, made, edited)
    return made[kernel]


def _argument(value):
    if isinstance(value, TensorDescriptor):
        return SimpleNamespace(
            base=value.base, shape=value.shape, block_shape=value.block_shape, dtype=value.base.dtype, layout=None
        )  # fmt: skip
    if isinstance(value, torch.Tensor):
        return Pointer(value)
    if hasattr(value, "fn"):
        name = value.fn.__name__.removesuffix("_half")
        return lambda x: activation_ref(x, None if name == "identity" else name)
    return value


class Modelled:
    """Stands in for a kernel: kernel[grid](...) runs its programs one after the other in the model.

    edit: (old, new) text, to break the kernel's source and see that it shows.
    """

    def __init__(self, kernel, seed: int, edit: tuple[str, str] = ("", "")):
        self.kernel, self.seed, self.edit = kernel, seed, edit

    def __getitem__(self, grid: tuple[int]) -> Callable:
        def run(*args, num_warps: int, **options) -> None:
            for program in range(grid[0]):
                machine, edited = Machine(self.seed + program, program, grid[0]), []
                body = _plain(self.kernel, _language(machine), self.edit, {}, edited)
                assert edited or not self.edit[0], "the text to edit is not in the kernel"
                body(*map(_argument, args))

        return run
