"""The report of a run: plots as PNG files, and one self-contained HTML page (no network, no script, all text escaped)."""

from monitoring.report.data import Histogram, RunReport, Sample, TextWindow
from monitoring.report.page import write_html
from monitoring.report.plots import write_plots
from monitoring.report.table import summary_table

__all__ = ["Histogram", "RunReport", "Sample", "TextWindow", "summary_table", "write_html", "write_plots"]
