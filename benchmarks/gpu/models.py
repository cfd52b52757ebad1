"""Whole models: transformers' own with random weights, its float64 twin, and ours on the same weights."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel

import vit_fast
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.correctness import OTHER_DTYPES
from benchmarks.gpu.digest import OURS
from benchmarks.gpu.programs import DTYPES, KERNELS, judge, worst
from benchmarks.gpu.repeated import poisoned_memory
from benchmarks.gpu.setting import Setting
from benchmarks.subjects import sizes
from models import NORM, hf_model, images, in_float64
from vit_fast import ViT
from vit_fast.kernels.folding import launch as row_statistics
from vit_fast.kernels.linear_folded import launch_folded, launch_statistics
from vit_fast.kernels.tuning import gpu_of
from vit_fast.ops import Folding, Ops, choose_ops, triton_ops
from vit_fast.recorder import CudaRecorder
from vit_fast.workload import Model


def stock(
    setting: Setting,
    model: Model,
    dtype: str,
    cls: type[PreTrainedModel] | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """transformers' model of these sizes, of its own class or of `cls`, every parameter random, eager attention.

    Without a head that it would compute beside the tokens.
    """
    cls = cls or getattr(transformers, model.hf)
    config = sizes(model, cls.__name__)
    if cls is ViTModel:
        config["add_pooling_layer"] = False
    return hf_model(cls, DTYPES[dtype], **{**config, **changes}).to(setting.device)


@dataclass(frozen=True)
class Variant:
    """A way to run ours. folded, pdl: None as it ships, True or False whatever ships."""

    name: str
    graphs: bool = True
    folded: bool | None = None
    pdl: bool | None = None


DEFAULT = Variant(OURS)
VARIANTS = (
    DEFAULT,
    Variant("vit-fast, launches", graphs=False),
    Variant("vit-fast, neither", folded=False, pdl=False),
    Variant("vit-fast, folded", folded=True, pdl=False),
    Variant("vit-fast, pdl", folded=False, pdl=True),
    Variant("vit-fast, folded, pdl", folded=True, pdl=True),
)


def variants(setting: Setting) -> tuple[Variant, ...]:
    """Those that can run: the interpreter knows no dependent launch."""
    return tuple(v for v in VARIANTS if not (setting.dry and v.pdl))


class AnyTable(CudaRecorder):
    """Records a variant's launches as well, which are not those of triton_ops()."""

    @staticmethod
    def takes(pixels: Tensor, ops: Ops) -> bool:
        return CudaRecorder.takes(pixels, triton_ops(ops.folding is not None))


def ops_of(variant: Variant, device: torch.device) -> Ops:
    """The kernels with or without LayerNorm folded, launched early or not."""
    table = triton_ops(bool(variant.folded))
    gpu = replace(gpu_of(device), pdl=bool(variant.pdl))
    folding = table.folding and Folding(
        partial(row_statistics, gpu=gpu), partial(launch_statistics, gpu=gpu), partial(launch_folded, gpu=gpu)
    )  # fmt: skip
    ops = {name: partial(kernel.launch, gpu=gpu) for name, kernel in KERNELS.items()}
    return replace(table, name=f"triton, {variant.name}", folding=folding, **ops)


def ours(setting: Setting, hf: PreTrainedModel, variant: Variant = DEFAULT) -> ViT:
    """On the kernels, or RuntimeError."""
    vit = ViT.from_hf(hf, NORM)
    if variant.folded is not None or setting.dry:
        vit.ops = ops_of(variant, vit.device)
        vit.recorder = AnyTable
    else:
        table, why = choose_ops(vit.device, vit.dtype, vit.spec.head_dim)
        if not table.name.startswith("triton"):
            raise RuntimeError(f"not on the kernels: {why}")
    vit.graphs = variant.graphs
    return vit


def in_parts(model: Callable[[Tensor], Tensor], pixels: Tensor, images: int = 32) -> Tensor:
    """The same in parts of so many images: float64 attention keeps its scores in memory."""
    return torch.cat([model(part) for part in pixels.split(images)])


def outputs(
    setting: Setting, depth: int, asked: str, dtype: str, variant: Variant
) -> dict[str, Any]:
    """A model of the main sizes and `depth` against transformers' own.

    asked: "tokens"; "hidden states", all of them; "logits", where the last block computes the class token alone;
    "bytes", tokens of uint8 images.
    """
    cls = ViTForImageClassification if asked == "logits" else None
    hf = stock(setting, setting.main, dtype, cls, num_hidden_layers=depth, num_labels=7)
    kind = torch.uint8 if asked == "bytes" else DTYPES[dtype]
    size = setting.main.image
    pixels = images(setting.model_batch, 3, size, size, dtype=kind).to(setting.device)
    floats, exact = pixels, pixels.double()
    if asked == "bytes":
        mean, std = (
            torch.tensor(v, dtype=torch.float64, device=setting.device).view(3, 1, 1)
            for v in (NORM.mean, NORM.std)
        )
        exact = (exact * NORM.rescale - mean) / std
        floats = exact.to(DTYPES[dtype])
    hidden = dict(output_hidden_states=asked == "hidden states")
    baseline, ref = hf(floats, **hidden), in_float64(hf)(exact, **hidden)
    vit, rows = ours(setting, hf, variant), []
    # filling memory keeps each kernel apart from the one in front; without, a dependent launch overlaps it
    for memory in (poisoned_memory, contextlib.nullcontext):
        vit.release_graphs()
        with memory():
            # a graph is captured by one call and replayed by the next ones
            for _ in range(setting.repeats):
                match asked:
                    case "logits":
                        y = vit.features(pixels, tokens=False, logits=True).logits
                        rows.append(judge(y, ref.logits, baseline.logits))
                    case "hidden states":
                        found = vit.features(pixels, hidden_states=True).hidden_states
                        pairs = zip(found, ref.hidden_states, baseline.hidden_states, strict=True)
                        rows += [judge(*three) for three in pairs]
                    case _:
                        rows.append(
                            judge(vit(pixels), ref.last_hidden_state, baseline.last_hidden_state)
                        )
    return worst(rows)


def drop_in(setting: Setting, dtype: str) -> dict[str, Any]:
    """vit_fast.accelerate on transformers' own model; on the fast path, or it is wrong."""
    hf = stock(setting, setting.main, dtype, num_hidden_layers=setting.model_depths[0])
    size = setting.main.image
    pixels = images(setting.model_batch, 3, size, size, dtype=DTYPES[dtype]).to(setting.device)
    baseline, ref = hf(pixels).last_hidden_state, in_float64(hf)(pixels.double()).last_hidden_state
    fast = copy.deepcopy(hf)
    fast.set_attn_implementation("sdpa")
    vit_fast.accelerate(fast)
    row = worst([judge(fast(pixels).last_hidden_state, ref, baseline) for _ in range(setting.repeats)])  # fmt: skip
    (encoder,) = vit_fast.explain(fast)
    reason = "" if encoder.fast else f"not on the fast path: {encoder.reason}"
    return {**row, "wrong": row["wrong"] or reason}


def cells(setting: Setting) -> Iterator[Cell]:
    for order, dtype in enumerate(setting.dtypes):
        for depth in setting.model_depths:
            first = 0.1 if depth == setting.model_depths[0] else 0.4
            rank = OTHER_DTYPES + order / 100 if order else first
            for asked in ("tokens", "logits", "bytes", "hidden states"):
                for variant in variants(setting):
                    name = f"{setting.main.name} depth {depth} {asked}, {variant.name} {dtype}"
                    params = dict(depth=depth, asked=asked, dtype=dtype, variant=variant)
                    yield _cell(name, outputs, params, rank)
        rank = OTHER_DTYPES + order / 100 if order else 0.4
        yield _cell(f"{setting.main.name} drop-in {dtype}", drop_in, dict(dtype=dtype), rank)


def _cell(name: str, run: Callable, params: dict[str, Any], rank: float) -> Cell:
    return Cell("models", name, run, params, rank, 4.0, limit=120, alone=False, ours=True)
