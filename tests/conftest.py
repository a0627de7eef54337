"""No test leaves anything behind: a child process, a descriptor, a thread, shared memory."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from loky.backend import resource_tracker as loky_tracker
from support.dividing import divide_always
from support.paged_region import Region, opened

from batchzip import CompressedMapping, Engine, SwapStore
from batchzip.system.cpus import usable_cpus
from batchzip.testing import LeakCheck, start_resource_trackers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from support.reporting import Report, Turns

# Images of containers often set it. Tests that pass with it only would fail for others.
os.environ.pop("PYTHONUNBUFFERED", None)

_SURVIVED = "survived"
_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stress-s",
        type=float,
        metavar="SECONDS",
        help="how long each endless test of `-m stress` goes on; it does at least as much as "
        "without this option, and a soak lasts 30 s without it",
    )
    parser.addoption(
        "--stress-seed",
        type=int,
        default=0,
        metavar="NUMBER",
        help="what the random choices of endless tests follow from",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite in several processes; some of its files, or stress, in pytest's own.

    Each process runs whole files, and has them all in mind: more than a few gain nothing.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(usable_cpus(), 4) if whole and not _wants_stress(config) else 0


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the stress tests, unless `-m` names them."""
    if "stress" not in config.option.markexpr:
        given = config.option.markexpr
        config.option.markexpr = f"({given}) and not stress" if given else "not stress"


def _wants_stress(config: pytest.Config) -> bool:
    return re.search(r"(?<!not )\bstress\b", config.option.markexpr) is not None


# A shell that runs tests in the background has them ignore Ctrl-C, which many of them raise.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def resource_trackers() -> None:
    start_resource_trackers()
    loky_tracker.ensure_running()


def pytest_collection_finish() -> None:
    """Keep what is there for the whole run out of each garbage collection of the tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(LeakCheck())
        yield
        if request.node.stash.get(_FAILED, False):
            stack.pop_all()  # its traceback holds on to all that the test had


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Tell of a test at the end of the run, whichever process it runs in."""

    def tell(line: str, **counts: int) -> None:
        record_property(_SURVIVED, line)
        for name, count in counts.items():
            record_property(f"count {name.replace('_', ' ')}", int(count))

    return tell


@pytest.fixture
def stress_s(pytestconfig: pytest.Config) -> float:
    """Return the seconds that a soak lasts."""
    given = pytestconfig.getoption("--stress-s")
    return 30.0 if given is None else float(given)


@pytest.fixture
def turns(request: pytest.FixtureRequest) -> Turns:
    """Return a counter of turns: see Turns. --stress-s makes stress tests last longer."""
    lasts_s = request.config.getoption("--stress-s") or 0.0
    if request.node.get_closest_marker("stress") is None:
        lasts_s = 0.0

    def count(least: int) -> Iterator[int]:
        until = time.monotonic() + lasts_s
        for turn in itertools.count():
            if turn >= least and time.monotonic() >= until:
                return
            yield turn

    return count


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """Return what the random choices of a test follow from."""
    return int(pytestconfig.getoption("--stress-seed"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for one in terminalreporter.getreports("passed"):
        for name, line in one.user_properties:
            if name == _SURVIVED and one.when == "call":
                terminalreporter.write_line(str(line))


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential") as engine:
        yield engine


@pytest.fixture
def store(engine: Engine) -> Iterator[SwapStore]:
    with SwapStore(engine) as store:
        yield store
        if not store.closed:
            store.check_invariants()


@pytest.fixture
def region() -> Iterator[Region]:
    """Open a region of 256 pages with a budget of 32."""
    with opened() as region:
        yield region


@pytest.fixture
def always_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give lanes their share of each batch, whatever it costs."""
    divide_always(monkeypatch)


@pytest.fixture
def mapping(store: SwapStore) -> Iterator[CompressedMapping]:
    with CompressedMapping(store) as mapping:
        yield mapping
        if not mapping.closed:
            mapping.check_invariants()
