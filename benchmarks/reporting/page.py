"""The report as one HTML file: everything in it, nothing fetched, to be judged by whoever has it and nothing else."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from ..plots import Picture
from ..results import Results, commits
from .columns import COLUMNS, TERMS
from .markup import Html, joined, listed, tag
from .page_style import CSS
from .page_tables import glance, pairs, rows_of
from .verdict import judged, losses, sentence, spans
from .words import counted

SECTIONS = {
    "model": "Whole models",
    "operation": "Operations",
    "block": "Blocks",
    "ablation": "What each step gains",
    "end to end": "End to end",
    "cold start": "Cold start",
}
# where programs are rivals, beside whole models
OTHERS = ("operation", "block", "end to end", "cold start")
CELL = (
    "A cell is a model in one dtype at one batch. Only programs inside the accuracy rule are ranked: one image"
    " a call by p90, more by images a second. All were timed on this machine, in this run."
)
ROWS = (
    "\u2605 is the best accurate program of a case; nobody is where the case was disturbed. Rows of vit-fast are"
    " on orange. Every row that was asked for is here, and what was not timed says why."
)
LEAD = {
    "ablation": (
        "Each row is the one before it with one more step. No row is ranked: the steps are not rivals."
    ),
    "cold start": "In a process of its own; nothing is held against float64 here.",
}
NO_PICTURES = (
    "This page was made without pictures: the file has no case to draw, or matplotlib was not installed"
    " (pip install vit-fast[bench]). The tables have every number."
)


def write(results: Results, pictures: Sequence[Picture], path: Path) -> Path:
    """One file at `path`, whose folder is made if need be; the old file or the new one is there, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".tmp")
    half.write_text(page(results, pictures), encoding="utf-8")
    os.replace(half, path)
    return path


def page(results: Results, pictures: Sequence[Picture]) -> str:
    machine, run = results["machine"], results["run"]
    device = str(machine.get("device") or "an unknown device")
    title = f"vit-fast on {device}"
    parts = {
        "Verdict": verdict(results),
        "Machine and run": card(results),
        "Pictures": drawn(pictures),
        **{head: section(results, layer) for layer, head in SECTIONS.items()},
        "How it was measured": method(results),
    }
    parts = {head: content for head, content in parts.items() if content}
    links = [tag("a", head, href=f"#{anchor(head)}") for head in parts]
    when = f"suite {run.get('suite', 'unknown')}, {run.get('at', 'at an unknown time')}"
    sections = [
        tag("section", tag("h2", head), content, id=anchor(head)) for head, content in parts.items()
    ]
    body = joined(
        tag("header", tag("h1", title), tag("p", when)),
        tag("nav", *(joined(link, " ") for link in links)),
        tag("main", *sections),
    )
    head = joined(
        Html(
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        ),
        tag("title", f"{title}: benchmarks"),
        tag("style", Html(CSS)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{tag("head", head)}\n{tag("body", body)}</html>\n'


def anchor(head: str) -> str:
    return head.lower().replace(" ", "-")


def verdict(results: Results) -> Html:
    cells = judged(results, "model")
    if cells:
        said = joined(tag("p", sentence(results), class_="verdict"), tag("p", CELL))
    else:
        said = tag("p", "This file has no case of a whole model: it does not say who is faster.")
    lost = losses(cells)
    rest = [
        joined(tag("b", f"{head}: "), sentence(results, layer, "case"))
        for layer, head in SECTIONS.items()
        if layer in OTHERS and judged(results, layer)
    ]
    return joined(
        said,
        listed(spans(results)),
        glance(results),
        tag("h3", f"Lost: {counted(len(lost), 'cell')}") if lost else None,
        listed(lost, class_="lost"),
        tag("h3", "The other layers") if rest else None,
        listed(rest),
        *other_losses(results),
    )


def other_losses(results: Results) -> list[Html]:
    found = []
    for layer in OTHERS:
        lost, head = losses(judged(results, layer)), SECTIONS[layer]
        if lost:
            found.append(
                joined(
                    tag("h3", f"{head}, lost: {counted(len(lost), 'case')}"),
                    listed(lost, class_="lost"),
                )
            )
    return found


def card(results: Results) -> Html:
    """All of machine, run, method and peaks."""
    method = {k: v for k, v in results["method"].items() if k != "text"}
    return tag(
        "div",
        pairs(results["machine"], "Machine"),
        pairs(results["run"], "Run"),
        pairs(method, "Method"),
        pairs(results["peaks"], "Peaks: TFLOP/s by dtype, and GB/s of a large copy"),
        class_="cards",
    )


def drawn(pictures: Sequence[Picture]) -> Html:
    return joined(*map(figure, pictures)) if pictures else tag("p", NO_PICTURES)


def figure(picture: Picture) -> Html:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = Html(
        tag("img", src=f"data:image/png;base64,{data}", alt=picture.alt).removesuffix("</img>")
    )
    return tag(
        "figure",
        tag("div", image, class_="scroll"),
        tag(
            "figcaption",
            tag("b", f"{picture.title}. "),
            picture.caption,
            " ",
            tag("small", picture.path.name),
        ),
    )


def section(results: Results, layer: str) -> Html:
    table = rows_of(results, layer)
    return joined(tag("p", LEAD.get(layer, ROWS)), table) if table else Html("")


def method(results: Results) -> Html:
    run = results["run"]
    named = commits(results)
    commit = f"at commit {named}" if named else "of a commit that the file does not name"
    terms = [*((c.head, c.meaning) for c in COLUMNS.values()), *TERMS.items()]
    start = "python -m pytest" if run.get("front") == "pytest" else "python -m benchmarks run"
    again = f"In a checkout of vit-fast {commit}, on a machine of this kind; FILE is what the first line writes:"
    text = results["method"].get("text") or "The file does not say how the times were taken."
    return joined(
        tag("p", str(text)),
        tag("h3", "Every column and word"),
        tag("dl", *(joined(tag("dt", term), tag("dd", meaning)) for term, meaning in terms)),
        tag("h3", "Again"),
        tag("p", again),
        tag(
            "pre",
            f"{start} {run.get('arguments') or ''}".rstrip() + "\npython -m benchmarks report FILE",
        ),
    )
