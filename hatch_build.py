"""Compile the core, `batchzip/core/*.pyx`: a build hook of hatchling, and a command.

    python hatch_build.py                 rebuild the core of an editable install
    python hatch_build.py --into FOLDER   copy the package and build its core, for PYTHONPATH=FOLDER

BATCHZIP_CORE_PROFILE selects one of PROFILES. The compiler is $CC, otherwise the first of cc, gcc
and clang that can make a shared object. If there is none, the hook requires the wheel ziglang,
which contains a compiler. CFLAGS are honoured.

Intermediate files are kept in build/core/<profile>/<Python>/. A module is compiled again when its
digest changes. The digest covers its source, the `.pxd` and `.h` files that the source names, the
flags, the compiler, Cython and Python.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = Path("batchzip/core")
ZIG_MACHINES = ("x86_64", "aarch64")
# The glibc of manylinux2014. zig can link against any version.
ZIG_GLIBC = "2.17"

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": "False",
    "wraparound": "False",
    "initializedcheck": "False",
    "cdivision": "True",
    "autotestdict": "False",  # no __test__ in modules
    "auto_pickle": "False",  # objects that hold addresses must not go to other processes
}
FLAGS = [
    "-std=gnu11",
    "-fPIC",
    "-pthread",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unused-function",  # Cython's own helpers
]


class Profile(NamedTuple):
    """A kind of build: its compiler and linker flags, and its Cython directives."""

    flags: str
    directives: dict[str, str] = {}  # noqa: RUF012 - never changed


PROFILES = {
    "release": Profile("-O3 -g0 -DNDEBUG"),  # -g0: zig adds debug information otherwise
    "coverage": Profile(
        "-O1 -DCYTHON_TRACE=1 -DCYTHON_TRACE_NOGIL=1", {"linetrace": "True"}
    ),  # CPython 3.11 only
    "asan": Profile("-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"),
    # tsan does not model fences and warns about them. Here they only order a sleeper and its waker;
    # data passes between threads by acquire and release of other words.
    "tsan": Profile("-O1 -g -fsanitize=thread -Wno-tsan"),
    # clang only: counters that guide a fuzzer, and AddressSanitizer. Nothing waits for a process
    # that a fuzzer does not have.
    "fuzz": Profile("-O1 -g -fsanitize=address,fuzzer-no-link -DBZ_LOOK_NS=0 -DBZ_PATIENCE_NS=0"),
    # A scheduler may switch threads at every step of the ring.
    "explore": Profile("-O1 -g -DBZ_EXPLORE"),
}


class Compiler(NamedTuple):
    """A C compiler: its command, and its name with its version."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler | None:
    """Return $CC, otherwise the first of cc, gcc and clang that works; None if none does.

    Raise SystemExit if $CC is set and does not work.
    """
    if chosen := shlex.split(os.environ.get("CC", "")):
        if not works(chosen):
            stop(
                f"CC={shlex.join(chosen)} cannot compile a C file that includes <stdio.h> to a "
                "shared object"
            )
        return Compiler(tuple(chosen), version_of(chosen))
    for name in ("cc", "gcc", "clang"):
        if works([name]):
            return Compiler((name,), version_of([name]))
    return None


def works(command: Sequence[str]) -> bool:
    """Return whether a compiler can make a shared object.

    Some compilers are installed without the headers of libc.
    """
    if shutil.which(command[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "works.c")
        source.write_text('#include <stdio.h>\nint works(void) { return puts(""); }\n')
        arguments = [
            *command,
            "-shared",
            "-fPIC",
            "-pthread",
            "-o",
            f"{folder}/works.so",
            str(source),
        ]
        return subprocess.run(arguments, capture_output=True, check=False).returncode == 0


def version_of(command: Sequence[str]) -> str:
    """Return a compiler's name with the first line of its `--version`."""
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return f"{Path(command[0]).name}: {said.stdout.partition(chr(10))[0].strip()}"


def zig() -> Compiler:
    """Return the compiler in the wheel ziglang. Raise SystemExit if the wheel is unavailable."""
    reason = "no C compiler was found (cc, gcc, clang)"
    if platform.machine() not in ZIG_MACHINES:
        stop(f"{reason}, and ziglang has none for {platform.machine()}: apt install gcc libc6-dev")
    if importlib.util.find_spec("ziglang") is None:
        stop(f"{reason}: apt install gcc libc6-dev, or pip install ziglang")
    # By default zig compiles for the CPU of the build machine.
    command = [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]
    if platform.libc_ver()[0] == "glibc":
        command += ["-target", f"{platform.machine()}-linux-gnu.{ZIG_GLIBC}"]
    return Compiler(tuple(command), f"zig cc {metadata.version('ziglang')}")


def include_folder() -> str:
    """Return the folder of Python.h. Raise SystemExit if it is missing."""
    folders = [sysconfig.get_path("include"), str(sysconfig.get_config_var("INCLUDEPY"))]
    for folder in folders:
        if Path(folder, "Python.h").exists():
            return folder
    return stop(
        f"Python's headers are missing (no Python.h in {folders[0]}): apt install python3-dev"
    )


def need_programs_to_run() -> None:
    """Raise SystemExit if the build environment, in which pip puts Cython, is mounted noexec."""
    cython = importlib.util.find_spec("Cython")
    if cython is None or cython.origin is None:
        return
    folder = Path(cython.origin).parent.parent
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        stop(
            f"no program can run in {folder}, as it is mounted noexec: set TMPDIR to a folder "
            "where programs can run, as in TMPDIR=$HOME pip install …"
        )


def stop(message: str) -> NoReturn:
    """End the build with a message of one line, without a traceback."""
    raise SystemExit(f"batchzip: {message}")


class Core:
    """The core of one checkout, built with one profile and one compiler."""

    def __init__(self, root: Path) -> None:
        self.profile = os.environ.get("BATCHZIP_CORE_PROFILE") or "release"
        if self.profile not in PROFILES:
            stop(f"BATCHZIP_CORE_PROFILE={self.profile}: choose one of {', '.join(PROFILES)}")
        try:
            self.cython = metadata.version("cython")
        except metadata.PackageNotFoundError:
            stop("Cython is missing: pip install 'cython>=3.1'")
        self.root = root
        self.package = root / PACKAGE
        self.suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
        self.work = root / "build/core" / self.profile / self.suffix.split(".")[1]
        include = include_folder()
        directives = DIRECTIVES | PROFILES[self.profile].directives
        self.directives = [f"-X{name}={value}" for name, value in directives.items()]
        self.flags = [
            *FLAGS,
            *PROFILES[self.profile].flags.split(),
            *shlex.split(os.environ.get("CFLAGS", "")),
            f"-I{include}",
            f"-I{PACKAGE}",
            # Debian's Python.h includes <x86_64-linux-gnu/python3…/pyconfig.h>. zig does not find
            # that file by itself.
            *("-idirafter", str(Path(include).parent)),
        ]
        self.compiler = find_compiler() or zig()
        self.environment = os.environ | {
            "ZIG_GLOBAL_CACHE_DIR": str(root / "build/core/zig"),
            "ZIG_LOCAL_CACHE_DIR": str(root / "build/core/zig"),
        }

    def build(self) -> list[Path]:
        """Compile the modules that changed. Return all modules in the work folder."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test runs may build at once
            sources = sorted(self.package.glob("*.pyx"))
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                modules = list(pool.map(self.module, sources))
        failed = [
            source.name for source, module in zip(sources, modules, strict=True) if not module
        ]
        if failed:
            stop(
                f"the core does not compile ({', '.join(failed)}); "
                "the compiler's messages are above"
            )
        return [module for module in modules if module]

    def module(self, source: Path) -> Path | None:
        """Return the file of one module, compiled if its digest changed; None if that failed."""
        c_file = self.work / f"{source.stem}.c"
        shared = self.work / f"{source.stem}{self.suffix}"
        flags = [*self.flags, *(self.macros() if source.stem == "build" else [])]
        digest = hashlib.sha256(
            repr((self.compiler, self.cython, sys.version, self.directives, flags)).encode()
        )
        for path in sorted({source, *named_in(source)}):
            digest.update(path.read_bytes())
        stamp = self.work / f"{source.stem}.digest"
        if shared.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
            return shared
        stamp.unlink(missing_ok=True)
        relative = str(source.relative_to(self.root))
        to_c = [sys.executable, "-m", "cython", *self.directives, "-o", str(c_file), relative]
        to_module = [*self.compiler.command, "-shared", *flags, "-o", str(shared), str(c_file)]
        if not (self.run(to_c) and self.run(to_module)):
            return None
        stamp.write_text(digest.hexdigest())
        return shared

    def macros(self) -> list[str]:
        """Return the macros that become the constants of `batchzip.core.build`."""
        values = {
            "SOURCE_DIGEST": staleness(self.root).source_digest(self.package),
            "COMPILER": self.compiler.version,
            "PROFILE": self.profile,
            "CYTHON": self.cython,
        }
        return [f'-DBATCHZIP_{name}="{value}"' for name, value in values.items()]

    def run(self, command: list[str]) -> bool:
        """Run one command in the checkout and show its output. Return whether it succeeded."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if said := done.stdout + done.stderr:
            print(f"$ {shlex.join(command)}\n{said}", file=sys.stderr, flush=True)
        return done.returncode == 0

    def install(self, folder: Path) -> None:
        """Copy the modules to `folder`, and remove modules that have no source any more."""
        built = self.build()
        for module in built:
            # A new inode: the old module may be mapped into a running process.
            unfinished = folder / f".{module.name}"
            shutil.copyfile(module, unfinished)
            unfinished.replace(folder / module.name)
            if self.profile == "coverage":
                # Cython's plug-in for coverage.py reads the C file beside the source.
                c_file = self.work / f"{module.name.partition('.')[0]}.c"
                shutil.copyfile(c_file, folder / c_file.name)
        names = {module.name.partition(".")[0] for module in built}
        for left in folder.glob("*.so"):
            if left.name.partition(".")[0] not in names:
                left.unlink()
        if self.profile != "coverage":
            for left in folder.glob("*.c"):
                left.unlink()


def named_in(source: Path) -> set[Path]:
    """Return a source's own `.pxd`, and the `.pxd` and `.h` files it names, also indirectly."""
    found: set[Path] = set()
    to_read = [source]
    while to_read:
        path = to_read.pop()
        words = {path.stem, *re.findall(r"\w+", path.read_text())}
        near = [*path.parent.glob("*.pxd"), *path.parent.glob("*.h")]
        new = {file for file in near if file.stem in words} - found
        found |= new
        to_read += new
    return found


def staleness(root: Path) -> Any:
    """Load the module `staleness` by its path, because batchzip is not installed yet."""
    spec = importlib.util.spec_from_file_location("staleness", root / PACKAGE / "staleness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CoreBuildHook(BuildHookInterface[BuilderConfig]):
    """The hook that hatchling calls to build a wheel, regular or editable (`pip install -e`)."""

    def dependencies(self) -> list[str]:
        """Return the wheel of a compiler if the machine has no compiler."""
        # Fail before 100 MB of compiler are downloaded in vain.
        include_folder()
        need_programs_to_run()
        has_compiler = find_compiler() is not None or platform.machine() not in ZIG_MACHINES
        return [] if has_compiler else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the core, into the checkout for an editable wheel, otherwise into the wheel."""
        core = Core(Path(self.root))
        if version == "editable":
            core.install(core.package)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for module in core.build():
            build_data["force_include"][str(module)] = str(PACKAGE / module.name)


def main() -> None:
    """Rebuild the core in the checkout, or in a copy of the package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="copy the package to this folder, build there"
    )
    into: Path | None = parser.parse_args().into
    core = Core(Path(__file__).resolve().parent)
    if into is None:
        core.install(core.package)
        return
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for source in sorted([core.root / "batchzip", *(core.root / "backends").glob("*/")]):
        shutil.copytree(source, into / source.name, ignore=ignore, dirs_exist_ok=True)
    core.install(into / PACKAGE)


if __name__ == "__main__":
    main()
