"""Find the cases in which a peer is faster or smaller than the best of batchzip's backends."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from batchzip.bench.compare import LEAST_ROUNDS

if TYPE_CHECKING:
    from batchzip.bench.figure import Figure, Result

OWN = ("sequential", "threads", "workers")


def ahead(result: Result) -> list[str]:
    """Return a line per case that names the peers ahead, with batch sizes and factors.

    A peer is ahead if its quartiles are below batchzip's without overlap. Differences within the
    noise are left out. Peers without a checksum, a limit or batches count, too.
    """
    cases: dict[tuple[object, ...], dict[str, Figure]] = defaultdict(dict)
    for figure in result.figures:
        cases[(*figure.labels.items(), figure.quantity)][figure.contender] = figure
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for by_name in cases.values():
        own = [by_name[name] for name in OWN if name in by_name]
        if not own or own[0].rounds < LEAST_ROUNDS:
            continue
        best = min(own, key=lambda figure: figure.median)
        labels = {**best.labels, "": best.quantity}
        batch = labels.pop("batch", None)
        where = " ".join(str(value) for value in labels.values())
        for name, figure in by_name.items():
            # batchzip's store with a backing file is not a peer.
            if name.startswith(OWN) or figure.high >= best.low:
                continue
            # Zeros take no memory at all in zram.
            factor = f"{best.median / figure.median:.2f}×" if figure.median else "∞"
            found[where][name].append(factor if batch is None else f"{batch} ({factor})")
    return [
        f"ahead of batchzip, {where}: "
        + "; ".join(f"{name} {', '.join(at)}" for name, at in by_name.items())
        for where, by_name in found.items()
    ]
