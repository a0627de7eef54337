"""What the site takes from elsewhere: outputs of commands, the results of benchmarks, no foreign host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent.parent
_RESULTS = _ROOT / "examples" / "benchmarks" / "RESULTS.md"
_COMMAND = re.compile(r"^```console\n\$ ((?:batchzip|python docs/)[^\n]*)\n```$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Run each command that has no output below it, and show what it prints."""
    if page.file.src_uri == "results.md":
        return _RESULTS.read_text().replace("](../../docs/", "](")
    return _COMMAND.sub(_with_output, markdown)


def _with_output(found: re.Match[str]) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "80", "NO_COLOR": "1"}
    command = ["bash", "-c", found[1]]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, env=environment, check=True, cwd=_ROOT
    )
    return f"```console\n$ {found[1]}\n{done.stdout.rstrip()}\n```"


def on_post_page(output: str, *, page: Page, **_: object) -> str:
    """Take the one script that the theme would load from a foreign host from the site itself."""
    own = "../" * page.file.dest_uri.count("/") + "site/iframe-worker.js"
    return output.replace("https://unpkg.com/iframe-worker/shim", own)


def on_post_template(output: str, **_: object) -> str:
    """Do the same for the page that tells of a missing one, which may stand anywhere."""
    return output.replace('<script src="https://unpkg.com/iframe-worker/shim"></script>', "")
