"""The pieces that charts are put together from: frame, axes, legend, shapes; as text of an SVG inside an HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise

from monitoring.report.scale import Scale, decades, figure, ticks
from monitoring.view import clean_text

WIDTH, HEIGHT = 460.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 16.0, 10.0, 32.0


def esc(value: object, limit: int = 20_000) -> str:
    """``value`` as text that is nothing but text in HTML: no control characters, no more than ``limit`` characters."""
    return html.escape(clean_text(str(value), limit))


def vertical(low: float, high: float, logarithmic: bool) -> Scale:
    """The axis upwards, with some room. A logarithmic one shows six decades at most: single values far below mean little."""
    if logarithmic:
        low = max(low, high / 1e6)
        return Scale(low / 1.2, high * 1.2, HEIGHT - BOTTOM, TOP, True)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    spare = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Scale(low - (spare if low else 0.0), high + spare, HEIGHT - BOTTOM, TOP)


def horizontal(steps: Sequence[float]) -> Scale:
    low, high = min(steps), max(steps)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Scale(low, high, LEFT, WIDTH - RIGHT)


def axes(x: Scale, y: Scale, label: str) -> str:
    out = []
    for value in decades(y.low, y.high) if y.logarithmic else ticks(y.low, y.high):
        at = y(value)
        out.append(f'<path class="grid" d="M{LEFT:.0f} {at:.1f}H{WIDTH - RIGHT:.0f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 6:.0f}" y="{at + 4:.1f}" text-anchor="end">{figure(value)}</text>')
    for value in ticks(x.low, x.high, 6):
        if value == round(value):  # steps are whole numbers
            where = f'x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 14:.0f}"'
            out.append(f'<text class="tick" {where} text-anchor="middle">{figure(value)}</text>')
    where = f'x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4:.0f}"'
    return "".join([*out, f'<text class="tick" {where} text-anchor="middle">{esc(label)}</text>'])


def hits(at: Sequence[float], told: Sequence[str]) -> list[str]:
    """Invisible columns, each with what it tells under the pointer."""
    middles = [(a + b) / 2 for a, b in pairwise(at)]
    edges = [LEFT, *middles, WIDTH - RIGHT]
    return [
        f'<rect class="hit" {box(a, TOP, b - a, HEIGHT - TOP - BOTTOM)}><title>{esc(text)}</title></rect>'
        for a, b, text in zip(edges, edges[1:], told, strict=False)
    ]


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def staircase(edges: Sequence[float], values: Sequence[float], y: Scale, back: bool = False) -> str:
    """A staircase over the columns between ``edges``: from left to right, or ``back`` again."""
    columns = list(zip(edges, edges[1:], values, strict=False))
    if back:
        return "".join(f"L{b:.1f} {y(v):.1f}H{a:.1f}" for a, b, v in reversed(columns))
    return "M" + "L".join(f"{a:.1f} {y(v):.1f}H{b:.1f}" for a, b, v in columns)


def box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, height):.1f}"'


def legend(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    items = "".join(f'<li><i class="b{i}"></i>{esc(label, 80)}</li>' for i, label in enumerate(labels))
    return f'<ul class="legend">{items}</ul>'


def frame(title: str, unit: str, body: Sequence[str], below: str) -> str:
    """A whole chart: what it shows, in which unit, the drawing, and what is below it."""
    svg = f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{esc(title)}">{"".join(body)}</svg>'
    return f"<figure><figcaption>{esc(title)} <small>{esc(unit)}</small></figcaption>{svg}{below}</figure>"
