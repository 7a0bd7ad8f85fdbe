"""Charts as inline SVG: lines with their spread, time in layers, histograms. Their colours are the page's own.

Every chart says under the pointer what it shows there, by ``<title>`` alone: the page has no script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from monitoring.report.data import Histogram
from monitoring.report.scale import Bin, Scale, Values, binned, bins, figure
from monitoring.report.svg import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    axes,
    box,
    esc,
    frame,
    hits,
    horizontal,
    legend,
    path,
    staircase,
    vertical,
)

BINS = 200
"""More points than this cannot be told apart, and would make the page large."""
COLOURS = 8
BARS = 24
FEW = 40  # up to this many points, each is marked
FLAT = 30.0  # if the largest value is more than this many times the smallest, the axis is logarithmic


@dataclass(frozen=True, slots=True)
class Line:
    """Values at the chart's steps (None or NaN: none there), with intervals where they are known."""

    label: str
    values: Values
    lows: Values = ()
    highs: Values = ()


def line_chart(
    title: str, steps: Sequence[float], lines: Sequence[Line], unit: str = "", fixed: bool = False, log: bool = False
) -> str:
    """Curves over the steps; ``fixed`` spans 0 to 1; ``log`` allows a logarithmic axis. Empty if there is nothing to draw."""
    ranges = bins(steps, BINS)
    drawn = [(line, binned(line.values, ranges), _intervals(line, ranges)) for line in lines]
    drawn = [d for d in drawn if any(d[1])][:COLOURS]
    if not drawn:
        return ""
    known = [b for _, points, spans in drawn for b in (*points, *spans) if b]
    low, high = min(b.low for b in known), max(b.high for b in known)
    y = vertical(0.0 if fixed else low, max(1.0, high) if fixed else high, log and low > 0 and high / low > FLAT)
    x = horizontal(steps)
    at = [x((steps[a] + steps[b - 1]) / 2) for a, b in ranges]
    body = [axes(x, y, "step")]
    for colour, (_, points, spans) in enumerate(drawn):
        body.append(_curve(at, points, spans, y, colour))
    shown = [[(line.label, points[i]) for line, points, _ in drawn] for i in range(len(ranges))]
    body += hits(at, [_told(steps, r, found, unit) for r, found in zip(ranges, shown, strict=True)])
    labels = [line.label for line, _, _ in drawn]
    return frame(
        title,
        " ".join(filter(None, (unit, "logarithmic" * y.logarithmic))),
        body,
        legend(labels if len(labels) > 1 else []),
    )


def stack_chart(title: str, steps: Sequence[float], layers: Mapping[str, Sequence[float]], unit: str = "") -> str:
    """Layers on top of each other, the first at the bottom; no more of them than ``COLOURS`` (see ``largest``)."""
    ranges = bins(steps, BINS)
    means = {name: [b.mean if b else 0.0 for b in binned(values, ranges)] for name, values in layers.items()}
    high = max((sum(column) for column in zip(*means.values(), strict=True)), default=0.0)
    if not high > 0:
        return ""
    half = (steps[-1] - steps[0]) / (len(steps) - 1) / 2 if len(steps) > 1 else 0.5
    y, x = vertical(0.0, high, False), horizontal([steps[0] - half, steps[-1] + half])
    edges = [x(steps[a] - half) for a, _ in ranges] + [x(steps[-1] + half)]
    floor, body = [0.0] * len(ranges), [axes(x, y, "step")]
    for colour, values in enumerate(means.values()):
        top = [a + b for a, b in zip(floor, values, strict=True)]
        body.append(f'<path class="f{colour}" d="{staircase(edges, top, y)}{staircase(edges, floor, y, back=True)}Z"/>')
        floor = top
    at = [(a + b) / 2 for a, b in pairwise(edges)]
    told = [[(name, Bin(v[i], v[i], v[i])) for name, v in means.items()] for i in range(len(ranges))]
    body += hits(at, [_told(steps, r, found, unit) for r, found in zip(ranges, told, strict=True)])
    return frame(title, unit, body, legend(list(means)))


def histogram(data: Histogram) -> str:
    """The shares of early and of late samples side by side; empty without samples."""
    seen = sorted(data.early.keys() | data.late.keys())
    if not seen:
        return ""
    width = max(1, math.ceil((seen[-1] - seen[0] + 1) / BARS))
    first, count = seen[0], (seen[-1] - seen[0]) // width + 1
    sides = [_counts(side, first, width, count) for side in (data.early, data.late)]
    shares = [[n / (sum(side) or 1) for n in side] for side in sides]
    y = vertical(0.0, max(map(max, shares)), False)
    x = Scale(first - 0.5, first + count * width - 0.5, LEFT, WIDTH - RIGHT)
    body = [axes(x, y, data.unit)]
    slot = (x.end - x.start) / count
    for i in range(count):
        low, high = first + i * width, first + (i + 1) * width - 1
        left = x.start + i * slot
        told = [f"{low}" if low == high else f"{low} to {high}"]
        for side, name in enumerate(("early", "late")):
            top, share = y(shares[side][i]), shares[side][i]
            bar = slot * 0.42
            told.append(f"{name} {share:.1%} ({sides[side][i]:,})")
            body.append(f'<rect class="f{side}" {box(left + slot * 0.06 + side * bar, top, bar, y.start - top)}/>')
        lines = "\n".join(told)
        body.append(f'<rect class="hit" {box(left, TOP, slot, y.start - TOP)}><title>{esc(lines)}</title></rect>')
    return frame(data.title, "share of samples", body, legend(["early: first half of the steps", "late: second half"]))


def share_bar(parts: Mapping[str, float], unit: str = "s") -> str:
    """One bar that is divided as ``parts`` are, with a legend that has the numbers; empty if they add up to nothing."""
    parts = {name: value for name, value in sorted(parts.items(), key=lambda part: -part[1]) if value > 0}
    total = sum(parts.values())
    if not total:
        return ""
    shown = {name: values[0] for name, values in largest({name: [value] for name, value in parts.items()}).items()}
    labels, at, body = [], 0.0, []
    for colour, (name, value) in enumerate(shown.items()):
        label = f"{name} {value / total:.1%} ({figure(value)} {unit})"
        labels.append(label)
        width = 100 * value / total
        body.append(f'<rect class="f{colour}" {box(at, 0, width, 6)}><title>{esc(label)}</title></rect>')
        at += width
    bar = f'<svg viewBox="0 0 100 6" preserveAspectRatio="none" class="bar" role="img">{"".join(body)}</svg>'
    return bar + legend(labels)


def largest(layers: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The layers, largest sum first; the last of too many are added up as ``rest``."""
    names = sorted(layers, key=lambda name: -sum(layers[name]))
    if len(names) <= COLOURS:
        return {name: layers[name] for name in names}
    kept: dict[str, Sequence[float]] = {name: layers[name] for name in names[: COLOURS - 1]}
    rest = [layers[name] for name in names[COLOURS - 1 :]]
    return kept | {"rest": [sum(column) for column in zip(*rest, strict=True)]}


def _intervals(line: Line, ranges: Sequence[tuple[int, int]]) -> list[Bin | None]:
    """What lies between ``lows`` and ``highs``; without them the spread within each bin."""
    if not line.lows:
        return [b if b and b.high > b.low else None for b in binned(line.values, ranges)]
    lows, highs = binned(line.lows, ranges), binned(line.highs, ranges)
    return [Bin(h.mean, lo.low, h.high) if lo and h else None for lo, h in zip(lows, highs, strict=True)]


def _curve(
    at: Sequence[float], points: Sequence[Bin | None], spans: Sequence[Bin | None], y: Scale, colour: int
) -> str:
    found = [(x, y(b.mean)) for x, b in zip(at, points, strict=True) if b]
    out = []
    spread = [(x, y(b.low), y(b.high)) for x, b in zip(at, spans, strict=True) if b]
    if len(spread) > FEW:
        outline = [(x, top) for x, _, top in spread] + [(x, bottom) for x, bottom, _ in reversed(spread)]
        out.append(f'<path class="band f{colour}" d="{path(outline)}Z"/>')
    else:
        out += [f'<path class="whisker s{colour}" d="M{x:.1f} {a:.1f}V{b:.1f}"/>' for x, a, b in spread]
    out.append(f'<path class="line s{colour}" d="{path(found)}"/>')
    if len(found) <= FEW:
        out += [f'<circle class="f{colour}" cx="{x:.1f}" cy="{v:.1f}" r="2.5"/>' for x, v in found]
    return "".join(out)


def _told(steps: Sequence[float], span: tuple[int, int], found: Sequence[tuple[str, Bin | None]], unit: str) -> str:
    first, last = steps[span[0]], steps[span[1] - 1]
    lines = [f"step {first:g}" if first == last else f"steps {first:g} to {last:g}"]
    for label, point in found:
        if point:
            spread = f" ({figure(point.low)} to {figure(point.high)})" if point.high > point.low else ""
            lines.append(f"{label}: {figure(point.mean)}{unit and ' ' + unit}{spread}")
    return "\n".join(lines)


def _counts(side: Mapping[int, int], first: int, width: int, count: int) -> list[int]:
    out = [0] * count
    for value, number in side.items():
        out[(value - first) // width] += number
    return out
