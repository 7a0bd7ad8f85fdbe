"""A trace in Chrome's JSON format, which ui.perfetto.dev and chrome://tracing open: slices laid in lanes, arrows, instants.

Times come in as seconds since the epoch and leave as whole microseconds since the earliest of them, so that the numbers
stay small. What overlaps gets a lane (a thread of its process) of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that lasted from ``start`` to ``end``. Arrows have numbers: one leaves from here, others arrive at ``arrival``."""

    name: str
    start: float
    end: float
    category: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    leaves: int = 0
    arrives: tuple[int, ...] = ()
    arrival: float = 0.0


Block = Sequence[Slice]
"""Slices of one lane: the first begins first, the others follow it or lie within it."""


class ChromeTrace:
    """Collects the blocks of a trace, by process and by label of its threads."""

    def __init__(self) -> None:
        self._blocks: dict[str, dict[str, list[Block]]] = {}
        self._instants: list[tuple[str, str, str, float, Mapping[str, Any]]] = []

    def process(self, name: str, *labels: str) -> None:
        """A process row and its threads; they are shown in the order in which they are first named."""
        rows = self._blocks.setdefault(name, {})
        for label in labels:
            rows.setdefault(label, [])

    def block(self, process: str, label: str, block: Block) -> None:
        """Slices that keep together, in whichever lane of ``label`` is free for all of them."""
        self.process(process, label)
        self._blocks[process][label].append(block)

    def instant(self, process: str, label: str, name: str, at: float, args: Mapping[str, Any]) -> None:
        self.process(process, label)
        self._instants.append((process, label, name, at, args))

    def text(self, about: Mapping[str, Any]) -> str:
        """The whole trace as JSON. ``about`` is kept in it for whoever asks."""
        starts = [s.start for rows in self._blocks.values() for bs in rows.values() for b in bs for s in b]
        origin = min([*starts, *(at for *_, at, _ in self._instants)], default=0.0)
        events = sorted(self._events(origin), key=lambda e: (e["ph"] != "M", e["ts"], -e.get("dur", 0)))
        whole = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {**about, "origin": origin}}
        return json.dumps(whole, allow_nan=False, separators=(",", ":"))

    def _events(self, origin: float) -> Iterable[dict[str, Any]]:
        places: dict[tuple[str, str], dict[str, int]] = {}
        for pid, (process, rows) in enumerate(self._blocks.items(), start=1):
            yield from _named("process", process, {"pid": pid, "tid": 0}, pid)
            tid = 1
            for label, blocks in rows.items():
                places[process, label] = {"pid": pid, "tid": tid}
                laid = _laid(blocks, origin)
                count = max([lane for lane, *_ in laid], default=0) + 1
                for lane in range(count):
                    title = label if count == 1 else f"{label} {lane + 1}"
                    yield from _named("thread", title, {"pid": pid, "tid": tid + lane}, tid + lane)
                for lane, block in laid:
                    for item, start, end in block:
                        yield from _slice(item, start, end, origin, {"pid": pid, "tid": tid + lane})
                tid += count
        for process, label, name, at, args in self._instants:
            where = places[process, label]
            yield {"ph": "i", "s": "t", "name": name, "ts": _micros(at, origin), **where, "args": dict(args)}


def _micros(at: float, origin: float) -> int:
    return max(0, round((at - origin) * 1e6))


Timed = list[tuple[Slice, int, int]]  # with start and end in microseconds


def _laid(blocks: Iterable[Block], origin: float) -> list[tuple[int, Timed]]:
    """Each block with the lowest lane that is free for it."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    out = []
    for block in sorted((_timed(b, origin) for b in blocks), key=lambda b: b[0][1]):
        while busy and busy[0][0] <= block[0][1]:
            heappush(free, heappop(busy)[1])
        lane = heappop(free) if free else len(busy)
        heappush(busy, (max(end for _, _, end in block), lane))
        out.append((lane, block))
    return out


def _timed(block: Block, origin: float) -> Timed:
    """The times of a block. What an arrow leaves from lasts a microsecond at least: it would hang on nothing else."""
    timed = [(s, _micros(s.start, origin), _micros(s.end, origin)) for s in block]
    return [(s, start, max(end, start + (s.leaves > 0))) for s, start, end in timed]


def _slice(item: Slice, start: int, end: int, origin: float, where: Mapping[str, int]) -> Iterable[dict[str, Any]]:
    yield {
        "ph": "X", "name": item.name, "cat": item.category or "timeline", "ts": start, "dur": end - start, **where,
        "args": dict(item.args),
    }  # fmt: skip
    arrow = {"name": "trains", "cat": "arrow", **where}
    if item.leaves:
        yield {"ph": "s", "id": item.leaves, "ts": end - 1, **arrow}
    for number in item.arrives:
        at = min(max(start, _micros(item.arrival, origin)), max(start, end - 1))
        yield {"ph": "f", "bp": "e", "id": number, "ts": at, **arrow}


def _named(what: str, name: str, where: Mapping[str, int], place: int) -> Iterable[dict[str, Any]]:
    yield {"ph": "M", "name": f"{what}_name", "ts": 0, **where, "args": {"name": name}}
    yield {"ph": "M", "name": f"{what}_sort_index", "ts": 0, **where, "args": {"sort_index": place}}
