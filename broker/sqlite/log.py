"""The embedded log: one directory with one SQLite file per topic, shared by the processes of one machine. No daemon.

Flushed records survive the end of any process; those of an exclusive producer also survive a power cut. For several
machines use Kafka.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from broker.errors import HeldByAnother, LogError, RecordTooLarge, RunFileError
from broker.log import First, TopicSpec, limit_of, partition_of
from broker.messages import Position
from broker.sqlite.groups import GroupsFile
from broker.sqlite.reading import LEASE_SECONDS, SqliteConsumer, SqliteReader
from broker.sqlite.topic import Row, TopicFile

MAX_RECORD_BYTES = 16 << 20
IN_FLIGHT_BYTES = 64 << 20  # a producer that holds this much writes it before it takes more
PAGE_BYTES = 4096  # SQLite's default


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
        """The log at ``sqlite://DIRECTORY?max_mb=N``. A topic of N MiB is full: producers raise LogFull.

        Raises RunFileError for any other option.
        """
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

    def consumer(self, topics: Sequence[str], group: str, member: str, first: First | None = None) -> SqliteConsumer:
        return SqliteConsumer(self._directory, topics, group, member, self._lease, first)

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

    def delete(self, topics: Iterable[str], groups: Iterable[str]) -> None:
        with self._lock:
            self._groups().delete(list(groups), self._lease)
            for name in topics:
                if (file := self._topics.pop(name, None)) is not None:
                    file.close()
                for path in self._directory.glob(f"{name}.sqlite*"):
                    path.unlink(missing_ok=True)
                (self._directory / f"{name}.lock").unlink(missing_ok=True)

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
    """Implements ``broker.log.Producer``; with ``handle``, a locked file, it is exclusive until it is closed."""

    def __init__(self, directory: Path, max_pages: int, durable: bool = False, handle: int = -1) -> None:
        self._directory, self._max_pages, self._durable, self._handle = directory, max_pages, durable, handle
        self._files: dict[str, TopicFile] = {}
        self._rows: dict[str, list[Row]] = {}
        self._order: list[tuple[str, int]] = []
        self._positions: dict[int, Position] = {}
        self._bytes = 0

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        file = self._file(topic)
        if len(value) > (limit := limit_of(topic, MAX_RECORD_BYTES)):
            raise RecordTooLarge(f"a record of {len(value)} bytes for {topic}; at most {limit} fit")
        chosen = partition_of(key, file.spec.partitions) if partition is None else partition
        if not 0 <= chosen < file.spec.partitions:
            raise LogError(f"{topic} has no partition {chosen}; it has {file.spec.partitions}")
        if self._bytes >= IN_FLIGHT_BYTES:
            self._write()  # before the record is taken: a caller sends it again if this fails
        self._rows.setdefault(topic, []).append((chosen, key, value))
        self._order.append((topic, len(self._order)))
        self._bytes += len(value)

    def flush(self) -> list[Position]:
        self._write()
        positions = [self._positions[number] for number in sorted(self._positions)]
        self._positions, self._order = {}, []
        return positions

    def _write(self) -> None:
        """Append the buffered records, one topic at a time. After a failure, what is not appended stays buffered."""
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
