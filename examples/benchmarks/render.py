"""Make the figures in the documents, and all pictures, from the results that are kept.

    python examples/benchmarks/render.py [--check] [--results DIR] [--to DIR]

Documents have markers that call the blocks of blocks.py. What stands between two markers is
replaced, and everything else stays as it is. --check writes nothing, and ends with code 1 if a
document or a picture is not what the results say. --results and --to try other results: documents
and pictures are written to another folder. It needs cogapp, from the extra `test`.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import sys
from pathlib import Path

import blocks
from cogapp import Cog  # type: ignore[import-untyped,unused-ignore]
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchzip.bench import style
from batchzip.bench.figure import load

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = Path(__file__).parent

DOCUMENTS = (
    "examples/benchmarks/RESULTS.md",
    "README.md",
    "docs/measured.md",
    "docs/how-to/kernel-experiment.md",
)

PICTURES = {
    "peers": "peers",
    "swap": "swap",
    "usemem": "usemem",
    "usemem-16-cores": "16-cores/usemem",
    "growth": "growth",
    "scaling": "16-cores/scaling-1024",
    "paged": "paged",
    "paged-16-cores": "16-cores/paged",
}
"""The result that each picture shows."""

_FROM = "Source"
"""Key in a picture's file, with the digest of what it was drawn from."""


class Rendering:
    """The documents and pictures of a folder of results."""

    def __init__(self, results: Path, to: Path) -> None:
        self.results, self.to = results, to
        self.cog = Cog()
        self.cog.options.prologue = "from blocks import folios, lanes, limits, recorded, section"
        blocks.results = results

    def document(self, name: str) -> str:
        """Return a document with its blocks made from the results."""
        text = (ROOT / name).read_text(encoding="utf-8")
        return str(self.cog.process_string(text, fname=name))

    def picture_path(self, name: str) -> Path:
        """Return the path of a picture."""
        return self.to / "examples/benchmarks/pictures" / f"{name}.png"

    def is_current(self, name: str) -> bool:
        """Return whether a picture was drawn from its result as it is, by the present code."""
        path = self.picture_path(name)
        if not path.exists():
            return False
        with Image.open(path) as picture:
            return picture.info.get(_FROM) == self._digest(name)

    def draw(self, name: str) -> None:
        """Draw a picture, with the digest of what it was drawn from in the file."""
        script = blocks.script_of(PICTURES[name])
        assert script.draw is not None
        path = self.picture_path(name)
        script.draw(load(self._source(name)), path)
        info = PngInfo()
        info.add_text(_FROM, self._digest(name))
        with Image.open(path) as picture:
            picture.load()
            picture.save(path, pnginfo=info, optimize=True)

    def has_result(self, name: str) -> bool:
        """Return whether the result of a picture was kept."""
        return self._source(name).exists()

    def _source(self, name: str) -> Path:
        return self.results / f"{PICTURES[name]}.json"

    def _digest(self, name: str) -> str:
        """Return the digest of a picture's result, and of the code that draws it."""
        draw = blocks.script_of(PICTURES[name]).draw
        assert draw is not None
        files = self._source(name), Path(inspect.getfile(draw)), Path(style.__file__)
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def main() -> int:
    """Run from the command line. Return 1 if --check found something out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", metavar="DIR")
    parser.add_argument("--to", type=Path, default=ROOT, metavar="DIR")
    options = parser.parse_args()
    rendering = Rendering(options.results, options.to)
    stale = []
    for name in DOCUMENTS:
        text = rendering.document(name)
        path = options.to / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for name in PICTURES:
        if rendering.has_result(name) and not rendering.is_current(name):
            stale.append(f"pictures/{name}.png")
            if not options.check:
                rendering.picture_path(name).parent.mkdir(parents=True, exist_ok=True)
                rendering.draw(name)
    for name in dict.fromkeys(blocks.absent):
        print(f"no result {name}.json: the documents say so", file=sys.stderr)
    for name in stale:
        print(f"{name}: {'out of date, run this without --check' * options.check or 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
