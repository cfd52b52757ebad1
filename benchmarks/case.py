"""A case: one computation on one device, and the programs that are compared in it, as data."""

from dataclasses import dataclass, replace
from functools import cached_property

from vit_fast.workload import Operation, operations

from .subjects import SUBJECTS, Subject

ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2}
# behind the name of a linear layer: with its residual and the LayerNorm of their sum, as one operation
NORM = ", layer_norm"


@dataclass(frozen=True)
class Case:
    """layer, subject, what, dtype, batch, cache: as in results.py. The baseline is the first of `programs`.

    programs of an ablation: empty, its steps are those of the device's table of operations (tasks.steps).
    """

    layer: str
    subject: str
    what: str
    dtype: str
    batch: int
    programs: tuple[str, ...]
    cache: str = "warm"

    @property
    def of(self) -> Subject:
        return SUBJECTS[self.subject]

    @property
    def name(self) -> str:
        words = [self.of.title, self.what, self.dtype, f"batch {self.batch}"]
        if self.layer != "model":
            words.insert(0, self.layer)
        if self.cache == "cold":
            words.append("cold cache")
        return " ".join(words)

    @property
    def baseline(self) -> str:
        return self.programs[0]

    @property
    def scenario(self) -> str:
        return "single stream" if self.batch == 1 else "offline"

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(operations(self.of.model, self.batch, ITEMSIZE[self.dtype]))

    @cached_property
    def operation(self) -> Operation | None:
        """Of an operation's case, with its shape; "fc1" with its activation, "proj" and "fc2" with the residual."""
        if self.layer != "operation":
            return None
        named = {o.name: o for o in self.operations}
        found = named[self.what.removesuffix(NORM)]
        return self._with_norm(found, named["layer_norm"]) if self.what.endswith(NORM) else found

    def _with_norm(self, linear: Operation, norm: Operation) -> Operation:
        """A linear layer and the LayerNorm of what it adds up to, whose rows are read once less."""
        once = ITEMSIZE[self.dtype] * norm.shape["M"] * norm.shape["N"]
        nbytes = linear.bytes + norm.bytes - once
        return replace(linear, name=self.what, op="linear_norm", bytes=nbytes)

    @property
    def flops(self) -> float | None:
        """Of a call that computes all tokens, heads and processors not counted, whatever a program leaves out.

        Where the class token alone is asked for, a program that leaves rows of its last block out does less.
        """
        if self.layer == "cold start":
            return None
        if self.operation is not None:
            return self.operation.flops or None
        if self.layer == "block":
            inside = [o for o in self.operations if o.op != "patch_embed"]
            return sum(o.flops * o.count for o in inside) / self.of.model.depth
        return sum(o.flops * o.count for o in self.operations)

    @property
    def bytes(self) -> float | None:
        return self.operation and self.operation.bytes

    @property
    def count(self) -> int | None:
        """How often a forward pass has this operation; None for one that is made of two of the list."""
        if self.operation is None or self.operation.op == "linear_norm":
            return None
        return self.operation.count
