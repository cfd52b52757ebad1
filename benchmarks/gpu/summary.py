"""What a run comes to, in one screen; the last thing that is printed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu import digest, goals

SHOWN = 12
DRY = "a dry run: its times and ratios mean nothing"


def failures(data: Mapping[str, Any]) -> dict[str, str]:
    """Cell -> why, of all that is this project's and did not come out right. What time ended is no failure."""
    return {
        key: row.get("wrong") or row.get("why") or row["status"]
        for key, row in data["cells"].items()
        if row.get("ours") and row["status"] not in ("ok", "cut") and not _slow_rival(key, row)
    }


def _slow_rival(key: str, row: Mapping[str, Any]) -> bool:
    """torch.compile took longer than its limit, or does not compile: a finding, not a fault of ours."""
    return "torch.compile" in key and row["status"] != "wrong"


def lines(data: Mapping[str, Any]) -> list[str]:
    cells = data["cells"]
    machine = data["machine"]
    found = ["", f"== {machine['device']}, torch {machine['torch']}, Triton {machine['triton']}, "
             f"transformers {machine['transformers']}, source {machine['source']}"]  # fmt: skip
    if machine["dry_run"]:
        found.append(DRY)
    for part in (_counts, _machine, _end_to_end, _goals, _kernels, _candidates):
        found += part(data, cells)
    return found


def _some(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{title}: {len(entries)}", *(f"  {e}"[:160] for e in entries[:SHOWN]), *more]


def _counts(data: Mapping[str, Any], cells: digest.Rows) -> Iterator[str]:
    sections: dict[str, Counter[str]] = {}
    for key, row in cells.items():
        sections.setdefault(key.split("/")[0], Counter())[row["status"]] += 1
    for section, counts in sections.items():
        yield f"{section}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common())
    broken = failures(data)
    yield from _some("FAILED", [f"{key}: {why}" for key, why in broken.items()])
    others = {k: r for k, r in cells.items() if r["status"] != "ok" and k not in broken}
    words = [f"{k}: {r.get('wrong') or r.get('why')}" for k, r in others.items()]
    yield from _some("did not come out", words)
    left_out = [f"{k}: {r['left_out']}" for k, r in cells.items() if r.get("left_out")]
    yield from _some("left out", left_out)
    moving = [f"{k}: {r['says']}" for k, r in cells.items() if r.get("runs_differ_by")]
    yield from _some("runs on the same input differ", moving)
    yield from _some("skipped, no minutes left", data["skipped"])


def _machine(data: Mapping[str, Any], cells: digest.Rows) -> Iterator[str]:
    for key, row in cells.items():
        if key in ("ceilings/copy", "ceilings/launch gap") or key.startswith("ceilings/gemm"):
            yield f"{key}: {row.get('says', row['status'])}"


def _end_to_end(data: Mapping[str, Any], cells: digest.Rows) -> Iterator[str]:
    for model, batch in digest.models_and_batches(cells):
        us = digest.ours(cells, model, batch)
        times = f"p50 {us['p50_ms']} ms, p99 {us['p99_ms']} ms, {us['burst_ms']} ms among many"
        yield f"{model} batch {batch}: {us['images_s']} images/s, {times}"
        bound, lacking = digest.composed_us(cells, model, batch)
        if bound is None:
            yield f"  composed bound: lacks {len(lacking)} ceilings, {lacking[0]} for one"
        else:
            share = bound / us["burst_ms"] / 1e3
            yield f"  composed bound {bound / 1e3:.4f} ms, {share:.1%} of its speed reached"
        for title, others in (("times the speed of", True), ("and of its variants", False)):
            ratios = digest.speed_ups(cells, model, batch, others)
            if ratios:
                yield f"  {title} " + "; ".join(f"{n}: {x:.2f}" for n, x in ratios.items())


def reached(cells: digest.Rows, goal: goals.Goal) -> float | None:
    """What was measured of a goal, None where nothing was."""
    if (goal.model, goal.batch) not in digest.models_and_batches(cells):
        return None
    us = digest.ours(cells, goal.model, goal.batch)
    if goal.measure in us:
        return us[goal.measure]
    if goal.measure == goals.BOUND:
        bound, _ = digest.composed_us(cells, goal.model, goal.batch)
        return None if bound is None else round(bound / us["burst_ms"] / 1e3, 3)
    ratios = digest.speed_ups(cells, goal.model, goal.batch)
    # with whichever attention it is fastest
    return min((x for n, x in ratios.items() if n.startswith(goal.measure)), default=None)


def verdict(goal: goals.Goal, value: float) -> str:
    less = goal.measure.endswith("_ms")
    met, dreamt = (value <= g if less else value >= g for g in (goal.goal, goal.dream))
    return "dream reached" if dreamt else "goal met" if met else "MISSED"


def _goals(data: Mapping[str, Any], cells: digest.Rows) -> Iterator[str]:
    if data["machine"]["device"] != goals.DEVICE:
        return
    for goal in goals.GOALS:
        value = reached(cells, goal)
        if value is not None:
            wish = f"goal {goal.goal:g}, dream {goal.dream:g}: {verdict(goal, value)}"
            yield f"{goal.model} batch {goal.batch} {goal.measure}: {value:g}, {wish}"


def _kernels(data: Mapping[str, Any], cells: digest.Rows) -> Iterator[str]:
    by_op: dict[str, list[tuple[float, str]]] = {}
    for op, label, fraction in digest.fractions(cells):
        by_op.setdefault(op, []).append((fraction, label))
    for op, found in by_op.items():
        (low, where), (high, _) = min(found), max(found)
        goal = f", goal {goals.KERNELS[op][0]:g}" if op in goals.KERNELS else ""
        yield f"{op}: {low:.2f} ({where}) to {high:.2f} of its ceiling at {len(found)} shapes{goal}"


def _candidates(data: Mapping[str, Any], cells: digest.Rows) -> Iterator[str]:
    gains = sorted(
        ((row["gain"], key, row) for key, row in cells.items() if "gain" in row),
        key=lambda g: -g[0],
    )
    better = [
        f"{gain:.2f} times the rule's speed at {key.removeprefix('candidates/')}: {row['best']}"
        for gain, key, row in gains
        if gain > 1 + max(0.02, row["spread"])
    ]
    yield from _some("candidates that beat the rule", better)
