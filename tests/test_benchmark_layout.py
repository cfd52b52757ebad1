"""The words of the pictures can be read, whatever file they are made of."""

from itertools import combinations

import pytest

import benchmark_variants as variants
from benchmark_results import results
from benchmarks.plots import draw

pytest.importorskip("matplotlib")


def a_loss() -> dict:
    """An ablation in which a step costs time, and a step whose result is inaccurate."""
    found = variants.only("ablation")
    step = found["cases"][0]["rows"][3]
    step.update(p50_ms=900.0, status="inaccurate", why="largest error 2, allowed 1")
    return found


def whats() -> dict:
    """Outputs of one model side by side, and names that are long."""
    title = "DINOv2-with-registers-giant/14-518"
    rival = "a program that has a name which does not end"
    speeds = {"transformers, eager": 1.0, rival: 2.0, "vit-fast": 1.5}
    found = variants.models([title], {"fp16": 4.0}, (1, 8, 64), speeds)
    outputs = [{**c, "what": what} for what in ("tokens", "pooled", "logits") for c in found]
    return {**results(), "cases": outputs}


def without_bytes() -> dict:
    """As the runner leaves them: bytes of operations alone, and two outputs of a model."""
    found = whats()
    cases = [c for c in found["cases"] if c["batch"] == 8][:2]
    title = cases[0]["title"]
    return {
        **found,
        "peaks": variants.gpu()["peaks"],
        "cases": [
            *variants.operations(title, "fp16", 8, True, 0.4),
            *({**c, "bytes": None} for c in cases),
        ],
    }


FILES = {
    "models without bytes": without_bytes,
    "made up": results,
    "another seed": lambda: results(5),
    "one case": variants.one_model,
    "operations with calls": variants.counted_operations,
    "a step that costs": a_loss,
    "three outputs": whats,
    "seventeen programs": variants.many_programs,
    "seven models, seventeen programs": lambda: variants.many_programs(variants.MODELS),
    "a GPU": lambda: {**variants.gpu(), "cases": [c for c in variants.gpu()["cases"] if c["dtype"] == "bf16"]},
}  # fmt: skip


SLOW = ("another seed", "seven models, seventeen programs", "a GPU")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FILES]
)
def test_words_can_be_read(tmp_path, monkeypatch, name):
    """No word leaves its picture, and none stands on another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    drawn: list[tuple[str, Bbox]] = []
    pages: list[tuple[str, Bbox, list[tuple[str, Bbox]]]] = []
    draw_text, draw_page = Text.draw, FigureCanvasAgg.draw

    def text_drawn(text, renderer, *rest):
        if text.get_visible() and text.get_text().strip():
            drawn.append((text.get_text(), text.get_window_extent(renderer)))
        draw_text(text, renderer, *rest)

    def page_drawn(canvas):
        drawn.clear()
        draw_page(canvas)
        pages.append((canvas.figure.texts[0].get_text(), canvas.figure.bbox.frozen(), list(drawn)))

    monkeypatch.setattr(Text, "draw", text_drawn)
    monkeypatch.setattr(FigureCanvasAgg, "draw", page_drawn)
    pictures = draw(FILES[name](), tmp_path)
    assert len(pages) == len(pictures) > 0
    for file, whole, words in pages:
        assert whole.width == 9 * 160 and len(words) > 8
        for text, box in words:
            inside = (
                whole.x0 <= box.x0 + 1
                and box.x1 <= whole.x1 + 1
                and whole.y0 <= box.y0 + 1
                and box.y1 <= whole.y1 + 1
            )
            assert inside, f"{file}: {text!r} leaves the picture"
        for (a, p), (b, q) in combinations(words, 2):
            # boxes of letters have some air of their own
            across, down = min(p.x1, q.x1) - max(p.x0, q.x0), min(p.y1, q.y1) - max(p.y0, q.y0)
            assert min(across, down) < 3, f"{file}: {a!r} on {b!r}"
