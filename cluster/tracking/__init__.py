"""Metrics: the catalogue, the tracker, alerts, Prometheus and Grafana."""
