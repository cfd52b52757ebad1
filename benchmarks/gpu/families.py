"""Every supported class of transformers, tiny, accelerated, against its float64 twin: all tensors of its output."""

import copy
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter

import vit_fast
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.correctness import OTHER_DTYPES
from benchmarks.gpu.programs import DTYPES, judge, worst
from benchmarks.gpu.setting import Setting
from benchmarks.measure import ROOT
from models import in_float64

sys.path.insert(0, str(ROOT / "tests" / "families"))

from cases import CASES, double

SIZES = ("native", "not square")


def drop_in(setting: Setting, case: str, dtype: str) -> dict[str, Any]:
    """On the fast path, or it is wrong. Called again and again, so that graphs are replayed."""
    stock = CASES[case].model(DTYPES[dtype]).to(setting.device)
    fast, exact, rows = vit_fast.accelerate(copy.deepcopy(stock)), in_float64(stock), []
    for size in SIZES:
        inputs = CASES[case].inputs(size, setting.model_batch, DTYPES[dtype])
        inputs = {
            k: v.to(setting.device) if isinstance(v, Tensor) else v for k, v in inputs.items()
        }
        for asked in ({}, {"output_hidden_states": True}):
            baseline, ref = (
                _tensors(stock(**inputs, **asked)),
                _tensors(exact(**double(inputs), **asked)),
            )
            for _ in range(setting.repeats):
                found = _tensors(fast(**inputs, **asked))
                three = zip(found, ref, baseline, strict=True)
                rows += [judge(y, r.double(), b) for y, r, b in three]
    (encoder,) = vit_fast.explain(fast)
    reason = "" if encoder.fast else f"not on the fast path: {encoder.reason}"
    row = worst(rows)
    return {**row, "operations": encoder.ops, "wrong": row["wrong"] or reason}


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_iter(dict(output)) if isinstance(t, Tensor)]


def cells(setting: Setting) -> Iterator[Cell]:
    # a dry run takes three of them
    names = tuple(CASES)[:: len(CASES) // 3] if setting.dry else CASES
    for order, dtype in enumerate(setting.dtypes):
        rank = OTHER_DTYPES + order / 100 if order else 0.3
        for case in names:
            params = dict(case=case, dtype=dtype)
            name = f"{case} {dtype}"
            yield Cell("families", name, drop_in, params, rank, limit=60, alone=False, ours=True)
