"""The embedded log's readers, and its members of consumer groups."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.errors import LogError, MemberReplaced
from broker.log import First, Record
from broker.messages import Position
from broker.sqlite.arrival import Arrivals, wait_for
from broker.sqlite.cursor import POLL_BYTES, Cursor
from broker.sqlite.groups import GroupsFile, share
from broker.sqlite.topic import TopicFile

LEASE_SECONDS = 5.0


class SqliteReader:
    """Implements ``broker.log.Reader``."""

    def __init__(self, directory: Path, topic: str, offsets: Mapping[int, int]) -> None:
        self._file = TopicFile(directory, topic)
        self._cursor = Cursor(self._file, self._file.begins())
        self._arrivals = Arrivals([self._file.lock])
        self.seek(offsets)

    def seek(self, offsets: Mapping[int, int]) -> None:
        unknown = offsets.keys() - self._cursor.offsets.keys()
        if unknown:
            raise LogError(f"{self._file.name} has no partition {min(unknown)}")
        self._cursor.move({**self._cursor.offsets, **offsets})
        self._arrivals.stir()

    def poll(self, max_records: int = 256, timeout: float = 0.0) -> list[Record]:
        return wait_for(lambda: self._cursor.read(max_records), timeout, self._arrivals)

    def get(self, positions: Sequence[Position]) -> list[Record]:
        return self._file.get(positions)

    def offsets(self) -> dict[int, int]:
        return dict(self._cursor.offsets)

    def close(self) -> None:
        self._arrivals.close()
        self._file.close()


class SqliteConsumer:
    """Implements ``broker.log.Consumer``. ``poll`` renews the membership; a member that does not poll within ``lease``
    seconds loses its partitions. ``poll`` raises MemberReplaced once a newer process has joined under this member's name."""

    def __init__(
        self, directory: Path, topics: Sequence[str], group: str, member: str, lease: float, first: First | None = None
    ) -> None:
        self._begin = first
        self._cursors = {topic: Cursor(TopicFile(directory, topic), {}) for topic in topics}
        self._partitions = {topic: cursor.file.spec.partitions for topic, cursor in self._cursors.items()}
        self._arrivals = Arrivals(cursor.file.lock for cursor in self._cursors.values())
        self._groups = GroupsFile(directory)
        self._group, self._member, self._lease = group, member, lease
        self._token = uuid.uuid4().hex
        self._due = 0.0
        self._first = 0
        self._joined = self._lost = False
        self._beat()

    def _beat(self) -> None:
        """Renew the lease, and take or give up partitions as members come and go. Raises MemberReplaced."""
        now = time.monotonic()
        if now < self._due and not self._lost:
            return
        try:
            members = self._groups.beat(
                self._group, self._member, self._token, list(self._cursors), self._lease, joining=not self._joined
            )
        except MemberReplaced:
            self._lost = True
            for cursor in self._cursors.values():
                cursor.move({})
            raise
        self._joined = True
        self._due = now + self._lease / 5
        held = share(members, self._member, self._partitions)
        for topic, cursor in self._cursors.items():
            mine = {p for name, p in held if name == topic}
            if mine != cursor.offsets.keys():
                first = self._beginnings(topic) if mine - cursor.offsets.keys() else {}
                cursor.move({p: cursor.offsets.get(p, first.get(p, 0)) for p in sorted(mine)})
                self._arrivals.stir()

    def _beginnings(self, topic: str) -> dict[int, int]:
        """The offset at which this member begins each partition of ``topic`` that it newly holds."""
        committed, begins = self._groups.committed(self._group, topic), self._cursors[topic].file.begins()
        first = self._begin(topic) if self._begin is not None and begins.keys() - committed.keys() else {}
        return {p: max(committed.get(p, first.get(p, 0)), begin) for p, begin in begins.items()}

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        self._beat()
        if max_records <= 0:
            return []
        return wait_for(lambda: self._read(max_records), timeout, self._arrivals)

    def _read(self, max_records: int) -> list[Record]:
        self._beat()  # also during a long wait, which reads at least every LOOK_SECONDS
        out: list[Record] = []
        size = 0
        cursors = list(self._cursors.values())
        for i in range(len(cursors)):  # begin with a different topic each time, so that none is starved
            if len(out) >= max_records or size >= POLL_BYTES:
                break
            cursor = cursors[(self._first + i) % len(cursors)]
            try:
                records = cursor.read(max_records - len(out), POLL_BYTES - size)
            except LogError:  # what other topics gave is not to be lost; a later poll raises it
                if not out:
                    raise
                break
            size += sum(len(record.value) for record in records)
            out.extend(records)
        self._first += 1
        return out

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        if offsets and not self._lost:
            self._groups.commit(self._group, self._member, self._token, offsets, self._partitions)

    def assignment(self) -> frozenset[tuple[str, int]]:
        return frozenset((topic, p) for topic, cursor in self._cursors.items() for p in cursor.offsets)

    def close(self) -> None:
        if not self._lost:
            self._groups.leave(self._group, self._member, self._token)
        self._groups.close()
        self._arrivals.close()
        for cursor in self._cursors.values():
            cursor.file.close()
