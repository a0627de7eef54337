"""Hooks of the site: outputs of commands and results of benchmarks; nothing from a foreign host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent.parent
_BENCHMARKS = _ROOT / "examples" / "benchmarks"
_PICTURE = re.compile(r"\]\((?:\.\./)+examples/benchmarks/pictures/")
_COMMAND = re.compile(r"^```console\n\$ ((?:batchzip|python docs/)[^\n]*)\n```$", re.MULTILINE)


@event_priority(100)  # before the plugin that checks links looks
def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Take the benchmarks' pictures in: sources link to them where they lie in the repository."""
    for picture in sorted(_BENCHMARKS.glob("pictures/*.png")):
        uri = f"pictures/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Run each command that has no output below it, and show what it prints."""
    if page.file.src_uri == "results.md":
        return (_BENCHMARKS / "RESULTS.md").read_text().replace("](../../docs/", "](")
    top = "../" * page.file.src_uri.count("/")
    markdown = _PICTURE.sub(f"]({top}pictures/", markdown)
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
