"""A model of one multiprocessor, each warpgroup a thread, under a random schedule.

What is modelled: mbarriers with parities, arrival and byte counts; bulk copies that clip at the
tensor's end and happen later; warpgroup products that read shared memory until they are complete,
in order; the fence between a thread's store and the copy engine. One thread runs at a time; it
gives way at each operation on a barrier, a copy or a product, to whichever thread, copy or product
the schedule picks. AssertionError: deadlock, shared memory overwritten under a reader or read while
it is written, a product used before it is waited for, a store without its fence, wrong byte counts.

What is not: layouts, banks, registers, and warps of one warpgroup that run apart.
"""

import random
import threading
from collections.abc import Callable

import torch


class Barrier:
    def __init__(self):
        self.arrivals = self.pending = self.bytes = self.completed = 0

    def init(self, count: int) -> None:
        self.arrivals = self.pending = count

    def arrive(self, count: int = 1, bytes: int = 0) -> None:
        self.pending -= count
        assert self.pending >= 0, "more arrivals than the barrier was made for"
        self.add(bytes)

    def add(self, bytes: int) -> None:
        self.bytes += bytes
        if self.pending == 0 and self.bytes == 0:
            self.completed += 1
            self.pending = self.arrivals

    def passes(self, parity: int) -> bool:
        # the hardware's test: the running phase has the other parity
        return self.completed & 1 != parity


class Shared:
    """Shared memory that is copied and multiplied whole; index() gives the parts of an array of it."""

    def __init__(self, shape, dtype, barrier: bool = False):
        self.shape, self.dtype = list(shape), dtype
        if len(shape) > 2 or barrier:
            self.parts = [Barrier() if barrier else Cell(shape[1:], dtype) for _ in range(shape[0])]

    def index(self, i: int):
        assert 0 <= i < len(self.parts), f"part {i} of {len(self.parts)}"
        return self.parts[i]


class Cell:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = list(shape), dtype
        self.data = torch.full(self.shape, float("nan"), dtype=dtype)
        self.readers = 0
        self.written = True  # False while a copy is on its way in
        self.fenced = True

    def view(self) -> torch.Tensor:
        return self.data

    def reshape(self, shape):
        return View(self, lambda: self.data.reshape(shape), shape)

    def permute(self, order):
        return View(self, lambda: self.data.permute(order), [self.shape[i] for i in order])

    def load(self, layout) -> torch.Tensor:
        assert self.written, "read while a copy writes it"
        return self.data.clone()

    def store(self, value: torch.Tensor) -> None:
        assert self.readers == 0 and self.written, "overwritten while a copy reads or writes it"
        assert value.dtype == self.dtype and list(value.shape) == self.shape
        self.data, self.fenced = value.clone(), False
        threading.current_thread().unfenced.append(self)


class View:
    def __init__(self, cell: Cell, view: Callable, shape):
        self.cell, self.view, self.shape = cell, view, list(shape)

    def permute(self, order):
        return View(self.cell, lambda: self.view().permute(order), [self.shape[i] for i in order])

    def store(self, value: torch.Tensor) -> None:
        self.cell.store(value.reshape(self.cell.shape))


class Product:
    """An accumulator in flight: a tensor only once it has been waited for."""

    value = None

    def __getattr__(self, name: str):
        raise AssertionError("a product is used before it is waited for")


class Abort(BaseException):
    pass


class Warpgroup(threading.Thread):
    def __init__(self, machine: "Machine", function: Callable, args: tuple):
        super().__init__(daemon=True)
        self.machine, self.function, self.args = machine, function, args
        self.go = threading.Semaphore(0)
        self.over: Callable[[], bool] | None = lambda: True
        self.error = None
        self.products: list[Callable] = []  # under way, oldest first
        self.issued: list[Product] = []
        self.sending = 0
        self.unfenced: list[Cell] = []
        self.speed = 10 ** machine.random.uniform(-1.5, 0)

    def run(self) -> None:
        self.go.acquire()
        try:
            self.function(*self.args)
            assert not self.products, "ends with a product in flight"
            assert not self.sending, "ends with a copy that still reads its shared memory"
        except BaseException as error:
            self.error = error
        self.over = None
        self.machine.back.release()

    def wait(self, over: Callable[[], bool]) -> None:
        self.over = over
        self.machine.back.release()
        self.go.acquire()
        if self.machine.aborted:
            raise Abort


class Machine:
    """One program of a grid."""

    def __init__(self, seed: int, program: int, programs: int):
        self.random = random.Random(seed)
        self.program, self.programs = program, programs
        self.back = threading.Semaphore(0)
        self.aborted = False
        self.copies: list[Callable] = []
        self.speeds: list[float] = []  # of the copies; some take a thousand times as long as others
        self.product_speed = 10 ** self.random.uniform(-2, 0)

    def later(self, copy: Callable) -> None:
        self.copies.append(copy)
        self.speeds.append(10 ** self.random.uniform(-3, 0))

    def me(self) -> Warpgroup:
        return threading.current_thread()

    def warp_specialize(self, functions, warps, registers) -> None:
        groups = [Warpgroup(self, f, args) for f, args in functions]
        for g in groups:
            g.start()
        try:
            while any(g.over for g in groups):
                self._step(groups)
        finally:
            self.aborted = True
            for g in groups:
                g.go.release()
                g.join()

    def _step(self, groups: list[Warpgroup]) -> None:
        """Runs one thread to its next wait, or ends one copy, or one product."""
        ready = [g for g in groups if g.over and g.over()]
        queues = [g.products for g in groups if g.products]
        choices = [*ready, *range(len(self.copies)), *queues]
        assert choices, "deadlock"
        weights = [g.speed for g in ready] + self.speeds + [self.product_speed] * len(queues)
        (choice,) = self.random.choices(choices, weights)
        if isinstance(choice, Warpgroup):
            choice.go.release()
            self.back.acquire()
            if choice.error is not None:
                raise choice.error
        elif isinstance(choice, int):
            self.speeds.pop(choice)
            self.copies.pop(choice)()
        else:
            choice.pop(0)()

    # what the kernels call

    def wait(self, barrier: Barrier, parity: int) -> None:
        self.me().wait(lambda: barrier.passes(parity))

    def arrive(self, barrier: Barrier, *, count: int = 1, pred: bool = True) -> None:
        if pred:
            barrier.arrive(count)
        self.me().wait(lambda: True)

    def expect(self, barrier: Barrier, bytes: int) -> None:
        barrier.arrive(1, bytes)
        self.me().wait(lambda: True)

    def copy_in(self, desc, coords, barrier: Barrier, cell: Cell) -> None:
        assert cell.readers == 0 and cell.written, "overwritten while it is read or written"
        assert list(desc.block_shape) == cell.shape
        cell.written = False
        cell.data = torch.full(cell.shape, float("nan"), dtype=cell.dtype)

        def done() -> None:
            cell.data.zero_()
            inside = _inside(desc, coords)
            cell.data[tuple(slice(0, s.stop - s.start) for s in inside)] = desc.base[inside]
            cell.written = True
            barrier.add(-cell.data.numel() * cell.data.element_size())

        self.later(done)
        self.me().wait(lambda: True)

    def copy_out(self, desc, coords, cell: Cell) -> None:
        assert cell.written and cell.fenced, "sent out before its fence"
        assert list(desc.block_shape) == cell.shape
        me, inside = self.me(), _inside(desc, coords)
        cell.readers += 1
        me.sending += 1

        def done() -> None:
            box = cell.data[tuple(slice(0, s.stop - s.start) for s in inside)]
            assert desc.base[inside].isnan().all(), "stored twice"
            desc.base[inside] = box
            cell.readers -= 1
            me.sending -= 1

        self.later(done)
        me.wait(lambda: True)

    def store_wait(self, pending: int) -> None:
        me = self.me()
        me.wait(lambda: me.sending <= pending)

    def mma(self, a, b, acc, *, use_acc: bool = True, is_async: bool = False) -> Product:
        me, product = self.me(), Product()
        cells = [getattr(t, "cell", t) for t in (a, b) if not isinstance(t, torch.Tensor)]
        for cell in cells:
            assert cell.written, "multiplied while a copy writes it"
            cell.readers += 1

        def complete() -> None:
            x, y = (t if isinstance(t, torch.Tensor) else t.view() for t in (a, b))
            product.value = x.float() @ y.float()
            if use_acc:
                product.value += acc.value if isinstance(acc, Product) else acc
            for cell in cells:
                cell.readers -= 1

        me.products.append(complete)
        me.issued.append(product)
        me.wait(lambda: True)
        return product

    def mma_wait(self, outstanding: int, deps: list):
        me = self.me()
        me.wait(lambda: len(me.products) <= outstanding)
        flying = me.issued[max(0, len(me.issued) - outstanding) :]
        deps = [d.value if isinstance(d, Product) and d not in flying else d for d in deps]
        return deps[0] if len(deps) == 1 else tuple(deps)


def _inside(desc, coords) -> tuple[slice, ...]:
    """The part of the box at `coords` that the tensor has."""
    return tuple(
        slice(min(c, n), min(c + b, n)) for c, b, n in zip(coords, desc.block_shape, desc.shape)
    )
