"""Counts samples that were recorded more than once, because of a restarted actor or a replayed dead letter.

All samples of a group are in one partition, so only the latest groups of each partition are remembered; a duplicate that comes later
is not counted. The count informs: the learner's join keeps the first record of a sample, and the audit of manifests finds a second use.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping

import msgpack

from broker.log import Log, Record
from broker.messages import Trajectory
from broker.topics import Topics
from headrace.reading.records import records

REMEMBERED = 4096  # groups that are remembered for each partition


def count_duplicates(log: Log, topics: Topics, starts: Mapping[int, int]) -> tuple[int, dict[int, int]]:
    """How many samples from ``starts`` on came again, and the offsets after the last one of each partition."""
    seen: dict[int, OrderedDict[str, int]] = defaultdict(OrderedDict)
    found, ends = 0, dict(starts)
    for record in records(log, topics.trajectories, starts):
        ends[record.partition] = record.offset + 1
        name = name_of(record)
        if name is None:
            continue
        groups, (group_id, index) = seen[record.partition], name
        have = groups.pop(group_id, 0)
        found += have >> index & 1
        groups[group_id] = have | 1 << index
        if len(groups) > REMEMBERED:
            groups.popitem(last=False)
    return found, ends


def name_of(record: Record) -> tuple[str, int] | None:
    """Group and index of a sample; None if the record is not a sample. Its tokens are not decoded."""
    try:
        wire = msgpack.unpackb(record.value, strict_map_key=False)
        known = wire["t"] == Trajectory.TYPE and type(wire["group_id"]) is str and type(wire["index"]) is int
        return (wire["group_id"], wire["index"]) if known and 0 <= wire["index"] < wire["group_size"] else None
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return None
