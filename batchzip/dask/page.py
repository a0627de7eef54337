"""The page /batchzip of the scheduler's dashboard: its sharded stores.

It contains no scripts and reloads every few seconds. /batchzip.json has the same figures for
programs, and /batchzip/metrics for Prometheus.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler

from batchzip.errors import MissingExtra
from batchzip.metrics import exposition
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from distributed import Scheduler

    from batchzip.dask.survey import ShardFigures, StoreFigures, Survey

_EVERY_S = 3

_HEADINGS = (
    "worker",
    "process",
    "pages",
    "pool",
    "on disk",
    "pages stored",
    "pages loaded",
    "refused",
    "stripes to move",
)

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 0.5em 0 2em }
th, td { padding: 0.2em 1em 0.2em 0; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
.trouble { color: #b00; text-align: left }
"""


def page(survey: Survey) -> str:
    """Return the page, as HTML."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="refresh" content="{_EVERY_S}">',
        f"<title>batchzip</title><style>{_STYLE}</style></head><body>",
        "<h1>Sharded stores</h1>",
    ]
    if not survey.stores:
        parts.append("<p>This cluster has no sharded store at the moment.</p>")
    for store in survey.stores:
        parts += _store(store)
    parts.append(
        "<p>For programs: <a href='batchzip.json'>JSON</a>, "
        "<a href='batchzip/metrics'>Prometheus</a>.</p></body></html>"
    )
    return "\n".join(parts)


def _store(store: StoreFigures) -> list[str]:
    pages = sum(shard.pages for shard in store.shards)
    copies = "once" if store.replicas == 1 else f"{store.replicas} times"
    heading = "".join(f"<th>{escape(name)}</th>" for name in _HEADINGS)
    return [
        f"<h2>{escape(store.store)}</h2>",
        f"<p>{pages:,} pages of {store.page_size:,} bytes, kept {copies};",
        f"clients: {store.clients}, epoch of its members: {store.epoch}</p>",
        f"<p class='trouble'>Pages of {store.lost_stripes:,} stripes are lost.</p>"
        if store.lost_stripes
        else "",
        f"<table><tr>{heading}</tr>",
        *map(_shard, store.shards),
        "</table>",
    ]


def _shard(shard: ShardFigures) -> str:
    named = shard.worker if shard.name in ("", shard.worker) else f"{shard.name}, {shard.worker}"
    cells = f"<td>{escape(named)}</td><td>{shard.pid or ''}</td>"
    if shard.trouble:
        rest = len(_HEADINGS) - 2
        return f"<tr>{cells}<td class='trouble' colspan='{rest}'>{escape(shard.trouble)}</td></tr>"
    limit = shard.pool_limit_bytes
    pool = size_text(shard.pool_bytes) + ("" if limit is None else f" of {size_text(limit)}")
    figures = (
        f"{shard.pages:,}",
        pool,
        size_text(shard.file_bytes),
        f"{shard.page_stores:,}",
        f"{shard.page_loads:,}",
        f"{shard.refusals:,}",
        f"{shard.moving:,}",
    )
    return f"<tr>{cells}" + "".join(f"<td>{figure}</td>" for figure in figures) + "</tr>"


class _Page(RequestHandler):
    def initialize(self, survey: Callable[[], Awaitable[Survey]]) -> None:
        self._survey = survey

    async def get(self, what: str) -> None:
        """Answer with the page, with JSON or with metrics."""
        survey = await self._survey()
        if what == ".json":
            self.write(asdict(survey))
        elif what == "/metrics":
            self._write_metrics(survey)
        else:
            self.write(page(survey))

    def _write_metrics(self, survey: Survey) -> None:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        try:
            self.write(exposition(survey))
        except MissingExtra as error:
            self.set_status(501)
            self.write(f"# {error}\n")


def add_page(scheduler: Scheduler, survey: Callable[[], Awaitable[Survey]]) -> None:
    """Show `survey` at /batchzip of the scheduler's dashboard, below the dashboard's prefix."""
    application: Any = scheduler.http_application
    paths = r".*/batchzip(|\.json|/metrics)"
    application.add_handlers(".*$", [(paths, _Page, {"survey": survey})])
    dashboard = sys.modules.get("distributed.dashboard.scheduler")
    if dashboard is not None:
        # With bokeh, the dashboard's pages link to each other through an undocumented list.
        with suppress(Exception):
            dashboard.template_variables(scheduler)["pages"].append("batchzip")
