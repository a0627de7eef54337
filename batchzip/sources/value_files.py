"""Values in files, for `advise --values`, with an error that explains each unsupported file.

    FILE           one JSON value per line. A value is the line as bytes.
    FILE --parsed  one JSON value per line. A value is the parsed line: a dict, a list, a str …
    FILE --pickle  a pickled dict, list or tuple
    FOLDER         each file in the folder and its subfolders is a value.
    FILE:TABLE     each row of a table in an SQLite file is a value: its only column besides the
                   key, or a tuple of these columns.

From data larger than the sample, values are taken at random from all over it.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchzip.advice.values import ValueSource, source_of
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

_SQLITE = b"SQLite format 3\0"
_RUN_BYTES = 1 << 20
"""Bytes of lines that are read from one place in a large file."""

_LEAST_ROWS = 1000
"""Minimum number of rows to sample from a table that is a small part of its file."""

KINDS = (
    "--values takes a file with one JSON value per line, a folder of files, FILE:TABLE of an "
    "SQLite file, or with --pickle a pickled dict or list"
)


def open_values(
    name: str, sample_bytes: int, seed: int, *, is_pickle: bool = False, is_parsed: bool = False
) -> ValueSource:
    """Return a source of the values in a file, table or folder.

    Raise OSError, or BadArgument for an unsupported file. Unpickling runs code from the file. It is
    done only if `is_pickle` is set.
    """
    if is_pickle and is_parsed:
        raise BadArgument("--parsed is for lines of JSON, and --pickle for a pickle: leave one out")
    rng = random.Random(seed)  # noqa: S311 - a sample
    option = "--pickle" if is_pickle else "--parsed" if is_parsed else ""
    file_name, colon, table = name.rpartition(":")
    if colon and not os.path.lexists(name) and os.path.lexists(file_name):
        _refuse(option, f"{name} is a table")
        return _table(Path(file_name), table, sample_bytes, rng)
    path = Path(name)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        _refuse(option, f"{name} is a folder")
        return _folder(path, rng)
    if not stat.S_ISREG(mode):
        raise BadArgument(f"{name} is neither a file nor a folder: {KINDS}")
    with path.open("rb") as file:
        start = file.read(len(_SQLITE))
    if start == _SQLITE:
        raise BadArgument(_tables_to_name(path))
    if is_pickle and start:
        return _pickle(path, seed)
    _check_start(name, start)
    return (_parsed_lines if is_parsed else _lines)(path, sample_bytes, rng)


def _refuse(option: str, what: str) -> None:
    if option:
        raise BadArgument(f"{what}: leave {option} out")


def _check_start(name: str, start: bytes) -> None:
    """Raise BadArgument if the first bytes of a file show that it has no lines."""
    if not start:
        raise BadArgument(f"{name} is empty: {KINDS}")
    if start[0] == 0x80 and len(start) > 1 and start[1] <= pickle.HIGHEST_PROTOCOL:
        raise BadArgument(
            f"{name} is a pickle, and reading it runs whatever code it holds: if you trust it, add "
            "--pickle"
        )


# JSON lines


def _lines(path: Path, sample_bytes: int, rng: random.Random) -> ValueSource:
    size = path.stat().st_size
    is_sample = size > sample_bytes
    found = _some_lines(path, size, sample_bytes, rng) if is_sample else _all_lines(path)
    return ValueSource(
        ((key, line) for key, line, _ in found),
        total_bytes=size,
        is_sample=is_sample,
        is_json=True,
        notes=("A value is a line of JSON, as bytes.",),
    )


def _parsed_lines(path: Path, sample_bytes: int, rng: random.Random) -> ValueSource:
    size = path.stat().st_size
    # Objects are measured by their pickles, which may be larger than the JSON.
    is_sample = size > sample_bytes // 2
    found = _some_lines(path, size, sample_bytes // 2, rng) if is_sample else _all_lines(path)
    source = ValueSource(
        iter(()), is_sample=is_sample, notes=("A value is a line of JSON, parsed.",)
    )

    def pairs() -> Iterator[tuple[str, object]]:
        line_bytes = 0
        for lines, (key, line, value) in enumerate(found, start=1):
            line_bytes += len(line) + 1
            source.total_values = max(lines, round(lines * size / line_bytes))
            yield key, value

    source.pairs = pairs()
    return source


def _all_lines(path: Path) -> Iterator[tuple[str, bytes, object]]:
    """Yield the number of each line, the line, and its parsed value."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if value := line.strip():
                yield str(number), value, _parse(value, f"{path}, line {number}")


def _some_lines(
    path: Path, size: int, sample_bytes: int, rng: random.Random
) -> Iterator[tuple[str, bytes, object]]:
    """Yield the position, the line and its value for lines of a sample.

    The file is divided into equal stretches, and lines are read from a random place in each.
    """
    count = max(1, sample_bytes // _RUN_BYTES)
    length = min(_RUN_BYTES, sample_bytes)
    found = False
    with path.open("rb") as file:
        for number in range(count):
            stretch = size // count
            place = number * stretch + rng.randrange(max(1, stretch - length))
            end = (number + 1) * stretch
            file.seek(max(place - 1, 0))
            if place:
                file.readline()  # skip the rest of a line that began before
            taken = 0
            while taken < length and (at := file.tell()) < end and (line := file.readline()):
                taken += len(line)
                if value := line.strip():
                    found = True
                    yield str(at), value, _parse(value, f"{path}, at byte {at}")
        if not found:  # the last line begins before all of these places
            yield from itertools.islice(_all_lines(path), 1)


def _parse(line: bytes, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadArgument(f"{where}, is not a JSON value ({error}): {KINDS}") from None


# A pickle


def _pickle(path: Path, seed: int) -> ValueSource:
    try:
        with path.open("rb") as file:
            values = pickle.load(file)  # with the user's consent
    except OSError:
        raise
    except Exception as error:  # code in the pickle may raise anything
        raise BadArgument(f"{path} cannot be unpickled: {type(error).__name__}: {error}") from error
    if not isinstance(values, dict | list | tuple):
        raise BadArgument(
            f"{path} contains a pickled {type(values).__name__}: it must be a dict or a list"
        )
    return source_of(values, seed)


# A folder


def _folder(path: Path, rng: random.Random) -> ValueSource:
    files: list[tuple[str, int]] = []
    folders = [os.fspath(path)]
    while folders:
        with os.scandir(folders.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    files.append((entry.path, entry.stat(follow_symlinks=False).st_size))
    if not files:
        raise BadArgument(f"{path} has no files: {KINDS}")
    files.sort()
    rng.shuffle(files)
    pairs = ((os.path.relpath(name, path), Path(name).read_bytes()) for name, _ in files)
    return ValueSource(pairs, len(files), sum(size for _, size in files))


# A table


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _tables_of(path: Path) -> list[str]:
    try:
        with closing(_open(path)) as connection:
            rows = connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
                " AND name NOT LIKE 'sqlite#_%' ESCAPE '#' ORDER BY name"
            )
            return [name for (name,) in rows]
    except sqlite3.Error as error:
        raise BadArgument(f"{path} cannot be read as an SQLite file: {error}") from None


def _tables_to_name(path: Path) -> str:
    tables = _tables_of(path)
    if not tables:
        return f"{path} is an SQLite file without tables: {KINDS}"
    there = ", ".join(tables)
    return f"{path} is an SQLite file: name a table of it, as in {path}:{tables[0]}; it has {there}"


def _table(path: Path, table: str, sample_bytes: int, rng: random.Random) -> ValueSource:
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) != _SQLITE:
            raise BadArgument(f"{path} is not an SQLite file and has no table {table!r}: {KINDS}")
    tables = _tables_of(path)
    if table not in tables:
        there = f"it has {', '.join(tables)}" if tables else "it has none"
        raise BadArgument(f"{path} has no table {table!r}: {there}")
    quoted = _quoted(table)
    try:
        with closing(_open(path)) as connection:
            columns = connection.execute(f"PRAGMA table_info({quoted})").fetchall()
            counted = connection.execute(f"SELECT count(*) FROM {quoted}")  # noqa: S608 - quoted
            (count,) = counted.fetchone()
    except sqlite3.Error as error:
        raise BadArgument(f"{path}, table {table!r}: {error}") from None
    if not count:
        raise BadArgument(f"{path}: table {table!r} has no rows to advise on")
    keys = [name for _, name, _, _, _, place in columns if place]
    names = [name for _, name, _, _, _, place in columns if not place] or keys
    share = min(1.0, max(sample_bytes / path.stat().st_size, _LEAST_ROWS / count))
    value = f"column {names[0]!r}" if len(names) == 1 else f"a tuple of {len(names)} columns"
    return ValueSource(
        _rows(path, quoted, keys, names, share, rng),
        count,
        is_sample=share < 1,
        notes=(f"A value is {value} of a row.",),
    )


def _rows(
    path: Path, table: str, keys: list[str], names: list[str], share: float, rng: random.Random
) -> Iterator[tuple[Any, Any]]:
    columns = ", ".join(map(_quoted, keys + names))
    # Rows that are not picked are not read: SQLite keeps long values on pages of their own.
    picked = " WHERE batchzip_picks()" if share < 1 else ""
    with closing(_open(path)) as connection:
        connection.create_function("batchzip_picks", 0, lambda: rng.random() < share)
        try:
            wanted = f"SELECT {columns} FROM {table}{picked}"  # noqa: S608 - quoted
            found = connection.execute(wanted)
            for number, row in enumerate(found):
                key, value = row[: len(keys)] or (number,), row[len(keys) :]
                # A float may be the key of a table. As the key of a mapping, it must be in a tuple.
                is_plain = len(key) == 1 and isinstance(key[0], str | bytes | int)
                yield key[0] if is_plain else key, value[0] if len(value) == 1 else value
        except sqlite3.Error as error:
            raise BadArgument(f"{path}, table {table}: {error}") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
