"""The embedded log: one directory, one SQLite file a topic, shared by the processes of one machine. No daemon.

What ``flush`` has acknowledged survives the end of any process; what an exclusive producer has flushed, a power cut too.
Several machines means Kafka.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from broker.errors import HeldByAnother, LogError, RunFileError
from broker.log import Record, TopicSpec, partition_of
from broker.messages import Position
from broker.sqlite.groups import GroupsFile, share
from broker.sqlite.topic import Row, TopicFile

MAX_RECORD_BYTES = 16 << 20
IN_FLIGHT_BYTES = 64 << 20  # what a producer holds before it flushes by itself
POLL_BYTES = 32 << 20
PAGE_BYTES = 4096
LEASE_SECONDS = 5.0
NAP_SECONDS = (0.0005, 0.02)  # shortest and longest sleep of a waiting poll


class SqliteLog:
    """Implements ``broker.log.Log`` on the directory ``path``."""

    def __init__(self, path: str | Path, lease_seconds: float = LEASE_SECONDS, max_pages: int = 0) -> None:
        self._directory = Path(path)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lease, self._max_pages = lease_seconds, max_pages
        self._lock = threading.Lock()
        self._topics: dict[str, TopicFile] = {}
        self._groups_file: GroupsFile | None = None

    @classmethod
    def from_url(cls, url: str) -> SqliteLog:
        """``sqlite://DIRECTORY?max_mb=N`` lets no topic grow beyond N MiB: producers then raise LogFull, as on a full disk."""
        directory, _, query = url.removeprefix("sqlite://").partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        limit = options.pop("max_mb", "0")
        if options or not limit.isdigit():
            raise RunFileError(f"[broker] url = {url!r}: behind '?' only max_mb=N is known")
        return cls(directory, max_pages=int(limit) * 2**20 // PAGE_BYTES)

    def create(self, specs: Iterable[TopicSpec]) -> None:
        for spec in specs:
            TopicFile.create(self._directory, spec)

    def _topic(self, name: str) -> TopicFile:
        if name not in self._topics:
            self._topics[name] = TopicFile(self._directory, name)
        return self._topics[name]

    def _groups(self) -> GroupsFile:
        if self._groups_file is None:
            self._groups_file = GroupsFile(self._directory)
        return self._groups_file

    def topics(self) -> dict[str, TopicSpec]:
        names = sorted(p.stem for p in self._directory.glob("*.sqlite") if not p.name.startswith("_"))
        with self._lock:
            return {name: self._topic(name).spec for name in names}

    def producer(self) -> SqliteProducer:
        return SqliteProducer(self._directory, self._max_pages)

    def exclusive_producer(self, name: str, owner: str) -> SqliteProducer:
        path = self._directory / f"_{name}.owner"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text() or "an unknown process"
            os.close(handle)
            raise HeldByAnother(name, holder) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)
        return SqliteProducer(self._directory, self._max_pages, durable=True, handle=handle)

    def consumer(self, topics: Sequence[str], group: str, member: str) -> SqliteConsumer:
        return SqliteConsumer(self._directory, topics, group, member, self._lease)

    def reader(self, topic: str, offsets: Mapping[int, int] | None = None) -> SqliteReader:
        return SqliteReader(self._directory, topic, offsets or {})

    def begins(self, topic: str) -> dict[int, int]:
        with self._lock:
            return self._topic(topic).begins()

    def ends(self, topic: str) -> dict[int, int]:
        with self._lock:
            return self._topic(topic).ends()

    def committed(self, group: str, topic: str) -> dict[int, int]:
        with self._lock:
            return self._groups().committed(group, topic)

    def groups(self) -> dict[str, tuple[str, ...]]:
        with self._lock:
            return self._groups().groups()

    def lag(self, group: str, topic: str) -> int:
        begins, committed = self.begins(topic), self.committed(group, topic)
        return sum(end - max(committed.get(p, 0), begins[p]) for p, end in self.ends(topic).items())

    def trim(self, topic: str, offsets: Mapping[int, int]) -> None:
        with self._lock:
            self._topic(topic).trim(offsets)

    def close(self) -> None:
        with self._lock:
            for topic in self._topics.values():
                topic.close()
            self._topics.clear()
            if self._groups_file is not None:
                self._groups_file.close()
                self._groups_file = None


class SqliteProducer:
    """Implements ``broker.log.Producer``; with ``handle`` it is exclusive, and closing it lets the name go."""

    def __init__(self, directory: Path, max_pages: int, durable: bool = False, handle: int = -1) -> None:
        self._directory, self._max_pages, self._durable, self._handle = directory, max_pages, durable, handle
        self._files: dict[str, TopicFile] = {}
        self._rows: dict[str, list[Row]] = {}
        self._order: list[tuple[str, int]] = []
        self._positions: dict[int, Position] = {}
        self._bytes = 0

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        file = self._file(topic)
        if len(value) > MAX_RECORD_BYTES:
            raise LogError(f"a record of {len(value)} bytes for {topic}; at most {MAX_RECORD_BYTES} fit")
        chosen = partition_of(key, file.spec.partitions) if partition is None else partition
        if not 0 <= chosen < file.spec.partitions:
            raise LogError(f"{topic} has no partition {chosen}; it has {file.spec.partitions}")
        rows = self._rows.setdefault(topic, [])
        rows.append((chosen, key, value))
        self._order.append((topic, len(self._order)))
        self._bytes += len(value)
        if self._bytes > IN_FLIGHT_BYTES:
            self._write()

    def flush(self) -> list[Position]:
        self._write()
        positions = [self._positions[number] for number in sorted(self._positions)]
        self._positions, self._order = {}, []
        return positions

    def _write(self) -> None:
        """Append what is buffered, a topic at a time. What fails stays buffered."""
        for topic in list(self._rows):
            numbers = [n for t, n in self._order if t == topic and n not in self._positions]
            for number, position in zip(numbers, self._file(topic).append(self._rows[topic]), strict=True):
                self._positions[number] = position
            self._bytes -= sum(len(value) for _, _, value in self._rows.pop(topic))

    def _file(self, topic: str) -> TopicFile:
        if topic not in self._files:
            self._files[topic] = TopicFile(self._directory, topic, self._durable, self._max_pages)
        return self._files[topic]

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class SqliteReader:
    """Implements ``broker.log.Reader``."""

    def __init__(self, directory: Path, topic: str, offsets: Mapping[int, int]) -> None:
        self._file = TopicFile(directory, topic)
        self._offsets = self._file.begins()
        self._seen = -1
        self._first = 0
        self.seek(offsets)

    def seek(self, offsets: Mapping[int, int]) -> None:
        unknown = offsets.keys() - self._offsets.keys()
        if unknown:
            raise LogError(f"{self._file.name} has no partition {min(unknown)}")
        self._offsets.update(offsets)
        self._seen = -1

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        return wait_for(lambda: self._read(max_records), timeout)

    def _read(self, max_records: int) -> list[Record]:
        version = self._file.version()
        if version == self._seen:
            return []
        out: list[Record] = []
        partitions = list(self._offsets)
        for i in range(len(partitions)):  # begin with another partition each time, so that none is starved
            partition = partitions[(self._first + i) % len(partitions)]
            room = max_records - len(out)
            if room <= 0:
                break
            records = self._file.read(partition, self._offsets[partition], room, POLL_BYTES)
            if records:
                self._offsets[partition] = records[-1].offset + 1
                out.extend(records)
        self._first += 1
        if not out:
            self._seen = version
        return out

    def get(self, positions: Sequence[Position]) -> list[Record]:
        return self._file.get(positions)

    def offsets(self) -> dict[int, int]:
        return dict(self._offsets)

    def close(self) -> None:
        self._file.close()


class SqliteConsumer:
    """Implements ``broker.log.Consumer``: membership is renewed by ``poll``; a member that stays away loses its partitions."""

    def __init__(self, directory: Path, topics: Sequence[str], group: str, member: str, lease: float) -> None:
        self._files = {topic: TopicFile(directory, topic) for topic in topics}
        self._partitions = {topic: file.spec.partitions for topic, file in self._files.items()}
        self._groups = GroupsFile(directory)
        self._group, self._member, self._lease = group, member, lease
        self._token = uuid.uuid4().hex
        self._offsets: dict[tuple[str, int], int] = {}
        self._seen: dict[str, int] = {}
        self._due = 0.0
        self._first = 0
        self._lost = False
        self._beat()

    def _beat(self) -> None:
        """Renew the lease, and take over or give up partitions as members have come and gone."""
        now = time.monotonic()
        if now < self._due or self._lost:
            return
        if self._offsets and not self._groups.holds(self._group, self._member, self._token):
            self._lost, self._offsets = True, {}
            raise LogError(
                f"member {self._member!r} of group {self._group!r} was taken over by a newer process of that name"
            )
        members = self._groups.beat(self._group, self._member, self._token, list(self._files), self._lease)
        self._due = now + self._lease / 5
        held = share(members, self._member, self._partitions)
        self._offsets = {part: offset for part, offset in self._offsets.items() if part in held}
        for topic in {topic for topic, p in held if (topic, p) not in self._offsets}:
            committed, begins = self._groups.committed(self._group, topic), self._files[topic].begins()
            for name, p in held:
                if name == topic and (name, p) not in self._offsets:
                    self._offsets[name, p] = max(committed.get(p, 0), begins[p])
            self._seen.pop(topic, None)

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        self._beat()
        if max_records <= 0:
            return []
        return wait_for(lambda: self._read(max_records), timeout)

    def _read(self, max_records: int) -> list[Record]:
        self._beat()
        out: list[Record] = []
        versions = {topic: file.version() for topic, file in self._files.items()}
        parts = [part for part in sorted(self._offsets) if self._seen.get(part[0]) != versions[part[0]]]
        for i in range(len(parts)):
            topic, partition = parts[(self._first + i) % len(parts)]
            room = max_records - len(out)
            if room <= 0:
                return out
            records = self._files[topic].read(partition, self._offsets[topic, partition], room, POLL_BYTES)
            if records:
                self._offsets[topic, partition] = records[-1].offset + 1
                out.extend(records)
        self._first += 1
        if not out:
            self._seen.update(versions)
        return out

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        if offsets and not self._lost:
            self._groups.commit(self._group, self._member, self._token, offsets, self._partitions)

    def assignment(self) -> frozenset[tuple[str, int]]:
        return frozenset(self._offsets)

    def close(self) -> None:
        if not self._lost:
            self._groups.leave(self._group, self._member, self._token)
        self._groups.close()
        for file in self._files.values():
            file.close()


def wait_for(read: Callable[[], list[Record]], timeout: float) -> list[Record]:
    """Call ``read`` until it gives something or ``timeout`` seconds are over, with short naps that grow."""
    deadline = time.monotonic() + timeout
    nap, longest = NAP_SECONDS
    while True:
        out = read()
        left = deadline - time.monotonic()
        if out or left <= 0:
            return out
        time.sleep(min(nap, left))
        nap = min(nap * 1.5, longest)
