"""Help: coloured by rich-argparse, with paragraphs and examples that fit the width."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich_argparse import RichHelpFormatter

from batchzip.terminal.styles import STYLES
from batchzip.terminal.text import paragraph_columns, wrapped

if TYPE_CHECKING:
    from rich.text import Text

_EXAMPLE = re.compile(r"  (?P<command>\S.*?)(?:  +(?P<about>\S.*))?")
"""A line of examples: a command and, after two or more blanks, its purpose."""

_NARROWEST = 20
"""Minimum width of the text beside a command. If there is less, the text goes below the command."""


class HelpFormatter(RichHelpFormatter):
    """Wraps paragraphs, which are separated by empty lines. Indented lines stay unchanged."""

    styles = STYLES  # type: ignore[assignment] # the name of a style is a style, too
    group_name_formatter = staticmethod(str)
    help_markup = False
    text_markup = False

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, width=paragraph_columns(), **options)

    def format_help(self) -> str:
        """Return the help, in colours if stdout takes them."""
        # Imported here, because importing rich takes time.
        from batchzip.terminal.console import make_console  # noqa: PLC0415

        self.console = make_console()
        return super().format_help()

    def _rich_fill_text(self, text: Text, width: int, indent: Text) -> Text:
        del indent
        filled = text.blank_copy(fill_text(text.plain, width))
        for highlight in self.highlights:
            filled.highlight_regex(highlight, style_prefix="argparse.")
        filled.highlight_regex(r"(?m)^(?P<groups>[a-z ]+:)$", style_prefix="argparse.")
        return filled.append("\n\n")


def fill_text(text: str, width: int) -> str:
    """Return a description or examples in lines of at most `width` columns, if words allow it."""
    return "\n\n".join(_fill_part(part, width) for part in text.strip("\n").split("\n\n"))


def _fill_part(part: str, width: int) -> str:
    lines = part.splitlines()
    examples = [found for line in lines if (found := _EXAMPLE.fullmatch(line))]
    if not examples:
        return wrapped(" ".join(lines), width)
    at = max(found.start("about") for found in examples)
    abouts = " ".join(found["about"] or "" for found in examples)
    longest = max(map(len, abouts.split()), default=0)
    beside = width - at >= max(_NARROWEST, longest)
    filled = []
    for line in lines:
        found = _EXAMPLE.fullmatch(line)
        if found is None or found["about"] is None:
            filled.append(line)
        elif beside:
            about = wrapped(found["about"], width - at).replace("\n", "\n" + " " * at)
            filled.append(f"  {found['command']:{at - 2}}{about}")
        else:
            about = wrapped(found["about"], width - 6).replace("\n", "\n      ")
            filled.append(f"  {found['command']}\n      {about}")
    return "\n".join(filled)
