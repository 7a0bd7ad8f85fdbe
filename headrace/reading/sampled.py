"""Estimates figures of trajectories from a part of them, so that the summary of a run does not cost a pass over all of them.

A run of a few thousand samples is read in full, and the figures are exact.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from broker.errors import HeadraceError
from broker.log import Log, Reader, Record
from broker.messages import GroupRef, Manifest, SampleRef, Trajectory
from broker.topics import Topics
from headrace.reading.heads import Head
from headrace.reading.history import whole
from headrace.reading.records import read, records
from headrace.reading.textstats import Window
from monitoring.report import Histogram, TextWindow

T = TypeVar("T")
WHOLE = 8192  # up to this many trajectory records are all read
BLOCKS, BLOCK = 16, 32  # places in each partition of a longer log, and records that are read at each
WINDOWS = 40  # number of windows of steps that a report shows figures for
MANIFESTS = 4  # manifests that are read in each window
SAMPLES = 512  # samples that are read in each window: enough for shares that are right to a few percent


def generated_tokens(log: Log, topics: Topics) -> int:
    """Response tokens of all samples in the log: counted, or of a longer log reckoned from evenly spaced records."""
    return generated_until(log, topics, (math.inf,))[0]


def generated_until(log: Log, topics: Topics, times: Sequence[float]) -> list[int]:
    """The same of the samples that the log took up to each of these times, and not up to the one before (rising, in seconds)."""
    topic = topics.trajectories
    begins, ends = log.begins(topic), log.ends(topic)
    total = sum(ends[p] - begins[p] for p in ends)
    looked, tokens = 0, [0.0] * len(times)
    for record in records(log, topic) if total <= WHOLE else _spaced(log, topic, begins, ends):
        message, place = read(record), bisect_left(times, record.timestamp)
        looked += 1
        if isinstance(message, Trajectory) and place < len(times):
            tokens[place] += message.response_tokens
    scale = total / looked if looked and total > WHOLE else 1.0
    return [round(count * scale) for count in tokens]


def _spaced(log: Log, topic: str, begins: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Record]:
    """Blocks of records, evenly spaced over each partition."""
    for partition, end in ends.items():
        size = (end - begins[partition]) / BLOCKS
        for start in {begins[partition] + int(size * number) for number in range(BLOCKS)}:
            stop = {**ends, partition: min(end, start + BLOCK)}
            yield from records(log, topic, {**ends, partition: start}, stop, batch=BLOCK)


def trained_samples(log: Log, topics: Topics, steps: Sequence[Head]) -> tuple[list[Histogram], list[TextWindow]]:
    """Age, length and words of the trained samples that the log still has; of long windows of steps a part is looked at."""
    size = max(1, -(-len(steps) // WINDOWS))
    ages, lengths = (Counter[int](), Counter[int]()), (Counter[int](), Counter[int]())
    windows = []
    with closing(log.reader(topics.trajectories)) as reader:
        for at in range(0, len(steps), size):
            heads = steps[at : at + size]
            window = Window(heads[0].step, heads[-1].step)
            chosen = spread(heads, MANIFESTS)
            for head, manifest in zip(chosen, whole(log, topics, chosen), strict=True):
                late = steps.index(head) >= len(steps) / 2
                for sample in _samples(reader, manifest, SAMPLES // len(chosen)):
                    ages[late][sample.staleness(manifest.step)] += 1
                    lengths[late][sample.response_tokens] += 1
                    window.count(sample.finish_reason)
                    window.look_into(sample.text)
            windows.append(window)
    histograms = [
        Histogram("Staleness of trained samples", "versions", *ages),
        Histogram("Response length of trained samples", "tokens", *lengths),
    ]
    return histograms, [w.shares() for w in windows if w.samples]


def _samples(reader: Reader, manifest: Manifest, most: int) -> Iterator[Trajectory]:
    """Samples of evenly spaced groups of a manifest, about ``most`` at most."""
    every = sum(len(group.samples) for group in manifest.groups)
    groups = spread(manifest.groups, max(1, len(manifest.groups) * most // max(1, every)))
    for group in groups:
        for ref in group.samples:
            found = _sample(reader, group, ref)
            if found is not None:
                yield found


def _sample(reader: Reader, group: GroupRef, ref: SampleRef) -> Trajectory | None:
    try:
        message = read(reader.get([ref.position])[0])
    except HeadraceError:  # retention has removed it; the audit counts it
        return None
    own = isinstance(message, Trajectory) and (message.group_id, message.index) == (group.group_id, ref.sample)
    return message if own and isinstance(message, Trajectory) else None


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly spaced, the first one among them."""
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]
