"""Grafana's dashboards as code; ``python -m monitoring.dashboards`` writes them as JSON beside the code. For development only."""
