"""Launches of each family, counted and not run: what is fused adds none, and no tensor operation stands beside them."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
import vit_fast
from cases import CASES
from models import DEVICE, NAFLEX, NORM, SPEC, images, patches, randomize
from test_graphs_families import SPECS
from vit_fast import ViT, state
from vit_fast.kernels.tuning import KNOWN
from vit_fast.tune_switches import launchers

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counts where kernels are interpreted")

IJEPA = replace(SPECS["idefics"], resize="bicubic")
FAMILIES = {**SPECS, "ijepa": IJEPA, "siglip2": NAFLEX, "vit": SPEC}
HALF = torch.float16


# the launchers themselves, as for an H200: a mode sees nothing of what happens inside an operator
TABLES = {folded: launchers(KNOWN["sm_90"], folded) for folded in (False, True)}


class Beside(TorchDispatchMode):
    """Operations that are neither views nor empty, counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not (func.is_view or "empty" in func.name()):
            self.counts[func.name().removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels, with their counts. None runs."""
    from triton.runtime.interpreter import GridExecutor

    counts = Counter()
    monkeypatch.setattr(
        GridExecutor, "__call__", lambda self, *args, **kwargs: counts.update([self.fn.__name__])
    )
    with torch.no_grad():
        yield counts


def vit_of(spec, depth: int) -> ViT:
    spec = replace(spec, depth=depth)
    return randomize(ViT(spec, NORM)).eval().requires_grad_(False).to(HALF)


def per_block(spec, folded: bool) -> int:
    """qkv, attention, proj, fc1, fc2, and LayerNorms; folded, that of a gated fc1 alone."""
    return 5 + (spec.gated if folded else 2)


def counted(launched, run) -> tuple[int, Counter]:
    run()  # makes what is derived from the weights
    launched.clear()
    with Beside() as beside:
        run()
    return sum(launched.values()), beside.counts


def copies(count: int) -> dict[str, int]:
    return {"clone": count} if count else {}


def without_views(counts: Counter) -> dict[str, int]:
    return {name: n for name, n in counts.items() if name != "_unsafe_view"}


@pytest.mark.parametrize("dtype", [HALF, torch.uint8], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_pass(launched, name, folded, size, dtype):
    """LayerScale, gate and rotary positions are no launch."""
    spec, pixels = FAMILIES[name], images(3, 3, *size, dtype=dtype)
    for depth in (2, 3):
        vit = vit_of(spec, depth)
        total, beside = counted(launched, partial(vit.encode, pixels, TABLES[folded]))
        outside = 2 + spec.pre_norm - (not spec.norm_tokens) + folded
        assert total == depth * per_block(spec, folded) + outside
        assert not beside
        assert launched["one_pass_kernel"] + launched["flash_kernel"] == depth
        assert launched["gated_descriptor_kernel"] == spec.gated * depth
        assert launched["_patch_embed_kernel"] == 1


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name, more", [("siglip", 6), ("siglip2", 6), ("clip", 1)])
def test_pooled(launched, name, more, folded):
    """A MAP head is k and v, attention, proj, norm, fc1, fc2: its query is one row for all images. CLIP's is a norm."""
    vit, pixels, ops = vit_of(FAMILIES[name], 2), images(3, 3, 32, 32, dtype=HALF), TABLES[folded]
    plain, _ = counted(launched, lambda: vit.encode(pixels, ops))
    total, beside = counted(launched, lambda: vit.encode(pixels, ops, None, ("pooled",)))
    assert total == plain + more and not beside


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", [name for name, s in FAMILIES.items() if s.prefix_tokens])
def test_first_rows(launched, name, folded):
    """q is a launch of its own in the last block. Rows that do not lie evenly are copied once: of x, of the residual;
    statistics of some rows are."""
    vit, pixels, ops = vit_of(FAMILIES[name], 2), images(3, 3, 32, 32, dtype=HALF), TABLES[folded]
    whole, _ = counted(launched, lambda: vit.encode(pixels, ops))
    for rows in (1, 2):
        total, beside = counted(launched, partial(vit.encode, pixels, ops, rows))
        assert total == whole + 1
        assert without_views(beside) == copies((rows == 2) * 2 + folded)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_rows(launched, name, folded):
    """For a hidden state alone: no final norm, and none of what lies behind it."""
    vit, pixels, ops = vit_of(FAMILIES[name], 3), images(3, 3, 32, 32, dtype=HALF), TABLES[folded]
    spec = vit.spec
    block = per_block(spec, folded)
    for last in (1, 2, 3):
        total, beside = counted(launched, partial(vit.encode, pixels, ops, 0, (last,)))
        # patch embedding, the first norm, blocks without the one behind the last of them
        assert total == 1 + spec.pre_norm + 1 + last * block - (not folded)
        assert not beside
    total, beside = counted(launched, lambda: vit.encode(pixels, ops, 0, (0,)))
    assert total == 1 + spec.pre_norm and not beside


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    "grids, length, copied",
    [
        ([(3, 4), (2, 2), (4, 4)], 16, 0),
        ([(3, 4), (2, 2), (4, 4)], 20, 0),
        # the positions that they share become a row for each
        ([(3, 4)] * 3, 12, 1),
        ([(3, 4)] * 3, 16, 1),
    ],
)
def test_patches_of_siglip2(launched, grids, length, copied, folded):
    """One product with the positions as its residual; the mask is read inside attention, the MAP head's too."""
    vit = vit_of(NAFLEX, 2)
    pixels, ops = patches(vit, grids, length), TABLES[folded]
    total, beside = counted(launched, lambda: vit.encode(pixels, ops, None, ("pooled",)))
    assert total == 2 + (5 if folded else 7) * 2 + folded + 6
    assert without_views(beside) == copies(copied)
    assert not launched["_patch_embed_kernel"]


@pytest.mark.parametrize("size", ["native", "not square"])
@pytest.mark.parametrize(
    "name, beside",
    [
        ("vit", {"addmm": 1, "tanh": 1}),
        ("deit", {"addmm": 1, "tanh": 1}),
        ("deit with teacher", {"clone": 2, "addmm": 2, "add.Tensor": 1, "div.Tensor": 1}),
        ("ijepa", {}),
        ("dinov2", {}),
        ("dinov2 swiglu", {}),
        ("dinov2 with registers", {}),
        ("dinov3", {}),
        ("dinov3 gated", {}),
        ("clip", {}),
        ("clip projection", {"mm": 1}),
        ("siglip", {}),
        ("idefics2", {}),
    ],
)
def test_drop_ins(launched, monkeypatch, name, size, beside):
    """What is called beside the pass: transformers' own heads."""
    monkeypatch.setattr(state, "choose_ops", lambda *args: (TABLES[False], "in a test"))
    monkeypatch.setattr(state, "mode_forbids", lambda: "")
    model = vit_fast.accelerate(CASES[name].model(HALF), graphs=False)
    inputs = CASES[name].inputs(size, 3, HALF)
    total, found = counted(launched, lambda: model(**inputs))
    assert total >= 16 and without_views(found) == beside
