"""Where workers cannot be started, an engine says so once, and works."""

from __future__ import annotations

import pytest
from support.scripts import BEGIN, check_ended_well, run

_IMPORT_ALL = """
with Engine("lz4", backend="workers", workers=1) as engine:
    engine.wait_ready()
    round_trip(engine)
"""

_CHECK = """
import gc
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fds = len(os.listdir("/proc/self/fd"))
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert not engine.wait_ready(60)
        for _ in range(20):
            round_trip(engine)
    messages = [str(one.message) for one in caught]
    assert [one.category for one in caught] == [batchzip.WorkerWarning], messages
    print(caught[0].message)
gc.collect()
assert len(os.listdir("/proc/self/fd")) == fds
"""

LIMITS = {
    # Limits of a user count for all its processes, and not for root at all.
    "no thread": """
import resource, shutil
shutil.which = lambda name: name  # that user need not see the folder that Python is in
os.setgroups([]); os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
""",
    "no process": """
import subprocess
def fail(*_, **__): raise BlockingIOError(11, "Resource temporarily unavailable")
subprocess.Popen = fail
""",
    "no memory for a ring": """
def fail(*_): raise OSError(28, "No space left on device")
os.posix_fallocate = fail
""",
    "no descriptor": """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
""",
}


_STARVE = """
from batchzip_workers import launch
interpreter = launch.command
launch.command = lambda: ["/bin/sh", "-c", 'ulimit -v 16000; exec "$@"', "sh", *interpreter()]
"""

_DIE = """
from batchzip_workers import launch
launch.command = lambda: ["/bin/sh", "-c", "kill -9 $$"]
"""

_TRAIN = """
import sysconfig
from pathlib import Path
files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
source = b"".join(file.read_bytes() for file in files)
samples = [source[at:at + 4096] for at in range(0, len(source), 4096)]
dictionary = batchzip.train_dictionary(samples, size=256 << 10)
assert len(dictionary) == 256 << 10
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        "no process",
        "no memory for a ring",
        pytest.param("no thread", marks=pytest.mark.stress),
        pytest.param("no descriptor", marks=pytest.mark.stress),
    ],
)
def test_where_workers_cannot_start_it_says_so_once_and_does_the_work(limit: str) -> None:
    done = run(["-c", BEGIN + _IMPORT_ALL + LIMITS[limit] + _CHECK])
    check_ended_well(done)
    assert "could not be started" in done.stdout


@pytest.mark.slow
def test_workers_that_run_out_of_memory_while_they_start_are_done_without() -> None:
    # They inherit the limit and, unlike their owner, have not imported everything yet.
    done = run(["-c", BEGIN + _IMPORT_ALL + _STARVE + _CHECK])
    assert done.returncode == 0, done.stderr
    assert "before it was ready" in done.stdout


@pytest.mark.slow
def test_workers_that_die_before_they_read_what_they_are_to_do_hang_nobody() -> None:
    check = _CHECK.replace('"lz4"', '"zstd", dictionary=dictionary')
    done = run(["-c", BEGIN + _IMPORT_ALL + _TRAIN + _DIE + check])
    check_ended_well(done)
    assert "it ended with status -9 before it was ready" in done.stdout


_NO_ROOM = """
from batchzip.lanes import watch
from batchzip_workers import launch
interpreter = launch.command
launch.command = lambda: ["/bin/sh", "-c", 'ulimit -v 60000; exec "$@"', "sh", *interpreter()]
watch.REPLACE_S = 0.3
isolate = sys.argv[1] == "isolate"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with Engine("lz4", backend="workers", workers=1, isolate=isolate) as engine:
        assert engine.wait_ready(60)
        engine.backend.divider.generous = True
        batch = batchzip.CompressBatch(engine.arena(16384)[:64])
        while engine.wait_ready(60):
            engine.compress(batch)
        engine.compress(batch)
        print(set(batch.errors.tolist()), engine.statistics.restarts < 40)
    print([one.category for one in caught] == [batchzip.WorkerWarning], caught[0].message)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "errors"), [("shared", {0}), ("isolate", {-130})])
def test_workers_that_end_themselves_at_every_share_are_done_without(
    how: str, errors: set[int]
) -> None:
    """They start, and have no memory to map what they are to work on."""
    done = run(["-c", BEGIN + _NO_ROOM, how])
    check_ended_well(done)
    first, second = done.stdout.splitlines()
    assert first == f"{errors} True"
    assert second.startswith(
        "True batchzip: a worker could not be started (it ended with status 65"
    )
