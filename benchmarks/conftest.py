"""pytest benchmarks --benchmark-only [--suite NAME] [--bench-device cpu|cuda] [-k WORDS]: see test_suite.py."""

from collections.abc import Iterator

import pytest
import torch

from .measured import programs_of
from .method import Method
from .registry import SUITES, cases
from .run import SECONDS, place
from .sequence import Suite

SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vit-fast")
    group.addoption("--suite", default="quick", choices=list(SUITES), help="default: quick")
    group.addoption("--bench-device", choices=("cpu", "cuda"), help="default: cuda where there is one")  # fmt: skip


def device_of(config: pytest.Config) -> torch.device:
    there = torch.cuda.is_available()
    asked = config.getoption("--bench-device") or ("cuda" if there else "cpu")
    if asked == "cuda" and not there:
        raise pytest.UsageError("--bench-device cuda: PyTorch finds no CUDA device here")
    return torch.device(asked)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"case", "program"} <= set(metafunc.fixturenames):
        return
    device = device_of(metafunc.config)
    try:
        chosen = cases(metafunc.config.getoption("--suite"), device.type)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    pairs = [(case, program) for case in chosen for program in programs_of(case, device)]
    metafunc.parametrize("case, program", pairs, ids=[f"{c.name}, {p}" for c, p in pairs])


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    config = request.config
    device, name = device_of(config), config.getoption("--suite")
    method = Method(
        seconds=SECONDS.get(name, Method.seconds), pause_ms=0.0, order="one after another"
    )
    arguments = " ".join(map(str, config.invocation_params.args))
    path = place(f"{name}-pytest", device.type, record=False)
    found = config.stash[SUITE] = Suite(name, arguments, device, method, path)
    yield found
    found.close()


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's table
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    found = config.stash.get(SUITE, None)
    if found is not None and found.results is not None:
        terminalreporter.write_line(f"results in the suite's own format: {found.path}")
