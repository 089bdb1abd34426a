"""Generator of the Grafana dashboard: `python -m cluster.tracking.grafana` writes
cluster/manifests/grafana.json."""

import json
import sys
from pathlib import Path
from typing import Any

from cluster.tracking.grafana_panels import BY_KEY, GrafanaPanel, rows
from cluster.tracking.metric_catalogue import STEP

FILE = Path(__file__).parent.parent / "manifests" / "grafana.json"
SCHEMA_VERSION = 39
"""Of Grafana 10.4. Newer ones bring it up to their own."""
WIDTH = 24
"""Columns of Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""Whichever Prometheus is chosen above the dashboard."""
UNITS = {"s": "s", "share": "percentunit", "bytes": "bytes"}
"""Ours to Grafana's; others are plain numbers."""


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": "userrl",
        "title": "Training runs",
        "tags": ["userrl"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_source_variable(), _run_variable()]},
        "panels": _laid_out(),
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _run_variable() -> dict[str, Any]:
    query = f"label_values({STEP.series}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,  # with every change of the time range: runs come and go
        "sort": 1,
        "multi": True,
        "includeAll": True,
    }


def _laid_out() -> list[dict[str, Any]]:
    """Rows one under the other, the panels of each from left to right."""
    found: list[dict[str, Any]] = []
    top = 0
    for title, row in rows().items():
        heading = {"type": "row", "title": title, "collapsed": False, "panels": []}
        found.append({"id": len(found) + 1, "gridPos": _place(0, top, WIDTH, 1), **heading})
        left, top = 0, top + 1
        for panel in row:
            if left + panel.width > WIDTH:
                left, top = 0, top + panel.height
            place = _place(left, top, panel.width, panel.height)
            found.append({"id": len(found) + 1, "gridPos": place, **_of(panel)})
            left += panel.width
        top += row[-1].height
    return found


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _of(panel: GrafanaPanel) -> dict[str, Any]:
    metric = BY_KEY[panel.key]
    custom = {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}} if panel.is_stacked else {}
    number = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area"}
    chart = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": metric.meaning,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": line.expression,
                "legendFormat": line.legend,
                "range": True,
            }
            for place, line in enumerate(panel.lines)
        ],
        "fieldConfig": {
            "defaults": {"unit": UNITS.get(metric.unit, "short"), "custom": custom},
            "overrides": [],
        },
        "options": number if panel.kind == "stat" else chart,
    }


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> int:
    FILE.write_text(text(), encoding="utf-8")
    print(f"written: {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
