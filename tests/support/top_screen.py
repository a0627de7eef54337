"""The full screen of `batchzip top` in this process, driven by textual's pilot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual.widgets import Static

from batchzip.cli.top_app import Grid, TopApp

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from textual.pilot import Pilot

    from batchzip.cli.look import Look


def drive(
    test: Callable[[TopApp, Pilot[Any]], Coroutine[Any, Any, None]],
    look: Callable[[], Look],
    size: tuple[int, int] = (80, 24),
) -> TopApp:
    """Run a test with the app in a terminal of that size. Return the app."""
    app = TopApp(look, 0.1)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await until(lambda: app.query_one(Grid).lines() != [])
            await pilot.pause()  # for the layout, which moves what is below the facts
            await test(app, pilot)

    try:
        asyncio.run(run())
    finally:
        assert app.stop(10)
    return app


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - the app tells nobody when it has drawn
            await asyncio.sleep(0.01)


def lines(app: TopApp) -> list[str]:
    """Return the lines of the table."""
    return app.query_one(Grid).lines()


def names(app: TopApp) -> str:
    """Return the line with the names of the tables."""
    return str(app.query_one("#tables", Static).render()).strip()


def facts(app: TopApp) -> str:
    """Return the lines above the tables."""
    return str(app.query_one("#facts", Static).render())
