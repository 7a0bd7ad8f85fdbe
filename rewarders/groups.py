"""Collects the samples of a group until it is complete, for rewarders that judge whole groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from broker.watermark import Part
from rewarders.judges import Sample

REMEMBERED = 1 << 16


@dataclass(slots=True)
class _Open:
    size: int
    since: float
    samples: dict[int, Sample] = field(default_factory=dict)


class Groups:
    """Incomplete groups. ``patience`` is how many seconds a group may wait for its last sample."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._open: dict[str, _Open] = {}
        self._whole: dict[
            str, None
        ] = {}  # the latest complete groups: a sample that is delivered again must not reopen one

    def add(self, sample: Sample, size: int) -> tuple[tuple[Sample, ...], Sample | None]:
        """Returns the complete group in order of index if ``sample`` completes its ``size``, else ``()``; and a sample
        that is left over, if any.

        The first sample of an index is kept; a second one with the same index is left over.
        """
        if sample.group_id in self._whole:
            return (), sample
        group = self._open.setdefault(sample.group_id, _Open(size, self._clock()))
        if sample.index in group.samples or size != group.size:
            return (), sample
        group.samples[sample.index] = sample
        if len(group.samples) < group.size:
            return (), None
        del self._open[sample.group_id]
        self._whole[sample.group_id] = None
        if len(self._whole) > REMEMBERED:
            del self._whole[next(iter(self._whole))]
        return tuple(group.samples[index] for index in sorted(group.samples)), None

    def given_up(self) -> list[Sample]:
        """Removes and returns the samples of groups that have waited too long: the learner has settled those groups
        otherwise by now.
        """
        limit = self._clock() - self._patience
        late = [group_id for group_id, group in self._open.items() if group.since < limit]
        return [sample for group_id in late for sample in self._open.pop(group_id).samples.values()]

    def keep(self, assignment: Iterable[Part]) -> None:
        """Forget the groups of partitions that are now assigned to another member."""
        held = set(assignment)
        for group_id, group in list(self._open.items()):
            records = [sample.record for sample in group.samples.values()]
            if any((record.topic, record.partition) not in held for record in records):
                del self._open[group_id]

    @property
    def waiting(self) -> int:
        """The number of samples that wait for the rest of their group."""
        return sum(len(group.samples) for group in self._open.values())
