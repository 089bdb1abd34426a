"""The Grafana dashboard cluster/manifests/grafana.json: Grafana accepts its form, every query names a metric
of the catalogue, and every metric that belongs on the dashboard has a query."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from actors.trajectory_table import TURN_STAGES
from cluster.console.progress import STAGES
from cluster.tracking.metric_catalogue import EXPORTED
from simulators.users.quality_metrics import SHARES

FILE = Path(__file__).parents[3] / "cluster" / "manifests" / "grafana.json"
WIDTH = 24
"""Columns of Grafana's grid."""
UNITS = {"s": "s", "share": "percentunit", "bytes": "bytes"}
"""Unit of the catalogue to unit of Grafana; all others are plain numbers."""

SHOWN = {
    *(f"time/{stage}_s" for stage in STAGES),
    *(f"users/{{simulator}}/{share}" for share in SHARES),
    *("step", "time/step_s", "time/last_step_at_s", "rollout/time/{stage}/share", "rollout/turn_s/{gym}"),
    *("rollout/reward/mean", "rollout/reward/{gym}", "evaluation/{gym}/score", "validation/{gym}/score"),
    *("rollout/tokens_per_s", "rollout/policy_tokens", "rollout/turns/mean", "rollout/group_duration_s"),
    *("learner/entropy", "learner/kl", "learner/logprob_gap/mean", "learner/grad_norm"),
    *("learner/clip_fraction", "learner/num_tokens", "learner/idle/share", "learner/rebuilds"),
    *("engine/idle/share", "engine/paused/share", "engine/num_serving", "engine/num_lost"),
    *("users/{simulator}/failed/{reason}", "users/{simulator}/concurrency/mean", "rollout/num_actors"),
    *("ledger/issued", "ledger/trained", "ledger/in_flight", "ledger/dropped/{reason}"),
    *("buffer/age/mean", "buffer/age/max", "buffer/groups_ready", "buffer/slots_taken"),
    *("buffer/reissued", "buffer/archive_failures", "buffer/journal_failures", "checkpoint/failures"),
}
"""Keys of the metrics that the dashboard shows."""
SERIES = {
    f"{one.series}{part}": one
    for one in EXPORTED
    for part in (("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",))
}
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
CHARTS = [panel for panel in PANELS if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in CHARTS for target in panel["targets"]]


def test_every_query_names_exported_metrics_and_filters_by_run() -> None:
    assert len(QUERIES) > 40
    for title, query in QUERIES:
        names = re.findall(r"\bray_\w+", query)
        assert names and set(names) <= SERIES.keys(), (title, query)
        assert query.count('run=~"$run"') == len(names), (title, query)


def test_the_dashboard_shows_the_metrics_that_belong_on_it() -> None:
    names = {name for _, query in QUERIES for name in re.findall(r"\bray_\w+", query)}
    assert {SERIES[name].key for name in names} == SHOWN


def test_the_turn_time_panel_has_a_line_for_every_stage_of_a_turn() -> None:
    (panel,) = (panel for panel in CHARTS if panel["title"] == "Time of a turn by stage")
    stages = [re.findall(r'stage="(\w+)"', target["expr"]) for target in panel["targets"]]
    assert stages == [[stage] for stage in TURN_STAGES]


def test_every_panel_has_the_catalogues_description_and_unit() -> None:
    units = {one.meaning: UNITS.get(one.unit, "short") for one in EXPORTED}
    for panel in CHARTS:
        assert panel["fieldConfig"]["defaults"]["unit"] == units[panel["description"]], panel["title"]


def test_counters_and_only_counters_are_queried_as_rates() -> None:
    for title, query in QUERIES:
        kinds = {SERIES[name].kind for name in re.findall(r"\bray_\w+", query)}
        assert ("rate(" in query) == (kinds != {"gauge"}), (title, query)


def test_every_label_of_a_query_is_a_label_of_its_metric() -> None:
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


def test_panels_are_numbered_and_have_the_fields_that_grafana_requires() -> None:
    assert [panel["id"] for panel in PANELS] == list(range(1, len(PANELS) + 1))
    for panel in CHARTS:
        assert panel["type"] in ("timeseries", "stat") and panel["title"] and panel["description"]
        assert {"datasource", "fieldConfig", "gridPos", "options", "targets"} <= panel.keys()
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)


def test_panels_do_not_overlap_and_stay_inside_the_grid() -> None:
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


def test_every_section_of_the_catalogue_has_a_chart() -> None:
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
