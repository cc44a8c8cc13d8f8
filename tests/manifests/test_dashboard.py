"""The dashboard asks Prometheus for what the servers really tell, by the names that Ray makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import reading
from ray.util import metrics

from dfka_dist.teachers.meters import ClientMeters, ServerMeters

DASHBOARD = reading.ROOT / "cluster" / "grafana" / "dfka.json"
SCRAPE = """
from prometheus_client import REGISTRY, generate_latest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
recorder = OpenTelemetryMetricRecorder()
recorder.register_counter_metric("a_seconds", "")
recorder.register_gauge_metric("b_bytes", "")
recorder.register_histogram_metric("c_seconds", "", [1.0])
for name in ("a_seconds", "b_bytes", "c_seconds"):
    recorder.set_metric_value(name, {"teacher": "t"}, 1.0)
print(generate_latest(REGISTRY).decode())
"""
ENDINGS = {
    metrics.Counter: ("_total",),
    metrics.Gauge: ("",),
    metrics.Histogram: ("_bucket", "_sum", "_count"),
}
"""What Ray's exporter appends to the name of a metric."""


def test_rays_exporter_names_metrics_as_we_say() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRAPE], capture_output=True, text=True, check=True)
    told = {line.partition("{")[0] for line in ran.stdout.splitlines() if line.startswith("ray_")}

    kinds = (("a_seconds", metrics.Counter), ("b_bytes", metrics.Gauge))
    kinds += (("c_seconds", metrics.Histogram),)
    assert told == {f"ray_{name}{end}" for name, kind in kinds for end in ENDINGS[kind]}


def test_every_query_is_of_series_and_labels_that_there_are() -> None:
    known = _series()

    for title, query in _queries():
        named = re.findall(r"(ray_\w+)(?:\{(\w+))?", query)
        assert named, title
        for series, label in named:
            assert series in known, f"{title}: {series}"
            assert not label or label in known[series], f"{title}: {series} has no {label}"
        for label in _grouping(query):
            assert all(label in known[series] for series, _ in named), f"{title}: {label}"


def test_every_metric_is_shown() -> None:
    shown = {
        series for _, query in _queries() for series, _ in re.findall(r"(ray_\w+)(\W|$)", query)
    }

    for meter in _meters():
        ends = ENDINGS[type(meter)]
        assert shown & {f"ray_{meter._name}{end}" for end in ends}, meter._name


def test_counters_are_shown_as_rates_and_their_parts_fit_the_screen() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}

    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    for _, query in _queries():
        for at in re.finditer(r"ray_\w+(_total|_bucket|_sum|_count)\b", query):
            assert "label_values" in query or query[: at.start()].endswith("rate("), query


@cache
def _meters() -> tuple[metrics.Metric, ...]:
    made = ServerMeters("t", 0, 0), ClientMeters()
    kept = (value for each in made for value in vars(each).values())
    return tuple(value for value in kept if isinstance(value, metrics.Metric))


def _series() -> dict[str, set[str]]:
    """Labels of every series; a bucket has its bound as well."""
    return {
        f"ray_{meter._name}{end}": set(meter._tag_keys) | ({"le"} if end == "_bucket" else set())
        for meter in _meters()
        for end in ENDINGS[type(meter)]
    }


def _queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]


def _grouping(query: str) -> set[str]:
    return {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
