"""`batchzip algorithms`: the algorithms that are usable here, and how to install the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchzip.codecs import Codec, registered
from batchzip.core.coder import is_available
from batchzip.core.libraries import libraries
from batchzip.errors import MissingExtra
from batchzip.terminal.console import make_console, print_json
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from batchzip.core.libraries import Library
    from batchzip.core.plan import Native


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    json: bool


def run(options: Options) -> int:
    """List the algorithms. Return 0."""
    lines = [_line(name, codec) for name, codec in registered().items()]
    if options.json:
        print_json(lines)
        return 0
    console = make_console()
    table = Table()
    table.add_column("algorithm", rank=0)
    table.add_column("runs in", rank=1, left=True)
    table.add_column("parameters", rank=2, left=True)
    table.add_column("about", rank=0, left=True, wraps=True)
    for line in lines:
        about = line["about"] if line["usable"] else line["install"] or line["problem"]
        defaults = (line["parameters"] or {}).items()
        # One per line leaves room for commands, which must stay in one line to be copied.
        parameters = ",\n".join(f"{name}={value!r}" for name, value in defaults)
        runs_in = "" if not line["usable"] else "C" if line["native"] else "Python"
        table.add_row(line["algorithm"], runs_in, parameters, about)
    console.print(table)
    console.write_line("\nC libraries, which run without the interpreter:")
    for library in libraries():
        console.write_line(_about(library))
    return 0


def _about(library: Library) -> str:
    name = f"{library.name:4}  {library.version or '-':6}"
    if library.problem is None:
        return f"{name}  {library.path}"
    where = "" if library.path is None else f" ({library.path})"
    return f"{name}  not used: {library.problem}{where}"


def _line(name: str, codec: type[Codec] | Exception) -> dict[str, Any]:
    usable = isinstance(codec, type)
    native = _native(codec) if isinstance(codec, type) else None
    return {
        "algorithm": name,
        "usable": usable,
        "about": (codec.__doc__ or "").partition("\n")[0] if usable else None,
        "parameters": _defaults(codec) if isinstance(codec, type) else None,
        "install": codec.command if isinstance(codec, MissingExtra) else None,
        "problem": None if usable else f"{type(codec).__name__}: {codec}",
        "native": native is not None and is_available(native),
        "library": None if native is None else _library(native)._asdict(),
    }


def _native(codec: type[Codec]) -> Native | None:
    """Return the C function that a codec asks for with its default parameters."""
    try:
        return codec().plan().native
    except Exception:  # noqa: BLE001 - a plug-in may lack defaults, or raise anything
        return None


def _library(native: Native) -> Library:
    """Return the library that has a C function. That of lz4 has the functions of lz4hc, too."""
    name = native.library.removesuffix("hc")
    return next(library for library in libraries() if library.name == name)


def _defaults(codec: type[Codec]) -> dict[str, object]:
    fields = dataclasses.fields(codec)  # type: ignore[arg-type] # codecs are dataclasses
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in fields
    }
