"""Cells run in processes of their own: a crash, a hang or a GPU context that an error has spoilt costs one cell."""

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import Cell


class Worker:
    """A process that answers cells one at a time; what it prints goes to `log`."""

    def __init__(self, setting: Any, log: Path) -> None:
        # a fork would inherit nothing that CUDA can use
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setting, str(log)))
        self.process.start()
        theirs.close()
        self.ready = False
        self.cell: Cell | None = None
        self.begun = time.monotonic()

    def begin(self, cell: Cell, **more: Any) -> None:
        self.cell, self.begun = cell, time.monotonic()
        self.connection.send((cell, more))

    def end(self, patience: float = 0.0) -> int | None:
        """Ends the process and those that it started; the exit code, or minus the signal, of one that ended by itself.

        It is given `patience` seconds for that.
        """
        self.process.join(patience)
        code = self.process.exitcode
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            # it has not come as far as a group of its own, or is gone with all of it
            self.process.kill()
        # with a kernel that hangs it may take its time to go
        self.process.join(10.0)
        self.connection.close()
        return code


def serve(connection: Connection, setting: Any, log: str) -> None:
    os.setpgrp()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    setting.prepare()
    gc.collect()
    # a graph capture collects garbage first: not the modules', every time
    gc.freeze()
    connection.send("ready")
    while True:
        try:
            cell, more = connection.recv()
        except EOFError:
            return
        print(f"--- {cell.key}", flush=True)
        row = answer(cell, setting, more)
        usable = _usable()
        connection.send((row, usable))
        if not usable:
            return


def answer(cell: Cell, setting: Any, more: dict[str, Any]) -> dict[str, Any]:
    """The cell's row. status: ok; wrong, where the row says so under "wrong"; failed, with the reason under "why"."""
    try:
        row = dict(cell.run(setting, **cell.params, **more))
        _settle()
        row["status"] = "wrong" if row.get("wrong") else "ok"
    except Exception as error:
        # whatever went wrong is the finding
        traceback.print_exc()
        row = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:1000]}
    return row


def _settle() -> None:
    """Errors of what is still under way surface here, in the cell whose they are."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _usable() -> bool:
    """Whether the next cell may use this process: an illegal access spoils its CUDA context for good."""
    try:
        _settle()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True
