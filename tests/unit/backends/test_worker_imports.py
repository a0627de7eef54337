"""A worker has its owner's path and flags, and finds the codecs of the user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lz4
import pytest
from support.worker_programs import BEGIN, SHOW_FLAGS, run

PLANTED = ("types", "pickle", "signal", "struct", "lz4", "numpy", "cloudpickle", "sitecustomize")
"""Modules that a worker would import if they were looked for where they lie."""

PRINT_PATH = BEGIN + (
    "with Engine('lz4', backend='workers', workers=1) as engine:\n"
    "    assert engine.wait_ready(), engine.backend._supervisor.failure\n"
    "    check(engine)\n"
    "print('done')\n"
)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder full of modules that say so when they are run."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nraise ImportError('planted')\n"
        )
    return folder


# What a worker imports, and with which flags it runs


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "-P", "-I"])
def test_nothing_is_imported_from_the_current_directory(
    how: str, planted: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(PRINT_PATH)
    arguments = [script] if how == "script" else [how, "-c", PRINT_PATH]
    done = run(arguments, cwd=planted)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.slow
def test_the_workers_of_a_session_do_not_import_from_the_current_directory(
    planted: Path, tmp_path: Path
) -> None:
    """What the owner itself would import from there, by -c, is planted once it has started."""
    there = planted.rename(tmp_path / "later")
    planted.mkdir()
    source = BEGIN + (
        "import ctypes, pickle, cloudpickle, lz4.block, subprocess\n"
        f"for name in os.listdir({str(there)!r}):\n"
        f"    os.rename(os.path.join({str(there)!r}, name), name)\n"
        "assert '' in sys.path\n"
        "with Engine('lz4', backend='workers', workers=1) as engine:\n"
        "    assert engine.wait_ready(), engine.backend._supervisor.failure\n"
        "    check(engine)\n"
    )
    done = run(["-c", source], cwd=planted)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "EXECUTED").exists()


FLAGS = """
import sys
def main(fd):
    import os
    os.write(fd, repr((sys.flags, sys.warnoptions, sys._xoptions, sys.path)).encode())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["-P"],
        ["-I"],
        ["-E"],
        ["-E", "-s", "-B"],
        ["-O"],
        ["-OO"],
        ["-X", "dev"],
        ["-W", "error"],
    ],
    ids=" ".join,
)
def test_a_worker_has_the_flags_and_the_path_of_its_owner(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "shows_flags.py").write_text(FLAGS)
    done = run([*flags, "-c", SHOW_FLAGS.format(folder=str(tmp_path))])
    assert (done.returncode, done.stderr) == (0, "")
    worker, owner = done.stdout.splitlines()
    # A worker never looks in the current directory.
    assert worker == owner.replace("safe_path=False", "safe_path=True").replace("'', ", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["-O"], ["-OO"], ["-X", "dev"], ["-W", "error"], ["-E"], ["-I"], ["-P"]], ids=" ".join
)
def test_workers_work_whatever_their_owners_flags(flags: list[str]) -> None:
    done = run([*flags, "-c", PRINT_PATH])
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.slow
def test_workers_work_without_site() -> None:
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = run(["-S", "-c", path + PRINT_PATH])
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.slow
def test_pythonsafepath_and_python_options_in_the_environment_are_honoured(tmp_path: Path) -> None:
    done = run(["-c", PRINT_PATH], env={**os.environ, "PYTHONSAFEPATH": "1"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_workers_find_batchzip_where_only_the_current_directory_has_it(tmp_path: Path) -> None:
    """As in a checkout that is not installed: then it is looked at last."""
    for package in ("batchzip", "batchzip_workers"):
        (tmp_path / package).symlink_to(Path(sys.modules[package].__path__[0]))
    packages = Path(lz4.__path__[0]).parent
    source = (
        f"import sys; sys.path.append({str(packages)!r})\n"
        "from batchzip import Engine\n"
        "from batchzip.codecs.lz4 import Lz4\n"
        "from batchzip_workers.backend import WorkersBackend\n"
        "with open('types.py', 'w') as file: file.write('raise ImportError(\"planted\")')\n"
        "with Engine(Lz4(), backend=WorkersBackend(workers=1)) as engine:\n"
        "    assert engine.wait_ready(), engine.backend._supervisor.failure\n"
    )
    done = run(["-S", "-c", source], cwd=tmp_path)  # without site, no editable install is found
    assert (done.returncode, done.stderr) == (0, "")


# Codecs of the user's own


OWN_CODEC = """
from dataclasses import dataclass
from typing import ClassVar
import lz4.block
from batchzip.codecs import Codec
@dataclass(frozen=True, slots=True)
class Own(Codec):
    name: ClassVar[str] = "own"
    owner: int
    def compressor(self, page_size):
        def compress(page):
            assert os.getpid() != self.owner
            return lz4.block.compress(page, store_size=False)
        return compress
    def decompressor(self, page_size):
        # In the function within, too: cloudpickle does not see what is named there.
        return lambda src: lz4.block.decompress(src, uncompressed_size=page_size)
"""

USE_OWN = """
print("run")
from batchzip_workers.backend import WorkersBackend
codec = Own(os.getpid())
with Engine(codec, backend=WorkersBackend(workers=1, isolate=True)) as engine:
    assert engine.wait_ready(), engine.backend._supervisor.failure
    check(engine)
"""


@pytest.mark.slow
def test_a_codec_of_main_works_and_main_is_run_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEGIN + OWN_CODEC + USE_OWN)
    for arguments in ([script], ["-c", script.read_text()]):
        done = run(arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


@pytest.mark.slow
def test_a_codec_that_a_function_defines_works() -> None:
    body = OWN_CODEC.replace("\n", "\n    ")
    source = BEGIN + "def define():" + body
    done = run(["-c", source + "\n    return Own\nOwn = define()\n" + USE_OWN])
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "-c", "-m", "stdin"])
def test_a_codec_of_a_module_beside_the_program_works(how: str, tmp_path: Path) -> None:
    """Also where Python found it in the current directory: then that is looked at last."""
    (tmp_path / "own.py").write_text("import os\n" + OWN_CODEC)
    source = BEGIN + "from own import Own\n" + USE_OWN
    (tmp_path / "program.py").write_text(source)
    arguments = {
        "script": ["program.py"],
        "-c": ["-c", source],
        "-m": ["-m", "program"],
        "stdin": ["-"],
    }[how]
    done = run(arguments, cwd=tmp_path, input=source if how == "stdin" else None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")
