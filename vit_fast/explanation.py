"""What explain() says: a value that programs read, and that prints as a table."""

from dataclasses import dataclass

from torch import nn

from vit_fast.graphs import Graphs
from vit_fast.state import state_of


@dataclass(frozen=True)
class Encoder:
    """One vision encoder of a model.

    name: its path in the model, "" for the model itself. type: the name of its class.
    fast: whether its last call ran on the engine; before the first call, whether one in inference mode would.
    reason: why not, or "". last_reason: why transformers' own forward ran the last time that it did.
    fast_calls, other_calls: how many calls ran on the engine, and how many through transformers' own forward.
    ops, ops_reason: the table of operations that the engine runs on (cpu, triton, torch), and why that one.
    nbytes: bytes that are held beside the model's own weights.
    graphs, graph_nbytes, no_graph: its CUDA graphs, their bytes of GPU memory, what is launched without one and why.
    """

    name: str
    type: str
    fast: bool
    reason: str = ""
    last_reason: str = ""
    fast_calls: int = 0
    other_calls: int = 0
    ops: str | None = None
    ops_reason: str = ""
    nbytes: int = 0
    graphs: int = 0
    graph_nbytes: int = 0
    no_graph: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, module: nn.Module, reason: str) -> "Encoder":
        if reason:
            return cls(name, type(module).__name__, False, reason, reason)
        state = state_of(module)
        bound = state.binding(module)
        refused = bound.refused or state.defaults(bound.configs).refused
        fast = not refused if state.last_was_fast is None else state.last_was_fast
        last = state.last_reason or refused
        graphs = bound.engine.graph_report() if bound.engine else Graphs()
        return cls(
            name,
            type(module).__name__,
            fast and not refused,
            refused or ("" if fast else last),
            last,
            state.fast_calls,
            state.other_calls,
            bound.ops.name if bound.ops else None,
            bound.ops_reason,
            bound.engine.derived_nbytes() if bound.engine else 0,
            graphs.count,
            graphs.nbytes,
            graphs.refused,
        )

    def __str__(self) -> str:
        calls = f"{self.fast_calls} calls fast, {self.other_calls} through transformers"
        if not self.fast_calls + self.other_calls:
            calls = "not called yet, or only in compiled graphs"
        name, how = self.name or "the model itself", "fast" if self.fast else "NOT fast"
        lines = [f"{name}: {self.type}, {how} ({calls})"]
        if self.ops:
            lines.append(f"operations: {self.ops} ({self.ops_reason})")
            lines.append(f"held beside the weights: {self.nbytes / 1e6:.1f} MB")
        if self.graphs:
            lines.append(f"CUDA graphs: {self.graphs}, {self.graph_nbytes / 1e6:.1f} MB")
        lines += [f"launched without a CUDA graph: {why}" for why in self.no_graph]
        if self.reason:
            lines.append(f"why not: {self.reason}")
        elif self.last_reason:
            lines.append(f"last time through transformers: {self.last_reason}")
        return "\n    ".join(lines)


@dataclass(frozen=True)
class Explanation:
    """The encoders that were found, outermost first."""

    encoders: tuple[Encoder, ...]

    def __iter__(self):
        return iter(self.encoders)

    def __len__(self) -> int:
        return len(self.encoders)

    def __getitem__(self, index: int) -> Encoder:
        return self.encoders[index]

    def __str__(self) -> str:
        return "\n".join(map(str, self.encoders)) or "no vision encoder of transformers found"

    __repr__ = __str__
