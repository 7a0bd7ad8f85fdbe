"""A log engine of one's own: a folder a topic, a file a record, one lock for all. Slow, and whole: it keeps every promise of ``broker.log``."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import msgpack

from broker.errors import HeldByAnother, LogError, MemberReplaced, OffsetExpired, RecordTooLarge
from broker.log import First, Record, TopicSpec, partition_of
from broker.messages import Position

LEASE_SECONDS = 2.0
MAX_RECORD_BYTES = 16 << 20
Part = tuple[str, int]


class Folder:
    """What all parts share: JSON notes that are read and replaced under a lock, and the files of the records."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self.home / "_lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def note(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.home / name).read_text()))
        except FileNotFoundError:
            return {}

    def keep(self, name: str, note: Mapping[str, Any]) -> None:
        beside = self.home / f"{name}.{os.getpid()}"
        beside.write_text(json.dumps(note))
        beside.replace(self.home / name)

    def spec(self, topic: str) -> TopicSpec:
        if found := self.note(f"{topic}/spec.json"):
            return TopicSpec(**found)
        raise LogError(f"there is no topic {topic} in {self.home}")

    def bounds(self, topic: str) -> tuple[dict[int, int], dict[int, int]]:
        """The oldest and the next offset of every partition."""
        note, partitions = self.note(f"{topic}/bounds.json"), range(self.spec(topic).partitions)
        return tuple({p: note.get(side, {}).get(str(p), 0) for p in partitions} for side in ("begin", "end"))  # type: ignore[return-value]

    def path(self, topic: str, partition: int, offset: int) -> Path:
        return self.home / topic / f"{partition}-{offset}"

    def record(self, topic: str, partition: int, offset: int) -> Record | None:
        try:
            key, value, at = msgpack.unpackb(self.path(topic, partition, offset).read_bytes())
        except FileNotFoundError:
            return None
        return Record(topic, partition, offset, key, value, at)


class FolderLog:
    """Implements ``broker.log.Log``. ``folder://DIRECTORY``"""

    def __init__(self, home: Path) -> None:
        self._folder = Folder(home)

    @classmethod
    def from_url(cls, url: str) -> FolderLog:
        return cls(Path(url.removeprefix("folder://")))

    def create(self, specs: Iterable[TopicSpec]) -> None:
        with self._folder.locked():
            for spec in specs:
                (self._folder.home / spec.name).mkdir(exist_ok=True)
                found = TopicSpec(**(self._folder.note(f"{spec.name}/spec.json") or asdict(spec)))
                for field in ("partitions", "compacted"):
                    if getattr(found, field) != getattr(spec, field):
                        raise LogError(f"topic {spec.name} has {field} = {getattr(found, field)}")
                self._folder.keep(f"{spec.name}/spec.json", asdict(found))

    def topics(self) -> dict[str, TopicSpec]:
        names = sorted(path.parent.name for path in self._folder.home.glob("*/spec.json"))
        return {name: self._folder.spec(name) for name in names}

    def producer(self) -> FolderProducer:
        return FolderProducer(self._folder)

    def exclusive_producer(self, name: str, owner: str) -> FolderProducer:
        file = (self._folder.home / f"_{name}.owner").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise HeldByAnother(name, file.read()) from None
        file.truncate(0)
        file.write(owner)
        file.flush()
        return FolderProducer(self._folder, file)

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> FolderConsumer:
        return FolderConsumer(self._folder, topics, group, member, first)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> FolderReader:
        return FolderReader(self._folder, topic, offsets or {})

    def begins(self, topic: str) -> dict[int, int]:
        return self._folder.bounds(topic)[0]

    def ends(self, topic: str) -> dict[int, int]:
        return self._folder.bounds(topic)[1]

    def committed(self, group: str, topic: str) -> dict[int, int]:
        found = self._folder.note("_groups").get(group, {}).get("offsets", {}).get(topic, {})
        return {int(p): offset for p, offset in found.items()}

    def groups(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(sorted(group["topics"])) for name, group in sorted(self._folder.note("_groups").items())}

    def lag(self, group: str, topic: str) -> int:
        begins, committed = self.begins(topic), self.committed(group, topic)
        return sum(end - max(committed.get(p, 0), begins[p]) for p, end in self.ends(topic).items())

    def delete(self, topics: Iterable[str], groups: Iterable[str]) -> None:
        with self._folder.locked():
            note = self._folder.note("_groups")
            for group in groups:
                members = note.pop(group, {"members": {}})["members"]
                if any(member["until"] > time.time() for member in members.values()):
                    raise LogError(f"group {group} has living members: stop the run first")
            self._folder.keep("_groups", note)
            for topic in topics:
                shutil.rmtree(self._folder.home / topic, ignore_errors=True)

    def trim(self, topic: str, offsets: Mapping[int, int]) -> None:
        with self._folder.locked():
            begins, ends = self._folder.bounds(topic)
            later = {p: min(max(begins[p], offset), ends[p]) for p, offset in offsets.items()}
            self._folder.keep(f"{topic}/bounds.json", {"begin": {**begins, **later}, "end": ends})
            for partition, offset in later.items():
                for gone in range(begins[partition], offset):
                    self._folder.path(topic, partition, gone).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing stays open."""


class FolderProducer:
    """Implements ``broker.log.Producer``. The new bounds of a topic, replaced in one step, are its commit."""

    def __init__(self, folder: Folder, lock: IO[str] | None = None) -> None:
        self._folder, self._lock = folder, lock
        self._rows: list[tuple[str, bytes, bytes, int]] = []

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        count = self._folder.spec(topic).partitions
        chosen = partition_of(key, count) if partition is None else partition
        if not 0 <= chosen < count:
            raise LogError(f"topic {topic} has no partition {chosen}")
        if len(value) > MAX_RECORD_BYTES:
            raise RecordTooLarge(f"a record of {len(value)} bytes is above the limit of {MAX_RECORD_BYTES}")
        self._rows.append((topic, key, value, chosen))

    def flush(self) -> list[Position]:
        rows, self._rows = self._rows, []
        done: list[Position] = [Position(0, 0)] * len(rows)
        with self._folder.locked():
            for topic in {row[0] for row in rows}:
                self._append(topic, [(n, row) for n, row in enumerate(rows) if row[0] == topic], done)
        return done

    def _append(self, topic: str, rows: list[tuple[int, tuple[str, bytes, bytes, int]]], done: list[Position]) -> None:
        begins, ends = self._folder.bounds(topic)
        before = dict(ends)
        for number, (_, key, value, partition) in rows:
            path = self._folder.path(topic, partition, ends[partition])
            path.write_bytes(msgpack.packb([key, value, time.time()]))
            done[number] = Position(partition, ends[partition])
            ends[partition] += 1
        self._folder.keep(f"{topic}/bounds.json", {"begin": begins, "end": ends})
        if self._folder.spec(topic).compacted:
            newest: set[tuple[int, bytes]] = set()
            for partition, end in ends.items():
                for offset in range(end - 1, min(begins[partition], before[partition]) - 1, -1):
                    record = self._folder.record(topic, partition, offset)
                    if record is not None and (partition, record.key) in newest:
                        self._folder.path(topic, partition, offset).unlink()
                    elif record is not None:
                        newest.add((partition, record.key))

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


class FolderReader:
    """Implements ``broker.log.Reader``."""

    def __init__(self, folder: Folder, topic: str, offsets: Mapping[int, int]) -> None:
        self._folder, self._topic = folder, topic
        self._next = {**folder.bounds(topic)[0], **offsets}

    def seek(self, offsets: Mapping[int, int]) -> None:
        self._next.update(offsets)

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        deadline = time.monotonic() + timeout
        while True:
            out = read(self._folder, {(self._topic, p): o for p, o in self._next.items()}, max_records)
            for record in out:
                self._next[record.partition] = record.offset + 1
            if out or time.monotonic() >= deadline:
                return out
            time.sleep(0.005)

    def get(self, positions: Sequence[Position]) -> list[Record]:
        out = []
        for partition, offset in positions:
            record = self._folder.record(self._topic, partition, offset)
            begin = self._folder.bounds(self._topic)[0][partition]
            if record is None and offset < begin:
                raise OffsetExpired(self._topic, partition, offset, begin)
            if record is None:
                raise LogError(f"{self._topic}[{partition}] has no record at offset {offset}")
            out.append(record)
        return out

    def offsets(self) -> dict[int, int]:
        return dict(self._next)

    def close(self) -> None:
        """Nothing stays open."""


def read(folder: Folder, places: Mapping[Part, int], limit: int) -> list[Record]:
    """At most ``limit`` records from these places on. Raises OffsetExpired."""
    out: list[Record] = []
    for (topic, partition), first in places.items():
        begins, ends = folder.bounds(topic)
        if first < begins[partition]:
            raise OffsetExpired(topic, partition, first, begins[partition])
        for offset in range(first, ends[partition]):
            if len(out) == limit:
                return out
            if (record := folder.record(topic, partition, offset)) is not None:
                out.append(record)
    return out


class FolderConsumer:
    """Implements ``broker.log.Consumer``: a note says who is alive and how far each group has come."""

    def __init__(self, folder: Folder, topics: Sequence[str], group: str, member: str, first: First | None) -> None:
        self._folder, self._topics, self._group, self._member = folder, tuple(topics), group, member
        self._begin = {topic: first(topic) if first is not None else {} for topic in topics}
        self._token, self._next = uuid.uuid4().hex, dict[Part, int]()
        self._turn(joining=True)

    def _turn(self, joining: bool = False, offsets: Mapping[Part, int] | None = None, leaving: bool = False) -> None:
        """Renew the lease; take, or give up, what the living members share; commit or leave."""
        with self._folder.locked():
            note = self._folder.note("_groups")
            group = note.setdefault(self._group, {"members": {}, "topics": [], "offsets": {}})
            members = {n: m for n, m in group["members"].items() if m["until"] > time.time()}
            mine = joining or members.get(self._member, {"token": self._token})["token"] == self._token
            if mine:
                members[self._member] = {"token": self._token, "until": time.time() + LEASE_SECONDS}
            if not mine and not leaving and offsets is None:
                self._next = {}
                raise MemberReplaced(self._member, self._group)
            if mine and leaving:
                del members[self._member]
            names = sorted(members)
            held = {(topic, p) for topic in self._topics for p in range(self._folder.spec(topic).partitions)
                    if mine and not leaving and names[p % len(names)] == self._member}  # fmt: skip
            for (topic, p), offset in (offsets or {}).items():
                if (topic, p) in held:
                    group["offsets"].setdefault(topic, {})[str(p)] = offset
            group |= {"members": members, "topics": sorted({*group["topics"], *self._topics})}
            self._folder.keep("_groups", note)
        done, begins = group["offsets"], {topic: self._folder.bounds(topic)[0] for topic in self._topics}
        first = {(t, p): done.get(t, {}).get(str(p), self._begin[t].get(p, 0)) for t, p in held}
        self._next = {(t, p): self._next.get((t, p), max(first[t, p], begins[t][p])) for t, p in held}

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        deadline = time.monotonic() + timeout
        while True:
            self._turn()
            out = read(self._folder, self._next, max_records)
            for record in out:
                self._next[record.topic, record.partition] = record.offset + 1
            if out or time.monotonic() >= deadline:
                return out
            time.sleep(0.005)

    def commit(self, offsets: Mapping[Part, int]) -> None:
        self._turn(offsets=offsets)

    def assignment(self) -> frozenset[Part]:
        return frozenset(self._next)

    def close(self) -> None:
        self._turn(leaving=True)
