"""The C libraries that the core calls: what is found here, and what it takes to be used."""

from __future__ import annotations

import array
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import lz4
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from batchzip.core.libraries import Library, libraries, xxh3_64

if TYPE_CHECKING:
    from collections.abc import Mapping

SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
MODULES = {
    "lz4": "lz4/block/_block",
    "zstd": "zstandard/_cffi",
    "xxh3": "xxhash/_xxhash",
}
PACKAGES = {name: module.partition("/")[0] for name, module in MODULES.items()}
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "")

needs_compiler = pytest.mark.skipif(not COMPILER, reason="makes libraries to be refused")


def look(*, hidden: str = "", planted: Path | None = None, then: str = "") -> dict[str, Library]:
    """Look in a process that cannot import some package, or finds another one first."""
    script = f"""
import json, sys
if {hidden!r}:
    sys.modules[{hidden!r}] = None
if {str(planted or "")!r}:
    sys.path.insert(0, {str(planted or "")!r})
from batchzip.core.libraries import libraries, xxh3_64
{then}
print(json.dumps(libraries()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {values[0]: Library(*values) for values in json.loads(done.stdout)}


def real(name: str) -> Library:
    return {library.name: library for library in libraries()}[name]


# What is found


def test_every_library_is_found_in_the_version_that_python_sees() -> None:
    assert [library.name for library in libraries()] == ["lz4", "zstd", "xxh3"]
    versions = [library.version for library in libraries()]
    assert versions == [
        lz4.library_version_string(),
        ".".join(map(str, zstandard.ZSTD_VERSION)),
        xxhash.XXHASH_VERSION,
    ]
    for library in libraries():
        assert library.problem is None
        assert library.path is not None
        assert Path(library.path).is_file()


def test_libraries_are_looked_for_once() -> None:
    for first, second in zip(libraries(), libraries(), strict=True):
        assert first is second


def test_threads_that_look_at_once_find_the_same() -> None:
    look(
        then="""
import threading
together, found = threading.Barrier(8), []
def find():
    together.wait()
    found.append(libraries())
    assert xxh3_64(b"") == 0x2D06800538D394C2
threads = [threading.Thread(target=find) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert len(found) == 8
assert all(one is another for all_ in found for one, another in zip(all_, found[0]))
"""
    )


def test_looking_for_libraries_imports_no_heavy_package() -> None:
    heavy = {"lz4", "zstandard", "xxhash", "cffi", "_cffi_backend", "numpy", "loky", "ctypes"}
    look(then=f"libraries(), xxh3_64(b''); assert not {heavy} & set(sys.modules), sys.modules")


# xxh3


@settings(deadline=None)
@given(st.binary(max_size=600) | st.integers(0, 1 << 16).map(lambda size: b"batch" * size))
def test_xxh3_is_that_of_the_package(data: bytes) -> None:
    assert xxh3_64(data) == xxhash.xxh3_64_intdigest(data)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=3000), st.integers(0, 64))
def test_xxh3_does_not_depend_on_alignment(data: bytes, offset: int) -> None:
    room = bytearray(offset) + data
    assert xxh3_64(memoryview(room)[offset:]) == xxhash.xxh3_64_intdigest(data)


def test_xxh3_takes_any_contiguous_buffer_and_no_other() -> None:
    numbers = array.array("d", range(100))
    expected = xxhash.xxh3_64_intdigest(numbers.tobytes())
    assert xxh3_64(numbers) == xxh3_64(memoryview(numbers).toreadonly()) == expected
    with pytest.raises(BufferError):
        xxh3_64(memoryview(numbers)[::2])
    with pytest.raises(TypeError):
        xxh3_64("text")  # type: ignore[arg-type]


# What cannot be used is named and not used


@pytest.mark.parametrize("name", MODULES)
def test_a_package_that_is_not_there_is_named(name: str) -> None:
    found = look(hidden=PACKAGES[name])
    assert found.pop(name) == Library(name, None, None, f"{PACKAGES[name]} is not installed")
    assert all(library.problem is None for library in found.values())


def plant(folder: Path, name: str, code: str = "") -> Path:
    """Make a package that cannot be imported; return where its extension module belongs."""
    module = folder / (MODULES[name] + SUFFIX)
    module.parent.mkdir(parents=True)
    (folder / PACKAGES[name] / "__init__.py").write_text(code or "raise SystemExit('imported')")
    return module


def test_a_package_without_its_extension_module_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "xxh3", "def xxh3_64_intdigest(data): return 5")
    found = look(planted=tmp_path, then="assert xxh3_64(b'') == 5")["xxh3"]
    assert found == Library("xxh3", None, None, "xxhash has no _xxhash for this Python")


def test_a_finder_that_fails_is_named() -> None:
    found = look(
        then="""
class Finder:
    def find_spec(self, name, *_):
        if name == "lz4":
            raise ValueError("lost")
sys.meta_path.insert(0, Finder())
"""
    )
    assert found["lz4"].problem == "looking for lz4 failed: ValueError('lost')"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kept", [500, 5000, 20000])
def test_a_module_that_is_cut_short_is_refused(name: str, kept: int, tmp_path: Path) -> None:
    module = plant(tmp_path, name)
    path = real(name).path
    assert path is not None
    module.write_bytes(Path(path).read_bytes()[:kept])
    found = look(planted=tmp_path)[name]
    assert found.problem is not None
    assert found.path == str(module)


def test_files_that_are_no_extension_module_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "lz4").write_text("an extension module, one would think")
    plant(tmp_path, "zstd").write_bytes(b"\x7fELF\x02\x01" + bytes(58))
    plant(tmp_path, "xxh3").mkdir()
    found = look(planted=tmp_path)
    assert "file too short" in str(found["lz4"].problem)
    assert found["zstd"].problem
    assert found["xxh3"].problem == "xxhash has no _xxhash for this Python"


def compile_library(source: str, to: Path, *linked: str) -> None:
    """Compile a shared object; what it does not define itself is found in those linked to it."""
    subprocess.run(
        [
            COMPILER,
            "-shared",
            "-fPIC",
            "-Wl,--no-as-needed",
            "-x",
            "c",
            "-",
            "-x",
            "none",
            *linked,
            "-o",
            to,
        ],
        input=f"#include <stddef.h>\n#include <string.h>\n{source}",
        text=True,
        check=True,
    )


@pytest.mark.slow
@needs_compiler
def test_a_module_that_links_the_library_will_do(tmp_path: Path) -> None:
    for name in MODULES:
        compile_library("", plant(tmp_path, name), str(real(name).path))
    assert look(planted=tmp_path) == {library.name: library for library in libraries()}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", MODULES)
def test_a_module_without_the_functions_is_refused(name: str, tmp_path: Path) -> None:
    version = {"lz4": "LZ4_versionNumber", "zstd": "ZSTD_versionNumber"}.get(
        name, "XXH_versionNumber"
    )
    module = plant(tmp_path, name)
    compile_library("int nothing;", module)
    assert look(planted=tmp_path)[name].problem == f"it exports no {version}"
    compile_library(f"int {version}(void) {{ return {900 if name == 'xxh3' else 10905}; }}", module)
    found = look(planted=tmp_path)[name]
    assert str(found.problem).startswith("it exports no ")
    assert (found.version, found.path) == ("0.9.0" if name == "xxh3" else "1.9.5", str(module))


FAULTS: Mapping[str, tuple[str, str, str]] = {
    "is older": ("zstd", "int ZSTD_versionNumber(void) { return 10499; }", "version 1.4.99"),
    "is newer": ("lz4", "int LZ4_versionNumber(void) { return 20000; }", "version 2.0.0"),
    "hashes otherwise": (
        "xxh3",
        (
            "size_t XXH3_64bits_dispatch(const void *p, size_t n) { return n; }"
            "size_t XXH3_64bits(const void *p, size_t n) { return n; }"
        ),
        "other values",
    ),
    "needs a huge state": ("lz4", "int LZ4_sizeofStateHC(void) { return -1; }", "implausible"),
    "needs no state": ("lz4", "int LZ4_sizeofState(void) { return 0; }", "implausible"),
    "makes no stream": (
        "lz4",
        "void *LZ4_initStream(void *p, size_t n) { return 0; }",
        "does not restore what it compressed",
    ),
    "restores nothing": (
        "lz4",
        "int LZ4_decompress_safe(char *s, char *d, int n, int room) { return room; }",
        "does not restore what it compressed",
    ),
    "restores too much": (
        "lz4",
        (
            "int LZ4_decompress_safe(char *s, char *d, int n, int room)"
            "{ memset(d, 0, room + 1); return room; }"
        ),
        "beyond its output buffer",
    ),
    "compresses to too much": (
        "lz4",
        (
            "int LZ4_compress_HC_extStateHC(void *p, char *s, char *d, int n, int room, int level)"
            "{ memset(d, 0, room + 1); return room; }"
        ),
        "beyond its output buffer",
    ),
    "has no contexts": ("zstd", "void *ZSTD_createCCtx(void) { return 0; }", "not enough memory"),
    "takes no level": (
        "zstd",
        "size_t ZSTD_CCtx_setParameter(void *c, int p, int v) { return -1; }",
        "refuses its parameters",
    ),
    "takes no dictionary": (
        "zstd",
        "size_t ZSTD_CCtx_refCDict(void *c, void *d) { return -1; }",
        "refuses its dictionary",
    ),
    "has no stream": (
        "zstd",
        "size_t ZSTD_compressStream2(void *c, void *out, void *in, int step) { return -1; }",
        "does not restore what it compressed",
    ),
    "knows no bound": ("zstd", "size_t ZSTD_compressBound(size_t n) { return 0; }", "bound"),
    "knows no errors": (
        "zstd",
        "unsigned ZSTD_isError(size_t code) { return 0; }",
        "does not fail when its output buffer is too small",
    ),
    "restores frames to nothing": (
        "zstd",
        (
            "size_t ZSTD_decompressDCtx(void *c, char *d, size_t room, char *s, size_t n)"
            "{ return room; }"
        ),
        "does not restore what it compressed",
    ),
    "restores frames to too much": (
        "zstd",
        (
            "size_t ZSTD_decompressDCtx(void *c, char *d, size_t room, char *s, size_t n)"
            "{ memset(d, 0, room + 1); return room; }"
        ),
        "beyond its output buffer",
    ),
    "restores nothing with a dictionary": (
        "zstd",
        (
            "size_t ZSTD_decompress_usingDDict(void *c, char *d, size_t room, char *s)"
            "{ return room; }"
        ),
        "does not restore what it compressed",
    ),
    "misjudges a frame": (
        "zstd",
        "size_t ZSTD_findFrameCompressedSize(char *s, size_t n) { return n; }",
        "does not restore what it compressed",
    ),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("what", FAULTS)
def test_a_library_with_a_fault_is_refused_and_the_others_are_used(
    what: str, tmp_path: Path
) -> None:
    name, source, words = FAULTS[what]
    compile_library(source, plant(tmp_path, name), str(real(name).path))
    found = look(planted=tmp_path)
    assert words in str(found.pop(name).problem)
    assert all(library.problem is None for library in found.values())


@needs_compiler
def test_the_second_module_is_tried_where_the_first_lacks_the_functions(tmp_path: Path) -> None:
    module = plant(tmp_path, "zstd")
    compile_library("int nothing;", module)
    compile_library("", module.with_name("backend_c" + SUFFIX), str(real("zstd").path))
    assert look(planted=tmp_path)["zstd"] == real("zstd")


def test_a_forked_child_has_the_libraries_too() -> None:
    expected = xxh3_64(b"page")
    child = os.fork()
    if not child:
        os._exit(xxh3_64(b"page") != expected or any(one.problem for one in libraries()))
    assert os.waitpid(child, 0)[1] == 0
