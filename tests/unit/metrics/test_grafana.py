"""The Grafana dashboard asks for existing figures and labels, and Grafana can lay it out."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import parse
from support.paths import ROOT

from batchzip import CompressBatch, CompressedMapping, DecompressBatch, Engine, SwapStore
from batchzip.metrics import collector

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARD = ROOT / "examples" / "grafana.json"
SELECTOR = re.compile(r"(batchzip_\w+)(?:\{([^}]*)\})?")
COUNTERS = ("_total", "_bucket", "_sum", "_count")
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Return the labels of each sample that a store can have."""
    registry = CollectorRegistry()
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, max_pool_bytes=1 << 20) as store,
        CompressedMapping(store, max_bytes=1 << 19) as mapping,
    ):
        mapping["key"] = b"value"
        engine.compress(CompressBatch([bytes(4096)]))
        engine.decompress(DecompressBatch([b"damaged"]))
        registry.register(collector(store))
        text = generate_latest(registry).decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries_of(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_it_is_of_grafanas_schema(dashboard: dict[str, Any]) -> None:
    """Grafana's own classes, made from its schema, keep every field, and no other value of it."""
    register_default_plugins()
    document = json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder)
    assert _missing(dashboard, json.loads(document)) == []


def _missing(given: Any, kept: Any, path: str = "") -> list[str]:
    """Return the paths of what was given and not kept."""
    if isinstance(given, dict) and isinstance(kept, dict):
        pairs = [(given[key], kept.get(key), f"{path}/{key}") for key in given]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = [(*both, f"{path}/{at}") for at, both in enumerate(zip(given, kept, strict=True))]
    else:
        return [] if given == kept else [path]
    return [lost for pair in pairs for lost in _missing(*pair)]


def test_a_field_that_grafana_does_not_know_is_found(dashboard: dict[str, Any]) -> None:
    assert _missing({**dashboard, "unknown": 1}, dashboard) == ["/unknown"]
    assert _missing({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["/a/1/b"]


def test_every_query_names_figures_and_labels_that_there_are(
    dashboard: dict[str, Any], labels: dict[str, set[str]]
) -> None:
    for query in queries_of(dashboard):
        selectors = SELECTOR.findall(query)
        assert selectors, query
        for name, matchers in selectors:
            assert name in labels, query
            has = labels[name] | SCRAPED
            assert set(re.findall(r'(\w+)=~?"', matchers)) <= has, query
            assert name.endswith("_bucket") is ("histogram_quantile" in query), query
            for grouped in re.findall(r"by \(([^)]*)\)", query):
                assert set(re.split(r",\s*", grouped)) <= has, query
            for wanted in re.findall(r"^label_values\(.*, (\w+)\)$", query):
                assert wanted in has, query
        # A counter is of use as a rate only, and a rate of counters only.
        counters = re.findall(
            r"(?:rate|increase)\((batchzip_\w+)\{[^}]*\}\[\$__rate_interval\]\)", query
        )
        assert counters == [name for name, _ in selectors if name.endswith(COUNTERS)], query


def test_every_query_is_one_of_prometheus(dashboard: dict[str, Any]) -> None:
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            parse(target["expr"].replace("$__rate_interval", "1m"))
    with pytest.raises(ValueError, match="expected type matrix"):
        parse("rate(batchzip_page_loads_total)")


def test_every_figure_but_a_few_is_on_it(
    dashboard: dict[str, Any], labels: dict[str, set[str]]
) -> None:
    shown = {name for query in queries_of(dashboard) for name, _ in SELECTOR.findall(query)}
    left_out = {"batchzip_engine_batches_total", "batchzip_page_size_bytes"}
    left_out |= {"batchzip_stored_values", "batchzip_backed_values"}
    assert set(labels) - shown == left_out


def test_legends_name_labels_that_the_query_keeps(dashboard: dict[str, Any]) -> None:
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            kept = {
                label
                for grouped in re.findall(r"by \(([^)]*)\)", target["expr"])
                for label in re.split(r",\s*", grouped)
            }
            kept -= {"le"} if "histogram_quantile" in target["expr"] else set()
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept


def test_variables_are_defined_before_they_are_used(dashboard: dict[str, Any]) -> None:
    known = {"__rate_interval"}
    for variable in dashboard["templating"]["list"]:
        assert set(re.findall(r"\$\{?(\w+)", json.dumps(variable.get("query")))) <= known
        known.add(variable["name"])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used == known
    for each in (*panels_of(dashboard), *(t for p in panels_of(dashboard) for t in p["targets"])):
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_places_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(references)) == len(references)
