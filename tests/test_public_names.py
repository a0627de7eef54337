"""Every public name is documented, and is where it says it is."""

import inspect

import pytest

import batchzip

NAMES = [name for name in batchzip.__all__ if name != "__version__"]


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
    assert sorted(set(batchzip.__all__)) == sorted(batchzip.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = batchzip.no_such_name
