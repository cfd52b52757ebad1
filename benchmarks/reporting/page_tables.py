"""The tables of the page: cells at a glance, a row for each case and program, and what is known beside them."""

from __future__ import annotations

from ..results import Case, Results, Row, ranked
from .columns import COLUMNS, LAYERS, Column
from .markup import Html, joined, tag
from .verdict import Judged, judged
from .words import STATUS, number, output, short

WIDEST = 6  # columns of the table of cells; more are divided by dtype


def scrolled(table: Html) -> Html:
    """Wider than a phone: it scrolls by itself, the page does not."""
    return tag("div", table, class_="scroll")


def pairs(found: dict[str, object], title: str) -> Html:
    """Nested keys and values as a table of two columns."""
    rows = [
        tag("tr", tag("th", key, scope="row"), tag("td", value))
        for key, value in flat(found).items()
    ]
    if not rows:
        rows = [tag("tr", tag("td", "The file says nothing of it."))]
    return tag("table", tag("caption", title), tag("tbody", *rows), class_="pairs")


def flat(found: dict[str, object], before: str = "") -> dict[str, str]:
    said: dict[str, str] = {}
    for key, value in found.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            said.update(flat(value, f"{name} "))
        elif isinstance(value, list):
            said[name] = ", ".join(map(str, value)) or "none"
        elif isinstance(value, float):
            said[name] = f"{value:,.10g}"
        else:
            said[name] = "none" if value is None else str(value)
    return said


def glance(results: Results) -> Html:
    """Models by dtype and batch: what ours is to the best accurate rival."""
    cells = judged(results, "model")
    if not cells:
        return Html("")
    said = (
        "The best accurate vit-fast against the best accurate other program: above 1 vit-fast is faster."
        " One image a call by p90, more by images a second."
    )
    heads = list(dict.fromkeys((c.case["dtype"], c.case["batch"]) for c in cells))
    groups = [heads]
    if len(heads) > WIDEST:
        groups = [[h for h in heads if h[0] == d] for d in dict.fromkeys(h[0] for h in heads)]
    tables = [glance_table(cells, group) for group in groups]
    return joined(tag("h3", "Cell by cell"), tag("p", said), *map(scrolled, tables))


def glance_table(cells: list[Judged], heads: list[tuple[str, int]]) -> Html:
    rows: dict[str, dict[tuple[str, int], Judged]] = {}
    for cell in cells:
        name = f"{cell.case['title']} {output(cell.case)}"
        rows.setdefault(name, {})[cell.case["dtype"], cell.case["batch"]] = cell
    columns = [tag("th", f"{dtype}, batch {batch}", scope="col") for dtype, batch in heads]
    body = [
        tag("tr", tag("th", name, scope="row"), *(glimpse(found.get(key)) for key in heads))
        for name, found in rows.items()
        if found.keys() & set(heads)
    ]
    head = tag("thead", tag("tr", tag("th", "model", scope="col"), *columns))
    return tag("table", head, tag("tbody", *body), class_="glance")


def glimpse(cell: Judged | None) -> Html:
    if cell is None:
        return tag("td", "")
    others = sum(not r["ours"] for r in ranked(cell.case))
    against = f"against {cell.rival['program']}, best of {others}" if cell.rival else ""
    first = f"{cell.ratio:.2f}x" if cell.ratio else "-"
    words = {"won": "won", "lost": "LOST", "disturbed": "disturbed, not counted"}.get(
        cell.outcome, cell.outcome
    )
    if cell.close:
        words += ", within the spread"
    if cell.ours is None and cell.outcome == "lost":
        words = "LOST: no accurate result of ours"
    return tag(
        "td", tag("b", first), " ", words, Html("<br>"), tag("small", against),
        class_=cell.outcome.replace(" ", "-"),
    )  # fmt: skip


def rows_of(results: Results, layer: str) -> Html:
    """Every case and program of a layer; empty where the file has none."""
    cases = [c for c in results["cases"] if c["layer"] == layer]
    if not cases:
        return Html("")
    columns = [COLUMNS[name] for name in LAYERS[layer].split()]
    parts = list(dict.fromkeys(p for c in cases for r in c["rows"] for p in r["parts"] or {}))
    columns = [*(part(p) for p in parts), *([total()] if parts else []), *columns]
    head = tag(
        "tr",
        tag("th", "program", scope="col"),
        *(tag("th", c.head, scope="col", title=c.meaning) for c in columns),
    )
    bodies = [
        tag("tbody", heading(c, len(columns)), *(line(r, c, results, columns) for r in c["rows"]))
        for c in cases
    ]
    return scrolled(tag("table", tag("thead", head), *bodies, class_="rows"))


def part(name: str) -> Column:
    return Column(
        f"{name} s", lambda r, c, _: number((r["parts"] or {}).get(name)), f"seconds of: {name}"
    )


def total() -> Column:
    return Column(
        "in all s",
        lambda r, c, _: number(sum(r["parts"].values())) if r["parts"] else "-",
        "the parts together",
    )


def heading(case: Case, columns: int) -> Html:
    said = [
        f"{case['scenario']}, judged by {'p90' if case['scenario'] == 'single stream' else 'images/s'}",
        f"baseline {case['baseline']}",
        f"cache {case['cache']}",
        f"drift {case['drift']:+.1%}" if case["drift"] is not None else "drift not timed",
    ]
    if case.get("count"):
        said.append(f"{case['count']} calls in a forward pass")
    said += [f"{words} {when}" for when, words in clocks(case)]
    disturbed = (
        tag("strong", f" Disturbed, not to be trusted: {case['disturbed']}.")
        if case["disturbed"]
        else None
    )
    text = tag("div", tag("span", short(case)), " ", tag("small", "; ".join(said)), disturbed)
    kind = "case disturbed" if case["disturbed"] else "case"
    return tag("tr", tag("th", text, colspan=columns + 1, scope="rowgroup"), class_=kind)


def clocks(case: Case) -> list[tuple[str, str]]:
    """What the machine told of itself, and when: before or after."""
    found = []
    for when, readings in (case["clocks"] or {}).items():
        known = [f"{number(v)} {unit}" for unit, v in (readings or {}).items() if v is not None]
        if known:
            found.append((", ".join(known), when))
    return found


def line(row: Row, case: Case, results: Results, columns: list[Column]) -> Html:
    contest = case["layer"] != "ablation" and not case["disturbed"]
    best = contest and any(row is first for first in ranked(case)[:1])
    marks = []
    if best:
        marks.append(tag("span", "\u2605 best accurate", class_="best"))
    if row["program"] == case["baseline"]:
        marks.append(tag("span", "baseline"))
    kind = " ".join(
        filter(None, ["ours" if row["ours"] else "", "best" if best else "", row["status"]])
    )
    if row["status"] in ("ok", "inaccurate"):
        if row["status"] == "inaccurate":
            marks.append(tag("span", f"inaccurate, not ranked: {row['why']}", class_="why"))
        cells = [tag("td", column.value(row, case, results)) for column in columns]
    else:
        words = STATUS[row["status"]]
        cells = [tag("td", f"{words}: {row['why']}", colspan=len(columns), class_="why")]
    return tag(
        "tr",
        tag("th", row["program"], *(joined(" ", m) for m in marks), scope="row"),
        *cells,
        class_=kind,
    )
