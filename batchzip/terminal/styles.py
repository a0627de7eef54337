"""Colours and styles, by what they mean.

The colours come from the fixed part of the 256-colour palette, which terminal themes do not change.
Each has a contrast of at least 4 : 1 against both black and white.
"""

from __future__ import annotations

COLOURS = {
    "good": "color(28)",
    "bad": "color(161)",
    "accent": "color(30)",
    "second": "color(133)",
    "faint": "color(243)",
}

STYLES = {
    "hint": COLOURS["faint"],
    "bad": f"bold {COLOURS['bad']}",
    "table.header": f"bold {COLOURS['accent']}",
    "table.title": "bold",
    "bar.complete": COLOURS["accent"],
    "bar.finished": COLOURS["good"],
    "bar.pulse": COLOURS["accent"],
    "bar.back": COLOURS["faint"],
    "progress.download": "none",
    "argparse.args": f"bold {COLOURS['accent']}",
    "argparse.groups": f"bold {COLOURS['second']}",
    "argparse.help": "none",
    "argparse.metavar": COLOURS["second"],
    "argparse.syntax": "bold",
    "argparse.text": "none",
    "argparse.prog": "bold",
    "argparse.default": "none",
}
"""Styles of rich, of rich-argparse (`argparse.…`) and of this package (`hint`, `bad`)."""
