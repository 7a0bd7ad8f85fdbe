"""Exporters: side processes that read a run's log and write its curves for other dashboards. None can slow or stop training."""
