"""Reads from the log what a starting learner needs: the manifests that are not executed yet, and the outstanding groups."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from broker.errors import DecodeError, LogError
from broker.log import Log, Record
from broker.messages import Ending, Manifest, PlannerState, Prompt, StepResult, decode
from broker.topics import Topics
from learner.planning.groups import Group
from learner.planning.join import each, read_all, still_there

log_ = logging.getLogger("learner")
AHEAD = 64  # manifests that may lie behind one before it is known whether it can be executed


@dataclass(slots=True)
class Tail:
    """The ``steps`` topic after a checkpoint: manifests, each with the offset after it, the records that ended collections, and the newest manifest.

    ``set_aside`` are the steps that could not be executed, with the reason; ``read`` has the digest of what each supervised step has read, by
    stage and step.
    """

    manifests: list[tuple[Manifest, int]] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    set_aside: dict[int, str] = field(default_factory=dict)
    read: dict[tuple[int, int], str] = field(default_factory=dict)
    newest: Manifest | None = None


@dataclass(slots=True)
class Recovered:
    """What the planner goes on from."""

    state: PlannerState
    groups: list[Group]
    cursor: dict[str, int]
    missing: dict[str, list[int]]
    fed: dict[int, int]
    expired: tuple[str, ...] = ()
    """Groups for training whose prompts retention has removed: they can have no other end."""


def read_tail(log: Log, topics: Topics, offset: int, last: int | None = None) -> Tail:
    """Everything of ``steps`` from ``offset`` on; ``newest`` may be the manifest just before it. With ``last`` at least all that is known of
    steps up to that one. Raises LogError if the record before ``offset``, which a checkpoint was made with, is not there.
    """
    tail, known = Tail(), not offset
    start = max(0, offset - 1)
    begin = log.begins(topics.steps).get(0, 0)
    reader = log.reader(topics.steps, {0: max(begin, start)})
    try:
        for record in each(reader, log.ends(topics.steps)):
            message = decoded(record)
            if not known and record.offset >= offset:
                break
            known = known or isinstance(message, Manifest)
            if last is not None and isinstance(message, Manifest) and message.step > last + AHEAD:
                break
            if isinstance(message, Manifest) and message.kind == "set_aside":
                tail.set_aside[message.step] = message.why
            elif isinstance(message, Manifest):
                tail.newest = message
                if record.offset >= offset:
                    tail.manifests.append((message, record.offset + 1))
            elif isinstance(message, Ending):
                tail.endings.append(message)
            elif isinstance(message, StepResult) and message.documents is not None and message.rows:
                tail.read[message.stage, message.stage_step] = message.documents[2]
    finally:
        reader.close()
    if not known:
        raise LogError(
            f"{topics.steps} has no manifest before offset {offset}, up to which a checkpoint goes: it is not the log that the checkpoint "
            "was made with, or its newest records were lost; give the run its own log back, or begin a new one"
        )
    return tail


def read_outstanding(log: Log, topics: Topics, tail: Tail) -> Recovered:
    """The groups that have not ended: those that the newest manifest names, and the prompts fed since."""
    state = tail.newest.state if tail.newest is not None else PlannerState()
    known = set(state.outstanding)
    ended: set[str] = set()
    for ending in tail.endings:
        ended.update(ending.group_ids)
        ended.update(d.group_id for d in ending.dropped)
    reader = log.reader(topics.prompts, still_there(log, topics.prompts, state.prompts))
    groups: dict[str, Group] = {}
    since: dict[str, Prompt] = {}
    try:
        for record in read_all(reader, log.ends(topics.prompts)):
            message = decoded(record)
            if not isinstance(message, Prompt):
                continue
            new = record.offset >= state.fed.get(record.partition, 0)
            if new:
                since[message.group_id] = message
            if (new or message.group_id in known) and message.group_id not in ended:
                groups.setdefault(message.group_id, Group(message, record.position, message.created))
        fed = reader.offsets()
    finally:
        reader.close()
    lost = sorted(known - ended - groups.keys())
    expired = tuple(group_id for group_id in lost if group_id.rpartition("@")[2].isdigit())
    if lost:
        log_.warning(
            "retention has removed %d prompts that were outstanding, %s among them: groups for training are dropped as expired, others asked anew",
            len(lost), lost[0],
        )  # fmt: skip
    cursor, missing = recovered_numbers(since, state.cursor, state.missing)
    ordered = sorted(groups.values(), key=lambda g: (g.prompt.created, g.prompt.number))
    return Recovered(state, ordered, cursor, missing, fed, expired)


def decoded(record: Record) -> object:
    """The message of a record; None where it cannot be read."""
    try:
        return decode(record.value)
    except DecodeError:
        return None  # written by another client; the audit names it


def messages_from(log: Log, topics: Topics, offset: int | None = None) -> Iterator[object]:
    """What the steps topic says from ``offset`` (None: its oldest record) to its end; None in place of what cannot be read."""
    with closing(log.reader(topics.steps, {} if offset is None else {0: offset})) as reader:
        yield from (decoded(record) for record in each(reader, log.ends(topics.steps)))


def recovered_numbers(
    prompts: Mapping[str, Prompt], cursor: Mapping[str, int], due: Mapping[str, Sequence[int]]
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Cursor and missing numbers after a crash: from the prompts fed since the last manifest, its cursor, and what was ``due`` below it."""
    found: dict[str, set[int]] = {}
    for prompt in prompts.values():
        if prompt.purpose == "train":
            found.setdefault(prompt.dataset, set()).add(prompt.number)
    ends, missing = dict(cursor), {}
    for name in sorted(found.keys() | due.keys()):
        numbers, start = found.get(name, set()), cursor.get(name, 0)
        ends[name] = max([start, *(n + 1 for n in numbers)])
        gaps = [n for n in (*due.get(name, ()), *range(start, ends[name])) if n not in numbers]
        if gaps:
            missing[name] = gaps
    return ends, missing
