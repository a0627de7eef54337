"""Which tests run which lines of some modules, and a quick run of a few of them.

`Tests` runs all test files once under coverage, and notes the seconds and the lines of each test.
Lines that child processes run count, too, unless a test kills the child. `attempt` then runs chosen
tests in a fork of this process. What tests import is imported here first, the packages under test
aside: a fork is ready in a fraction of a second.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from copy import copy
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from coverage import Coverage, CoverageData
from coverage.exceptions import CoverageException

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

_OPTIONS = [
    *("-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),  # by `preload`
]
_SLOWER = 5
_GRACE_S = 10.0
"""A test hangs if it takes longer than `_SLOWER` times the seconds it took once, plus this."""

_START_S = 300.0
"""The most that imports may take, or a test that runs for the first time."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl = ctypes.CDLL(None).prctl


class Tests:
    """The tests of some modules, with the lines of the modules that each runs."""

    def __init__(self, files: list[Path], modules: list[Path], kept: Path) -> None:
        """Run the test files that changed since `kept` was written."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # processes that a test leaves behind become ours
        self._log = kept.with_suffix(".log")
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, dict[str, set[int]]] = {str(module): {} for module in modules}
        """By module, the lines that each test runs."""
        digests = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        sources = {str(module): module.read_text() for module in modules}
        profile: dict[str, Any] = {"sources": sources, "imports": [], "files": {}}
        if kept.exists():
            profile = json.loads(kept.read_text())
        preload(profile["imports"])
        known = profile["files"]
        move_lines(known, profile["sources"], sources)
        profile["sources"] = sources
        stale = [file for file in digests if known.get(file, {}).get("digest") != digests[file]]
        if stale:
            for file, tests in self._measure(stale, modules, profile).items():
                known[file] = {"digest": digests[file], "tests": tests}
        kept.write_text(json.dumps(profile))
        for file in digests:
            for name, test in known[file]["tests"].items():
                self.seconds[name] = test["seconds"]
                for module, lines in test["lines"].items():
                    self._lines[module][name] = set(lines)

    def choose(self, module: Path, lines: set[int], most_s: float) -> list[str]:
        """Return tests that run one of some lines: of each file the cheapest, of `most_s` in all.

        Without lines, and if no test is known to run them: tests that run any of the module, or
        else any tests.
        """
        users = self._lines[str(module)]
        names = [name for name in users if not users[name].isdisjoint(lines)] or users
        rank: dict[str, tuple[int, float]] = {}
        count: Counter[str] = Counter()
        for name in sorted(names or self.seconds, key=self.seconds.__getitem__):
            rank[name] = count[get_file(name)], self.seconds[name]
            count[get_file(name)] += 1
        chosen: dict[str, list[str]] = {}
        took_s: Counter[str] = Counter()
        for name in sorted(rank, key=rank.__getitem__):
            if not chosen or took_s.total() + self.seconds[name] <= most_s:
                chosen.setdefault(get_file(name), []).append(name)
                took_s[get_file(name)] += self.seconds[name]
        # File by file, as fixtures of a file are made once then.
        return [name for file in sorted(chosen, key=took_s.__getitem__) for name in chosen[file]]

    def attempt(self, names: Sequence[str]) -> str:
        """Run tests up to the first failure. Return what failed, or an empty string."""
        last = "the imports"
        for report in self._fork(["-x", *names], Reporter):
            if report is None:
                return f"{last}, which hangs"
            if report.get("failed"):
                return str(report["test"])
            last = report["test"]
            self._patience_s = _GRACE_S + _SLOWER * self.seconds.get(last, 0)
        return "" if self._code == 0 else f"ends with {self._code} after {last}"

    def _measure(
        self, files: list[str], modules: list[Path], profile: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return seconds and lines of each test of some files. Note in a profile what they import."""
        found = self._record(files, modules, self._log.with_suffix(".coverage"))
        profile["imports"] = sorted({*profile["imports"], *found["imports"]})
        preload(found["imports"])
        # What fails under coverage may measure memory or processes. It has to pass without.
        failed = [name for name, test in found["tests"].items() if test["failed"]]
        for name in failed:
            self.seconds[name] = found["tests"][name]["seconds"]
            if self.attempt([name]):
                print(f"left out, as it fails without a mutant: {name}; see {self._log}")
                del found["tests"][name]
        tests: dict[str, dict[str, Any]] = {file: {} for file in files}
        for name, test in found["tests"].items():
            tests[get_file(name)][name] = {"seconds": test["seconds"], "lines": test["lines"]}
        return tests

    def _record(self, files: list[str], modules: list[Path], folder: Path) -> dict[str, Any]:
        """Run test files under coverage. Return seconds and lines of each test, and imports."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            tests: dict[str, dict[str, Any]] = {}
            imports: list[str] = []
            for report in self._fork(files, lambda pipe: Recorder(pipe, folder, modules)):
                if report is None:
                    raise SystemExit(f"hangs without a mutant; see {self._log}")
                if "imports" in report:
                    imports = report["imports"]
                elif "seconds" in report:
                    tests[report["test"]] = report
            if self._code not in (0, 1):
                raise SystemExit(f"pytest ends with {self._code}\n{self._log.read_text()}")
            lines = read_lines(folder, modules)
            for name, test in tests.items():
                test["lines"] = lines.get(name, {})
            return {"tests": tests, "imports": imports}
        finally:
            shutil.rmtree(folder)

    def _fork(
        self, arguments: list[str], make: Callable[[int], Reporter]
    ) -> Iterator[dict[str, Any] | None]:
        """Run pytest in a fork. Yield its reports, and None if it is silent for `_patience_s`.

        At the end no process of it is left.
        """
        ours, its = os.pipe()
        shutil.rmtree(temporary := self._log.with_suffix(".tmp"), ignore_errors=True)
        arguments = [*_OPTIONS, "--basetemp", str(temporary), *arguments]
        self._code: int | None = None
        child = os.fork()
        if not child:
            os.close(ours)
            run_pytest(arguments, make(its), self._log)
        os.close(its)
        try:
            pending = b""
            self._patience_s = _START_S
            while True:
                if not select.select([ours], [], [], self._patience_s)[0]:
                    yield None
                    break
                if not (chunk := os.read(ours, 1 << 20)):
                    self._code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    break
                *lines, pending = (pending + chunk).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            os.close(ours)
            end_children()
            shutil.rmtree(temporary, ignore_errors=True)


def move_lines(known: dict[str, Any], before: dict[str, str], now: dict[str, str]) -> None:
    """Change the numbers of lines that tests run to those of modules as they are now."""
    for module in before.keys() & now.keys():
        if before[module] == now[module]:
            continue
        old, new = before[module].splitlines(), now[module].splitlines()
        blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        moved = {a + at + 1: b + at + 1 for a, b, count in blocks for at in range(count)}
        for file in known.values():
            for test in file["tests"].values():
                lines = test["lines"].get(module, [])
                lines[:] = [moved[line] for line in lines if line in moved]


def read_lines(folder: Path, modules: list[Path]) -> dict[str, dict[str, list[int]]]:
    """Return the lines of modules that each test ran, from what all its processes have left."""
    lines: dict[str, dict[str, list[int]]] = {}
    for data_file in folder.iterdir():
        data = CoverageData(str(data_file))
        with suppress(CoverageException):  # of a child that was killed while it wrote
            data.read()
            for module in modules:
                for line, names in data.contexts_by_lineno(str(module.absolute())).items():
                    for name in names:
                        lines.setdefault(name, {}).setdefault(str(module), []).append(line)
    return lines


def get_file(name: str) -> str:
    """Return the file of a test."""
    return name.partition("::")[0]


def preload(names: list[str]) -> None:
    """Import modules that tests need, so that forks have them."""
    for name in names:
        with suppress(Exception), warnings.catch_warnings(action="ignore"):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def end_children() -> None:
    """End all processes that this one has started, and theirs."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def run_pytest(arguments: list[str], plugin: Reporter, log: Path) -> None:
    """Run pytest in this process, a fork, as `python -m pytest` would. Never return."""
    code = 1
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.path.pop(0)  # the folder of this script
        # Processes that multiprocessing or loky start import the main module, unless it is pytest's.
        sys.modules["__main__"] = importlib.import_module("pytest.__main__")
        sys.argv = [str(sys.modules["__main__"].__file__), *arguments]
        code = int(pytest.main(arguments, plugins=[plugin]))
    except BaseException:  # noqa: BLE001 - this is the end of the process
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Reporter:
    """Tell the parent when a test begins and ends, whether it failed, and the seconds it took."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._failed = False

    def tell(self, **report: object) -> None:
        """Send a report to the parent."""
        line = json.dumps(report).encode() + b"\n"
        while line:
            line = line[os.write(self._pipe, line) :]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell about one test."""
        self._failed = False
        self.tell(test=item.nodeid)
        began = time.perf_counter()
        result = yield
        seconds = round(time.perf_counter() - began, 4)
        self.tell(test=item.nodeid, failed=self._failed, seconds=seconds)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note that a test has failed."""
        self._failed |= report.failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell about a file that cannot be imported."""
        if report.failed:
            self.tell(test=report.nodeid, failed=True, seconds=0)


class Recorder(Reporter):
    """Keep what lines each test runs, and tell the parent, too."""

    def __init__(self, pipe: int, folder: Path, modules: list[Path]) -> None:
        super().__init__(pipe)
        paths = [str(module.absolute()) for module in modules]
        self._coverage = Coverage(str(folder / "data"), include=paths, config_file=False)
        self._coverage.config.parallel = True
        self._coverage.config.disable_warnings = ["trace-changed"]  # tests use sys.settrace
        self._coverage.config.patch = ["_exit"]  # forked children of tests end by it
        self._coverage.start()
        self._coverage.config.patch = []  # each start would patch it once more

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Keep the lines of one test and of its child processes."""
        config = copy(self._coverage.config)
        config.patch = ["_exit"]
        config.context = item.nodeid
        os.environ["COVERAGE_PROCESS_CONFIG"] = config.serialize()
        self._coverage.stop()
        self._coverage.start()  # a test before may have ended the tracing
        self._coverage.switch_context(item.nodeid)
        return (yield from super().pytest_runtest_protocol(item))

    def pytest_sessionfinish(self) -> None:
        """Keep the lines, and tell what modules the tests have imported."""
        self._coverage.stop()
        self._coverage.save()
        here = (str(Path.cwd()), str(Path("tests").resolve()))
        imports = []
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and not file.startswith(here) and name != "__main__":
                imports.append(name)
        self.tell(imports=imports)
