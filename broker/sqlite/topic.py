"""One topic: a SQLite file with its records, addressed by partition and offset."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from broker.errors import LogError, OffsetExpired
from broker.log import Record, TopicSpec
from broker.messages import Position
from broker.sqlite.files import LockedFile
from broker.sqlite.sweep import (
    FIRST_BYTES,
    FIRST_PAGES,
    SHIFT,
    begin_at,
    expired,
    free_pages,
    shrink,
    shrink_all,
    sweep,
    sweep_all,
)

log = logging.getLogger("log")
RETENTION_CHECK_SECONDS = 30.0  # time between two checks for expired records, over all producers together
RETENTION_PAUSE_SECONDS = 0.2  # pause before the next slice is removed, if one was not enough
RETENTION_ROWS = 1000  # how far one slice moves a partition's first offset
Row = tuple[int, bytes, bytes]  # partition, key, value


class TopicFile:
    """A connection to one topic. Raises LogError if the topic does not exist; ``create`` makes it."""

    def __init__(self, directory: Path, name: str, durable: bool = False, max_pages: int = 0) -> None:
        self.name = name
        path = directory / f"{name}.sqlite"
        if not path.exists():
            raise LogError(f"topic {name!r} does not exist in {directory}")
        self._file = LockedFile(path, durable, max_pages)
        with self._file.errors():
            row = self._file.db.execute("SELECT value FROM meta WHERE key = 'spec'").fetchone()
        if row is None:
            raise LogError(f"{path} holds no topic")
        self.spec = TopicSpec(**json.loads(row[0]))
        self.lock = self._file.lock
        self._retention_due = 0.0

    @staticmethod
    def create(directory: Path, spec: TopicSpec) -> None:
        """Create the topic, or check an existing one. Raises LogError if its settings would lose data."""
        file = LockedFile(directory / f"{spec.name}.sqlite")
        try:
            with file.write() as db:
                db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
                db.execute("CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, key BLOB, value BLOB, at REAL)")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS partitions (number INTEGER PRIMARY KEY, begin INTEGER, next INTEGER, bytes INTEGER)"
                )
                if spec.compacted:
                    db.execute("CREATE INDEX IF NOT EXISTS by_key ON records (key)")
                row = db.execute("SELECT value FROM meta WHERE key = 'spec'").fetchone()
                if row is None:
                    db.execute("INSERT INTO meta VALUES ('spec', ?)", (json.dumps(asdict(spec)),))
                    db.executemany("INSERT INTO partitions VALUES (?, 0, 0, 0)", [(p,) for p in range(spec.partitions)])
                else:
                    _check(TopicSpec(**json.loads(row[0])), spec)
        finally:
            file.close()

    def append(self, rows: Sequence[Row]) -> list[Position]:
        """Append all rows in one transaction; returns their positions. Raises LogUnavailable, LogFull, LogError."""
        with self._file.write() as db:
            now = time.time()
            ends = self._next(db, {partition for partition, _, _ in rows})
            grown: dict[int, int] = {}
            positions, values = [], []
            for partition, key, value in rows:
                offset = ends[partition]
                ends[partition] = offset + 1
                grown[partition] = grown.get(partition, 0) + len(value)
                positions.append(Position(partition, offset))
                values.append((partition << SHIFT | offset, key, value, now))
            db.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", values)
            db.executemany(
                "UPDATE partitions SET next = ?, bytes = bytes + ? WHERE number = ?",
                [(ends[p], size, p) for p, size in grown.items()],
            )
            if self.spec.compacted:
                for row_id, key, _, _ in values:
                    db.execute(
                        "DELETE FROM records WHERE key = ? AND id < ? AND id >= ?",
                        (key, row_id, row_id >> SHIFT << SHIFT),
                    )
        if time.monotonic() >= self._retention_due:
            self._retain(now)
        return positions

    def _next(self, db: sqlite3.Connection, partitions: set[int]) -> dict[int, int]:
        """The next offsets of these partitions; of all, by one query, if these are more than an eighth of all."""
        if len(partitions) * 8 > self.spec.partitions:
            return dict(db.execute("SELECT number, next FROM partitions").fetchall())
        one = "SELECT next FROM partitions WHERE number = ?"
        return {p: int(db.execute(one, (p,)).fetchone()[0]) for p in partitions}

    def _retain(self, now: float) -> None:
        """Remove one slice of what has expired. The first producer to append after the interval does it for all."""
        seconds, limit = self.spec.retention_seconds, self.spec.retention_bytes
        self._retention_due = time.monotonic() + RETENTION_CHECK_SECONDS
        if not seconds and not limit:
            return
        try:
            with self._file.write() as db:
                row = db.execute("SELECT value FROM meta WHERE key = 'retained'").fetchone()
                if row is not None and 0 <= now - float(row[0]) < RETENTION_CHECK_SECONDS:
                    return
                more = expired(db, now - seconds if seconds else 0.0, limit, RETENTION_ROWS)
                more |= sweep(db, FIRST_BYTES) > 0
                if not more:
                    db.execute("INSERT OR REPLACE INTO meta VALUES ('retained', ?)", (str(now),))
            free, pages = free_pages(self._file)
            if free > pages // 4:
                shrink(self._file, FIRST_PAGES)
        except LogError as error:  # what was appended is durable, and this can wait
            log.warning("%s keeps what has expired for now: %s", self.name, error)
            return
        if more:
            self._retention_due = time.monotonic() + min(RETENTION_CHECK_SECONDS, RETENTION_PAUSE_SECONDS)

    def trim(self, offsets: Mapping[int, int]) -> None:
        """Remove everything below these offsets at once; then return its space to the disk in slices, so that others
        can write in between."""
        with self._file.write() as db:
            for partition, offset in offsets.items():
                begin_at(db, partition, offset)
        sweep_all(self._file)
        with self._file.errors():
            shrink_all(self._file)

    def version(self) -> int:
        """A number that changes whenever another connection has committed (``PRAGMA data_version``)."""
        with self._file.errors():
            return int(self._file.db.execute("PRAGMA data_version").fetchone()[0])

    def read(self, partition: int, offset: int, limit: int, max_bytes: int) -> list[Record]:
        """Records of one partition from ``offset`` on: at most ``limit``, and no more once they have ``max_bytes``.

        Raises OffsetExpired if ``offset`` is gone, unless the topic is compacted.
        """
        low = partition << SHIFT
        out: list[Record] = []
        with self._file.errors():
            rows = self._file.db.execute(
                "SELECT id, key, value, at FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
                (low + offset, low + (1 << SHIFT), limit),
            )
            size = 0
            for row_id, key, value, at in rows:
                out.append(Record(self.name, partition, row_id - low, key, value, at))
                size += len(value)
                if size >= max_bytes:
                    rows.close()
                    break
        if not self.spec.compacted and (not out or out[0].offset != offset):
            begin = self.begins().get(partition, 0)
            if offset < begin:
                raise OffsetExpired(self.name, partition, offset, begin)
        return out

    def get(self, positions: Sequence[Position]) -> list[Record]:
        """The records at these positions. Raises OffsetExpired or LogError."""
        out = []
        with self._file.errors():
            for partition, offset in positions:
                row = self._file.db.execute(
                    "SELECT key, value, at FROM records WHERE id = ?", (partition << SHIFT | offset,)
                ).fetchone()
                if row is None:
                    begin = self.begins().get(partition, 0)
                    if offset < begin:
                        raise OffsetExpired(self.name, partition, offset, begin)
                    raise LogError(f"{self.name}[{partition}] has no record at offset {offset}")
                out.append(Record(self.name, partition, offset, *row))
        return out

    def bounds(self) -> dict[int, tuple[int, int]]:
        """The oldest and the next offset of every partition."""
        with self._file.errors():
            rows = self._file.db.execute("SELECT number, begin, next FROM partitions").fetchall()
        return {number: (begin, end) for number, begin, end in rows}

    def begins(self) -> dict[int, int]:
        with self._file.errors():
            return dict(self._file.db.execute("SELECT number, begin FROM partitions").fetchall())

    def ends(self) -> dict[int, int]:
        with self._file.errors():
            return dict(self._file.db.execute("SELECT number, next FROM partitions").fetchall())

    def close(self) -> None:
        self._file.close()


def _check(found: TopicSpec, wanted: TopicSpec) -> None:
    if found.partitions != wanted.partitions:
        raise LogError(
            f"topic {found.name!r} has {found.partitions} partitions, not {wanted.partitions}; set [broker] partitions = {found.partitions}"
        )
    if found.compacted != wanted.compacted:
        raise LogError(
            f"topic {found.name!r} is {'' if found.compacted else 'not '}compacted, which would lose or double records"
        )
    shorter = found.retention_seconds and (
        not wanted.retention_seconds or found.retention_seconds < wanted.retention_seconds
    )
    if shorter or (
        found.retention_bytes and (not wanted.retention_bytes or found.retention_bytes < wanted.retention_bytes)
    ):
        raise LogError(
            f"topic {found.name!r} keeps records for {found.retention_seconds} s / {found.retention_bytes} bytes, less than this run asks for"
        )
