"""`batchzip algorithms`: what pages can be compressed with here, how, and how to install the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from batchzip.cli.output import make_console, print_json
from batchzip.codecs import Codec, registered
from batchzip.core.coder import is_available
from batchzip.core.libraries import libraries
from batchzip.errors import MissingExtra

if TYPE_CHECKING:
    from batchzip.core.libraries import Library
    from batchzip.core.plan import Native


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    json: bool


def run(options: Options) -> int:
    """List the algorithms. Returns 0."""
    console = make_console()
    lines = [_line(name, codec) for name, codec in registered().items()]
    if options.json:
        print_json(lines)
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("algorithm", "runs in", "parameters", "about"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        about = line["about"] if line["usable"] else line["install"] or line["problem"]
        defaults = (line["parameters"] or {}).items()
        # A line each leaves room for commands to copy, which must stay in one line.
        parameters = ",\n".join(f"{name}={value!r}" for name, value in defaults)
        runs_in = "" if not line["usable"] else "C" if line["native"] else "Python"
        # Text: the brackets of an extra are no markup.
        table.add_row(*map(Text, (line["algorithm"], runs_in, parameters, about)))
    console.print(table)
    console.print("\nC libraries, which run without the interpreter:")
    for library in libraries():
        console.print(_about(library), markup=False, highlight=False, soft_wrap=True)
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
    """Return the C function that a codec asks for with the parameters that it has by default."""
    try:
        return codec().plan().native
    except Exception:  # noqa: BLE001 - a plug-in's: it has no defaults, or raises anything
        return None


def _library(native: Native) -> Library:
    """Return the library that has a C function: lz4's has those of lz4hc, too."""
    name = native.library.removesuffix("hc")
    return next(library for library in libraries() if library.name == name)


def _defaults(codec: type[Codec]) -> dict[str, object]:
    fields = dataclasses.fields(codec)  # type: ignore[arg-type] # codecs are dataclasses
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in fields
    }
