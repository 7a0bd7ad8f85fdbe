"""The report of a run: plots as PNG files, and one self-contained HTML page (no network, no script, all text escaped)."""

from monitoring.report.data import Excerpt, Histogram, RunReport, Sample, Score, StageRow, TextWindow
from monitoring.report.page import write_html
from monitoring.report.plots import write_plots
from monitoring.report.table import summary_table

__all__ = [
    "Excerpt", "Histogram", "RunReport", "Sample", "Score", "StageRow", "TextWindow", "summary_table", "write_html", "write_plots",
]  # fmt: skip
