"""Grafana's dashboard: the file is what the code makes, of a form that Grafana takes, and every query names
a metric that is there."""

import json
import re
from typing import Any

import yaml

from cluster.tracking.grafana import FILE, WIDTH, text
from cluster.tracking.metric_catalogue import EXPORTED

SERIES = {
    f"{one.series}{part}": one
    for one in EXPORTED
    for part in (("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",))
}
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
CHARTS = [panel for panel in PANELS if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in CHARTS for target in panel["targets"]]


def test_the_file_is_what_the_code_makes() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run `python -m cluster.tracking.grafana`"


def test_every_query_names_metrics_that_are_there_and_chooses_the_run() -> None:
    assert len(QUERIES) > 40
    for title, query in QUERIES:
        names = re.findall(r"\bray_\w+", query)
        assert names and set(names) <= SERIES.keys(), (title, query)
        assert query.count('run=~"$run"') == len(names), (title, query)


def test_counters_are_rates_and_nothing_else_is() -> None:
    for title, query in QUERIES:
        kinds = {SERIES[name].kind for name in re.findall(r"\bray_\w+", query)}
        assert ("rate(" in query) == (kinds != {"gauge"}), (title, query)


def test_every_label_of_a_query_is_one_of_its_metric() -> None:
    for title, query in QUERIES:
        (name,) = set(re.findall(r"\bray_\w+", query))
        known = {"run", "le", *SERIES[name].labels}
        grouped = re.findall(r"by \(([^)]*)\)", query)
        assert grouped, (title, query)
        assert {label for labels in grouped for label in labels.split(", ")} <= known, (title, query)


def test_legends_show_labels_that_the_query_keeps() -> None:
    for panel in CHARTS:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = set(re.findall(r"by \(([^)]*)\)", target["expr"])[0].split(", "))
            assert "run" in shown and shown <= kept, target
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]


def test_brackets_of_every_query_close() -> None:
    for title, query in QUERIES:
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), (title, query)
        assert query.count('"') % 2 == 0, (title, query)


def test_panels_are_numbered_and_have_what_grafana_asks_for() -> None:
    assert [panel["id"] for panel in PANELS] == list(range(1, len(PANELS) + 1))
    for panel in CHARTS:
        assert panel["type"] in ("timeseries", "stat") and panel["title"] and panel["description"]
        assert {"datasource", "fieldConfig", "gridPos", "options", "targets"} <= panel.keys()
        assert panel["fieldConfig"]["defaults"]["unit"] in ("s", "percentunit", "bytes", "short")
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)


def test_no_panel_lies_on_another_nor_beside_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < WIDTH, panel["title"]
        taken |= cells


def test_the_data_source_is_a_variable_everywhere() -> None:
    source, run = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (run["name"], run["type"]) == ("run", "query")
    series = re.fullmatch(r"label_values\((\w+), run\)", run["definition"])
    assert series is not None and series[1] in SERIES and run["query"]["query"] == run["definition"]
    asked = [run, *CHARTS, *(target for panel in CHARTS for target in panel["targets"])]
    assert {one["datasource"]["uid"] for one in asked} == {"${datasource}"}


def test_every_kind_of_number_has_a_chart() -> None:
    shown = {SERIES[name].section for _, query in QUERIES for name in re.findall(r"\bray_\w+", query)}
    assert shown == {one.section for one in EXPORTED}


def test_the_monitor_scrapes_the_port_that_kuberay_names() -> None:
    (monitor,) = yaml.safe_load_all((FILE.parent / "podmonitor.yaml").read_text(encoding="utf-8"))
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "10s"}]
    policy = next(
        one
        for one in yaml.safe_load_all((FILE.parent / "shared.yaml").read_text(encoding="utf-8"))
        if one["kind"] == "NetworkPolicy"
    )
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    assert {"protocol": "TCP", "port": 8080} in [
        port for rule in policy["spec"]["ingress"] for port in rule.get("ports", ())
    ]
