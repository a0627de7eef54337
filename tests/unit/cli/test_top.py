"""`batchzip top` on a terminal: what it shows, and that it leaves the terminal as it found it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.command import Screen, assert_one_clear_line, assert_refused, cli

import batchzip
from batchzip import ClosedError, CompressedMapping, Engine, SwapStore
from batchzip.cli.look import print_look
from batchzip.cli.snapshot import take_snapshot
from batchzip.cli.store_look import store_look
from batchzip.cli.top import shared_stores
from batchzip.terminal.console import make_console
from batchzip.terminal.text import duration_text
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.cli.snapshot import Snapshot

OWNER = """
import sys
import batchzip
from batchzip.terminal.console import make_console
from batchzip.terminal.text import duration_text
from batchzip.testing.plain import make_pages
stores = int(sys.argv[1])
with batchzip.Engine("lz4", backend="workers", workers=1) as engine:
    made = [batchzip.SwapStore(engine, max_pool_bytes=64 << 20) for _ in range(stores)]
    for store in made:
        store.share()
        store.store(0, make_pages(100))
        store.group("tiles", max_bytes=1 << 20).store(0, make_pages(50, seed=1))
    print(*(store.share().address for store in made), flush=True)
    for line in sys.stdin:
        made[0].store(0, make_pages(int(line), seed=2))
        print(flush=True)
    for store in made:
        store.close()
"""


class Owner:
    """A process that shares stores, and stores pages when told to."""

    def __init__(self, stores: int = 1) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(stores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addresses = self.say(None).split()

    def say(self, pages: int | None) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if pages is not None:
            self.process.stdin.write(f"{pages}\n")
            self.process.stdin.flush()
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Screen]]:
    opened = []

    def start(*arguments: object, **options: Any) -> Screen:
        opened.append(Screen(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.slow
def test_it_shows_the_store_and_what_happens_to_it(
    terminal: Callable[..., Screen], owner: Owner
) -> None:
    shown = terminal(owner.addresses[0])
    first = shown.read_until(b"damaged when loaded").decode()
    assert f"process {owner.process.pid}: Lz4(acceleration=1" in first
    assert "of 64.0 MiB" in first
    for words in ("same-filled", "written back", "pool at its limit", "Workers", "Groups"):
        assert words in first
    owner.say(12_345)
    shown.read_until(b"12,395 in memory")
    shown.read_until(b"12,495")  # pages stored in all
    os.write(shown.master, b"3")
    shown.read_until(b"tiles")
    os.write(shown.master, b"q")
    assert shown.end(0) == ""


@pytest.mark.slow
def test_a_pid_is_an_address(terminal: Callable[..., Screen], owner: Owner) -> None:
    shown = terminal(owner.process.pid)
    shown.read_until(owner.addresses[0].encode())
    os.write(shown.master, b"x")
    os.write(shown.master, b"q")
    assert shown.end(0) == ""


@pytest.mark.slow
def test_ctrl_c_ends_it_as_any_other_command(terminal: Callable[..., Screen], owner: Owner) -> None:
    shown = terminal(owner.addresses[0])
    shown.read_until(b"damaged when loaded")
    os.write(shown.master, b"\x03")
    assert shown.end(130) == "batchzip: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "batchzip: interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGHUP, 129, ""),
    ],
)
def test_a_signal_ends_it_and_leaves_the_terminal_clean(
    terminal: Callable[..., Screen], owner: Owner, number: int, code: int, line: str
) -> None:
    shown = terminal(owner.addresses[0])
    shown.read_until(b"damaged when loaded")
    shown.process.send_signal(number)
    assert shown.end(code) == line


@pytest.mark.slow
def test_an_owner_that_is_killed_is_one_line(terminal: Callable[..., Screen], owner: Owner) -> None:
    shown = terminal(owner.addresses[0])
    shown.read_until(b"damaged when loaded")
    owner.kill()
    assert shown.end(2) == "batchzip: the store is closed, or its owner has ended\n"


@pytest.mark.slow
def test_an_owner_that_closes_its_store_is_one_line(
    terminal: Callable[..., Screen], owner: Owner
) -> None:
    shown = terminal(owner.addresses[0])
    shown.read_until(b"damaged when loaded")
    owner.process.communicate()
    assert shown.end(2) == "batchzip: the store is closed, or its owner has ended\n"


@pytest.mark.slow
def test_an_owner_that_does_not_answer_does_not_keep_the_user(
    terminal: Callable[..., Screen], owner: Owner
) -> None:
    shown = terminal(owner.addresses[0])
    shown.read_until(b"damaged when loaded")
    owner.process.send_signal(signal.SIGSTOP)
    try:
        os.write(shown.master, b"q")
        assert shown.end(0) == ""
    finally:
        owner.process.send_signal(signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(14, 60), (24, 80), (40, 200)])
def test_a_screen_of_any_size_has_a_table_and_the_keys(
    terminal: Callable[..., Screen], owner: Owner, rows: int, columns: int
) -> None:
    shown = terminal(owner.addresses[0], rows=rows, columns=columns)
    shown.read_until(f"process {owner.process.pid}".encode())
    shown.resize(rows + 10, 60)
    os.kill(shown.process.pid, signal.SIGWINCH)
    shown.read_until(b"Quit")
    os.write(shown.master, b"q")
    assert shown.end(0) == ""


@pytest.mark.slow
@pytest.mark.parametrize("once", [[], ["--once"]])
def test_without_a_terminal_it_is_one_look(owner: Owner, once: list[str]) -> None:
    result = cli("top", owner.addresses[0], *once)
    assert result.returncode == 0
    assert bool(result.stderr) is not bool(once)
    assert "\x1b" not in result.stdout
    assert "150 in memory (600.0 KiB)" in result.stdout
    words = [line.split() for line in result.stdout.splitlines()]
    assert ["tiles", "50"] in [line[:2] for line in words]
    with batchzip.attach(owner.addresses[0]) as view:
        lines = [[f"{line.size:,}", f"{line.zspages:,}"] for line in view.classes()]
    assert [line for line in lines if line not in [found[:2] for found in words]] == []


@pytest.mark.slow
def test_where_there_can_be_no_full_screen_the_way_to_it_is_told(
    terminal: Callable[..., Screen], owner: Owner
) -> None:
    result = cli("top", owner.addresses[0])
    assert result.stderr == (
        "batchzip: this is one look; for the full view, run it on a terminal without redirection\n"
    )
    script = (
        "import sys; sys.modules['textual'] = None\n"
        "from batchzip.cli.main import main; raise SystemExit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "top", owner.addresses[0]],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "150 in memory" in result.stdout
    assert "this is one look; for the full view: pip install 'textual>=" in result.stderr
    shown = terminal(owner.addresses[0], term="dumb")
    shown.read_until(b"set TERM to the kind of your terminal")
    assert shown.process.wait(timeout=60) == 0
    assert b"\x1b" not in shown.seen
    assert b"150 in memory" in shown.seen


@pytest.mark.slow
def test_the_stores_of_a_process_are_found() -> None:
    owner = Owner(stores=2)
    try:
        assert shared_stores(owner.process.pid) == owner.addresses
        assert set(owner.addresses) <= set(shared_stores())
        result = cli("top", owner.process.pid)
        assert_one_clear_line(result, "several stores", *owner.addresses)
    finally:
        owner.close()
    assert not set(owner.addresses) & set(shared_stores())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["4194305"], ["this user shares no store in process 4194305", "store.share()"]),
        (["/proc/4194305/fd/3"], ["no store can be reached", "/proc/4194305/fd/3"]),
        (["somewhere"], ["'somewhere'", "/proc/<pid>/fd/<n>"]),
        (["one", "two"], ["two"]),
        (["--interval", "0"], ["'0' is not a time"]),
        (["--interval", "soon"], ["'soon' is not a time"]),
        (["--interval", "1e9"], ["at most 86400"]),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capfd, ["top", *arguments], *words)


# Figures


def drawn(now: Snapshot, before: Snapshot | None, *, most: int | None = None) -> str:
    console = make_console()
    with console.capture() as shown:
        print_look(store_look(now, before), console, most=most)
    return shown.get()


def test_rates_and_loads_are_those_between_two_looks() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        store.store(0, make_pages(10))
        with batchzip.attach(store.share()) as view:
            before = take_snapshot(view)
            store.store(100, make_pages(30))
            store.group("more").store(0, make_pages(7))
            for index in range(5):
                store.load(index)
            now = take_snapshot(view)
            seconds = now.taken_s - before.taken_s
            assert before.rate("page_stores", None) is None
            assert now.rate("page_stores", before) == 37 / seconds
            assert now.rate("page_loads", before) == 5 / seconds
            assert now.rate("pool_limit_hit", before) == 0
            assert now.count("page_stores") == 47
            assert now.loads(before) == []
            store.close()
            with pytest.raises(ClosedError):
                take_snapshot(view)
        assert drawn(now, before)


def test_latencies_are_those_since_the_last_look_and_else_of_ever() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        with CompressedMapping(store, name="rows") as rows, batchzip.attach(store.share()) as view:
            page = make_pages(1)
            never = take_snapshot(view)
            for number in range(500):  # a random one in 64 calls is timed
                store.store(0, page)
                store.load(0)
                rows[number] = b"value"
            before = take_snapshot(view)
            for _ in range(500):
                store.load(0)
            now = take_snapshot(view)
            ever = store.latencies
        assert never.latencies(None) == {}
        assert before.latencies(never).keys() == {"load", "put", "store"}
        since = now.latencies(before)
        assert since["load"] == ever["load"] - before.latencies(None)["load"]
        assert since["put"] == ever["put"]
        assert since["store"] == ever["store"]
        shown = drawn(now, before)
        assert re.search(r"^operation +p50 +p99 +mean +timed calls$", shown, re.MULTILINE)
        for operation, latency in since.items():
            times = duration_text(latency.quantile(0.5)), duration_text(latency.quantile(0.99))
            line = (operation, *times, duration_text(latency.mean_s), str(latency.count))
            assert re.search(f"^{' +'.join(line)}$", shown, re.MULTILINE)
        assert "operation" not in drawn(never, None)


def test_a_store_without_pages_is_shown() -> None:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, name="rows"),
        batchzip.attach(store.share()) as view,
    ):
        shown = drawn(take_snapshot(view), None)
    assert "groups left out: 2 empty" in shown


def test_a_worker_s_load_is_the_share_of_the_time_it_was_busy() -> None:
    with Engine("zstd", backend="workers", workers=1) as engine, SwapStore(engine) as store:
        assert engine.wait_ready(60)
        with batchzip.attach(store.share()) as view:
            before = take_snapshot(view)
            assert [load for _, _, load in before.loads(None)] == [None]
            for turn in range(4):
                store.store(0, make_pages(256, seed=turn))
            now = take_snapshot(view)
        ((pid, pages, load),) = now.loads(before)
        assert pid == engine.worker_pids[0]
        assert pages == now.status["statistics"].workers[0].pages
        assert load is not None
        assert 0 <= load <= 1


def test_the_pool_s_share_of_its_limit_is_told() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        store.store(0, make_pages(100))
        store.max_pool_bytes = 4 * store.counters.pool_total_size
        with batchzip.attach(store.share()) as view:
            now = take_snapshot(view)
    assert "(25%)" in drawn(now, None)


def test_empty_groups_and_those_beyond_the_most_are_counted_instead_of_printed() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        for number in range(300):
            group = store.group(f"group {number}")
            if number < 30:
                group.store(0, make_pages(1 + number))
        with batchzip.attach(store.share()) as view:
            now = take_snapshot(view)
    every = drawn(now, None)
    assert every.count("\ngroup ") == 1 + 30
    assert "groups left out: 271 empty" in every  # and the one without a name
    few = drawn(now, None, most=20)
    assert few.count("\ngroup ") == 1 + 20
    assert "groups left out: 10 more, 271 empty" in few
    order = [int(number) for number in re.findall(r"^group (\d+) ", few, re.MULTILINE)]
    assert max(order) == 29, "the largest ones are printed"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_printed_look_fits_its_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        for number in range(3):
            store.group(f"a group with a name that is {'very ' * 9}long {number}").store(
                0, make_pages(300, seed=number)
            )
        with batchzip.attach(store.share()) as view:
            text = drawn(take_snapshot(view), take_snapshot(view))
    assert max(map(len, text.splitlines())) <= width
    assert "long 2" in text
