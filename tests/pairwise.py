"""All-pairs choice of cases: every two values of any two parameters meet in at least one case."""

from collections.abc import Sequence
from itertools import combinations, product
from random import Random


def pairwise(**parameters: Sequence) -> list[tuple]:
    """Greedy and the same every time: of a few random cases, the one with most pairs yet to meet."""
    names, random = list(parameters), Random(0)
    missing = {
        (a, x, b, y)
        for a, b in combinations(range(len(names)), 2)
        for x, y in product(range(len(parameters[names[a]])), range(len(parameters[names[b]])))
    }

    def pairs(case: list[int]) -> set:
        return {(a, case[a], b, case[b]) for a, b in combinations(range(len(case)), 2)}

    cases = []
    while missing:
        a, x, b, y = min(missing)
        tries = []
        for _ in range(60):
            case = [random.randrange(len(values)) for values in parameters.values()]
            case[a], case[b] = x, y
            tries.append(case)
        best = max(tries, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        cases.append(tuple(parameters[name][i] for name, i in zip(names, best, strict=True)))
    return cases
