"""The commands of daily work, as sessions: `nox -l` lists them, CONTRIBUTING.md explains them.

The sessions use `.venv`, which `pip install -e '.[dev]'` fills. They make no environments of their
own, so that each starts at once and tests what you run.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "fast"]

ROOT = Path(__file__).parent
BIN = ROOT / ".venv/bin"


def run(session: nox.Session, tool: str, *arguments: str) -> None:
    """Run a tool of the project's environment."""
    if not (BIN / tool).exists():
        session.error(f"{BIN / tool} is missing: .venv/bin/pip install -e '.[dev]'")
    session.run(str(BIN / tool), *arguments, external=True)


def script(session: nox.Session, name: str, *arguments: str) -> None:
    """Run a script of .ci."""
    session.run(str(ROOT / ".ci" / name), *arguments, external=True)


@nox.session
def fast(session: nox.Session) -> None:
    """Run the fast tests: a minute. Arguments go to pytest."""
    run(session, "pytest", "-m", "not slow", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests but stress: some minutes. Arguments go to pytest."""
    run(session, "pytest", *session.posargs)


@nox.session
def stress(session: nox.Session) -> None:
    """Run faults by the hundred: some minutes. `-- --stress-s 60` goes on for longer."""
    run(session, "pytest", "-m", "stress", *session.posargs)


@nox.session
def campaign(session: nox.Session) -> None:
    """Run faults by the thousand for hours, with a record. `-- --help` tells the arguments."""
    run(session, "python", str(ROOT / ".ci/campaign.py"), *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run a target of the coverage-guided fuzzer: `-- restore --seconds 60`. It needs clang."""
    script(session, "with_core.sh", "fuzz", "tests/fuzz/run.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check lint, format, types, and which package imports which."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")
    run(session, "lint-imports", "--no-cache")


@nox.session
def core(session: nox.Session) -> None:
    """Compile what changed of the core, for the editable install."""
    run(session, "python", "hatch_build.py", *session.posargs)


@nox.session
def sanitizers(session: nox.Session) -> None:
    """Run tests of the core under AddressSanitizer, UBSan and ThreadSanitizer."""
    script(session, "sanitizers.sh")


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure line coverage of the Python modules, or with `-- --core` of the .pyx files."""
    arguments = [each for each in session.posargs if each != "--core"]
    selection = arguments or ["tests"]
    pytest = ["-m", "pytest", "-q", "-n0", "-m", "not slow", *selection]
    if "--core" in session.posargs:
        script(session, "with_core.sh", "coverage", *pytest)
        return
    # The configuration in pyproject.toml is that of the .pyx files.
    options = ["--rcfile=/dev/null", "--source=batchzip,backends"]
    run(session, "coverage", "run", *options, *pytest)
    run(session, "coverage", "report", "--rcfile=/dev/null", "--skip-covered", "--show-missing")


@nox.session
def mutation(session: nox.Session) -> None:
    """Find changes of the code that no test notices. `-- --help` tells the arguments."""
    script(session, "with_core.sh", "release", str(ROOT / ".ci/mutation.py"), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed into build/bench.json. `-- OLD.json` compares it with an earlier result."""
    result = ROOT / "build/bench.json"
    result.parent.mkdir(exist_ok=True)
    run(session, "batchzip", "bench", "--json", str(result))
    for old in session.posargs:
        run(session, "batchzip", "bench", "--compare", old, str(result))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run all benchmarks: hours. `-- --short` tries all in minutes, `-- --only swap` chooses."""
    run(session, "python", str(ROOT / "examples/benchmarks/all.py"), *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, strictly, into build/site. `-- serve` shows it while you write."""
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    run(session, "mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel and the source package into dist/."""
    run(session, "python", "-m", "build", *session.posargs)


@nox.session
def ci(session: nox.Session) -> None:
    """Check everything that must hold before a change lands: .ci/run, an hour."""
    script(session, "run")
