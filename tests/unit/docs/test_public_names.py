"""Every public name is documented, and is where it says it is."""

import inspect
import subprocess
import sys

import pytest

import batchzip

ALL = vars(batchzip)["__all__"]
NAMES = [name for name in ALL if name != "__version__"]


def methods(owner: type) -> list[str]:
    """Name what the class itself defines for its users."""
    return [
        name
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod)))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_docstring(name: str) -> None:
    value = getattr(batchzip, name)
    first = (inspect.getdoc(value) or "").splitlines()[:1]
    assert first
    assert first[0].endswith((".", ":")), first
    if not inspect.isclass(value):
        return
    inherited = "an inherited docstring counts: what overrides keeps the promise"
    for method in methods(value):
        assert inspect.getdoc(getattr(value, method)), f"{name}.{method}: {inherited}"


def test_dir_and_all_agree_and_nothing_else_is_promised() -> None:
    assert sorted(set(ALL)) == sorted(ALL)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(batchzip, "no_such_name")  # noqa: B009 - type checkers know that there is none


@pytest.mark.slow
@pytest.mark.parametrize("name", ["advice", "dask", "metrics", "numcodecs", "zarr"])
def test_a_part_is_imported_when_it_is_first_used(name: str) -> None:
    script = f"""
import sys, batchzip
assert "batchzip.{name}" not in sys.modules
assert batchzip.{name} is sys.modules["batchzip.{name}"] is batchzip.{name}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=60, check=True)


@pytest.mark.slow
def test_a_part_whose_library_is_missing_says_so_and_help_works_without_it() -> None:
    script = """
import sys, inspect
sys.modules.update(dict.fromkeys(["distributed", "numcodecs", "zarr", "prometheus_client"]))
import batchzip
from batchzip import *
inspect.getmembers(batchzip)
assert "metrics" not in dir(batchzip) or batchzip.metrics
for name, module in {"dask": "distributed", "numcodecs": "numcodecs"}.items():
    try:
        getattr(batchzip, name)
    except ImportError as error:
        assert f"pip install '{module}" in str(error), error
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=60, check=True)
