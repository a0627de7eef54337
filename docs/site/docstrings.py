"""Makes Markdown of the lists in docstrings.

`level`     what it means,
over two lines             →  a definition list
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"^(`[^`]+`(?:, `[^`]+`)*)\s{2,}(\S.*)$")


def as_definitions(text: str) -> str:
    """Rewrite the lines of a docstring that begin with a name, and what is indented below them."""
    lines: list[str] = []
    within = False
    for line in text.splitlines():
        found = _ENTRY.match(line)
        if found:
            lines += ["", found[1], f":   {found[2]}"]
            within = True
        elif within and line.startswith("  "):
            lines.append(f"    {line.strip()}")
        else:
            if within and line.strip():
                lines.append("")
            within = within and not line.strip()
            lines.append(line)
    return "\n".join(lines)


class Definitions(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_definitions(obj.docstring.value)
