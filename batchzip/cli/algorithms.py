"""`batchzip algorithms`: what pages can be compressed with here, and how to install the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from batchzip.cli.output import make_console, print_json
from batchzip.codecs import Codec, registered
from batchzip.errors import MissingExtra


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
    for heading in ("algorithm", "parameters", "about"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        about = line["about"] if line["usable"] else line["install"] or line["problem"]
        defaults = (line["parameters"] or {}).items()
        parameters = ", ".join(f"{name}={value!r}" for name, value in defaults)
        # Text: the brackets of an extra are no markup.
        table.add_row(*map(Text, (line["algorithm"], parameters, about)))
    console.print(table)
    return 0


def _line(name: str, codec: type[Codec] | Exception) -> dict[str, Any]:
    usable = isinstance(codec, type)
    return {
        "algorithm": name,
        "usable": usable,
        "about": (codec.__doc__ or "").partition("\n")[0] if usable else None,
        "parameters": _defaults(codec) if isinstance(codec, type) else None,
        "install": codec.command if isinstance(codec, MissingExtra) else None,
        "problem": None if usable else f"{type(codec).__name__}: {codec}",
    }


def _defaults(codec: type[Codec]) -> dict[str, object]:
    fields = dataclasses.fields(codec)  # type: ignore[arg-type] # codecs are dataclasses
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in fields
    }
