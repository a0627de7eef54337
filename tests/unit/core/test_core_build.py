"""The core's build: what it was built from, what is compiled again, and what a failure says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import types
from typing import TYPE_CHECKING

import pytest
from support.paths import ROOT

import hatch_build
from batchzip.core import build, staleness

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def hook(root: Path) -> hatch_build.CoreBuildHook:
    unused: tuple[object, ...] = ({}, None, None, "", "wheel")
    return hatch_build.CoreBuildHook(str(root), *unused)  # type: ignore[arg-type]


def test_the_core_is_what_its_sources_say() -> None:
    assert not staleness.is_stale(), f"the core is older than its sources: {staleness.REBUILD}"
    assert build.PROFILE in hatch_build.PROFILES
    assert build.COMPILER


@pytest.mark.parametrize("name", ["ring.pyx", "ring.pxd", "native.h"])
def test_each_source_counts_in_the_digest(tmp_path: Path, name: str) -> None:
    assert staleness.source_digest(tmp_path) is None, "as in a wheel"
    (tmp_path / "build.pyx").write_text("A = 1\n")
    digests = [staleness.source_digest(tmp_path)]
    for contents in ("", "B = 2\n"):
        (tmp_path / name).write_text(contents)
        digests.append(staleness.source_digest(tmp_path))
    (tmp_path / name).rename(tmp_path / f"other_{name}")
    digests.append(staleness.source_digest(tmp_path))
    assert len(set(digests)) == len(digests)


@pytest.mark.slow
def test_the_stubs_say_what_the_modules_have(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(r"batchzip\.core\.\w+\.__pyx_capi__")  # C functions that .pxd files export
    command = [sys.executable, "-m", "mypy.stubtest", "batchzip.core", "--ignore-disjoint-bases"]
    command += ["--allowlist", str(allowed), "--ignore-unused-allowlist"]
    command += ["--mypy-config-file", "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Checkout:
    """A core of two small modules beside build.pyx: `area` needs shape.pxd, `other` nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / "batchzip/core"
        self.package.mkdir(parents=True)
        for name in (
            "batchzip/core/__init__.py",
            "batchzip/core/staleness.py",
            "batchzip/core/build.pyx",
        ):
            shutil.copyfile(ROOT / name, root / name)
        (root / "batchzip/__init__.py").touch()
        shutil.copyfile(ROOT / "hatch_build.py", root / "hatch_build.py")
        self.write("shape.pxd", "ctypedef int length\n")
        self.write(
            "area.pyx",
            "from batchzip.core.shape cimport length\ncdef length SIDE = 3\nAREA = SIDE * SIDE\n",
        )
        self.write("other.pyx", "B = 1\n")

    def write(self, name: str, contents: str) -> None:
        (self.package / name).write_text(contents)

    def compiled(self) -> set[str]:
        """Build, and return the names of the modules that were compiled."""
        before = self.compiled_at()
        environment = {k: v for k, v in os.environ.items() if k != "BATCHZIP_CORE_PROFILE"}
        subprocess.run(
            [sys.executable, "hatch_build.py"], cwd=self.root, env=environment, check=True
        )
        return {name for name, when in self.compiled_at().items() if before.get(name) != when}

    def compiled_at(self) -> dict[str, int]:
        files = self.root.glob(f"build/core/release/*/*{SUFFIX}")
        return {path.name.removesuffix(SUFFIX): path.stat().st_mtime_ns for path in files}

    def says(self, expression: str) -> str:
        code = f"from batchzip.core import area, build, other; print({expression})"
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    def modules(self) -> Iterable[str]:
        return {path.name.removesuffix(SUFFIX) for path in self.package.glob("*.so")}


@pytest.mark.slow
def test_a_rebuild_compiles_what_changed_and_takes_away_what_has_gone(tmp_path: Path) -> None:
    if hatch_build.find_compiler() is None:
        pytest.skip("zig's wheel is not here outside of pip's build")
    checkout = Checkout(tmp_path / "checkout")
    assert checkout.compiled() == {"build", "area", "other"} == checkout.modules()
    assert checkout.compiled() == set()

    checkout.write("shape.pxd", "ctypedef long long length\n")
    assert checkout.compiled() == {"build", "area"}

    (checkout.package / "other.pyx").unlink()
    assert checkout.compiled() == {"build"}
    assert checkout.modules() == {"build", "area"}
    assert checkout.says("area.AREA") == "9"
    assert checkout.says("build.SOURCE_DIGEST") == staleness.source_digest(checkout.package)


def test_no_usable_compiler_asks_for_zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert hook(ROOT).dependencies() == ["ziglang"]

    (tmp_path / "gcc").write_text(
        "#!/bin/sh\necho 'stdio.h: No such file or directory' >&2; exit 1\n"
    )
    (tmp_path / "gcc").chmod(0o755)
    assert hook(ROOT).dependencies() == ["ziglang"], "a compiler without libc's headers is none"

    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert hook(ROOT).dependencies() == []
    with pytest.raises(SystemExit, match=r"^batchzip: no C compiler .* riscv64: apt install gcc"):
        hatch_build.Core(ROOT)


def test_a_build_that_cannot_be_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(SystemExit, match=r"^batchzip: CC=/no/such/compiler cannot compile"):
        hatch_build.find_compiler()

    monkeypatch.setenv("BATCHZIP_CORE_PROFILE", "fast")
    with pytest.raises(
        SystemExit, match=r"^batchzip: BATCHZIP_CORE_PROFILE=fast: choose one of release"
    ):
        hatch_build.Core(ROOT)

    with monkeypatch.context() as noexec:
        noexec.setattr(
            "os.statvfs", lambda _folder: types.SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID)
        )
        with pytest.raises(SystemExit, match=r"^batchzip: no program can run in .*set TMPDIR"):
            hook(ROOT).dependencies()

    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr("sysconfig.get_config_var", lambda _name: str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"^batchzip: Python's headers .*: apt install python3-dev$"
    ):
        hook(ROOT).dependencies()
