"""How the model's responses change over training: reflective words, languages, and what is cut at the length limit."""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.report.charts import Line, largest, line_chart, stack_chart
from monitoring.report.data import TextWindow
from monitoring.report.svg import esc

LINES = 8


def writing(windows: Sequence[TextWindow]) -> str:
    """Charts over windows of steps, and a table of the reflective words in the first and in the last window."""
    if not windows:
        return '<p class="dim">No trained sample could be read.</p>'
    steps = [float(w.last) for w in windows]
    words = sorted(windows[0].words, key=lambda word: -sum(w.words[word] for w in windows))
    scripts = sorted({script for w in windows for script in w.scripts})
    charts = [
        line_chart("Responses with a reflective word", steps, [Line("share", [w.reflective for w in windows])], fixed=True),
        line_chart("Responses with each reflective word", steps, [Line(n, [w.words[n] for w in windows]) for n in words[:LINES]]),
        line_chart("Words in the majority script of their response", steps, [Line("share", [w.consistency for w in windows])], fixed=True),
        stack_chart("Share of words by script", steps, largest({s: [100 * w.scripts.get(s, 0.0) for w in windows] for s in scripts}), "%"),
        line_chart("Samples cut at the length limit", steps, [Line("share", [w.cut for w in windows])], fixed=True),
    ]  # fmt: skip
    read, known = sum(w.read for w in windows), sum(w.samples for w in windows)
    told = f"From the words of {read:,} of the {known:,} trained samples that the log still has, in {len(windows)} windows of steps."
    return f'<p class="dim">{told}</p><div class="charts">{"".join(charts)}{_table(windows, words)}</div>'


def _table(windows: Sequence[TextWindow], words: Sequence[str]) -> str:
    first, last = windows[0], windows[-1]
    head = "".join(f"<th>{_span(w)}</th>" for w in (first, last))
    rows = "".join(
        f"<tr><th>{esc(word, 50)}</th><td>{first.words[word]:.1%}</td><td>{last.words[word]:.1%}</td></tr>"
        for word in words
    )
    caption = "<figcaption>Responses with the word</figcaption>"
    return (
        f'<figure>{caption}<table class="numbers"><thead><tr><th>steps</th>{head}</tr></thead>{rows}</table></figure>'
    )


def _span(window: TextWindow) -> str:
    return f"{window.first}" if window.first == window.last else f"{window.first} to {window.last}"
