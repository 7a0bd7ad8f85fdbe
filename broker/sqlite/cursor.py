"""A reader's position in each partition of one topic, and the next records there."""

from __future__ import annotations

from collections.abc import Mapping

from broker.errors import OffsetExpired
from broker.log import Record
from broker.sqlite.topic import TopicFile

POLL_BYTES = 32 << 20  # one poll returns at most this much, plus one record


class Cursor:
    """``offsets`` has the next offset of each partition that is read. If nothing is new, a read costs one query,
    however many there are."""

    def __init__(self, file: TopicFile, offsets: Mapping[int, int]) -> None:
        self.file = file
        self.offsets = dict(offsets)
        self._seen = -1  # the version of the file that ``_bounds`` describes
        self._bounds: dict[int, tuple[int, int]] = {}
        self._behind = False  # whether a limit, not the end of the topic, ended the last read
        self._first = 0

    def move(self, offsets: Mapping[int, int]) -> None:
        """Read exactly these partitions from now on, from these offsets."""
        self.offsets = dict(offsets)
        self._seen = -1

    def read(self, max_records: int, max_bytes: int = POLL_BYTES) -> list[Record]:
        """The next records, in order within a partition. After an error the next call reads them again. Raises OffsetExpired."""
        try:
            return self._read(max_records, max_bytes)
        except BaseException:
            self._seen = -1
            raise

    def _read(self, max_records: int, max_bytes: int) -> list[Record]:
        version = self.file.version()
        if version == self._seen and not self._behind:
            return []
        if version != self._seen:
            self._seen, self._bounds = version, self.file.bounds()
        out: list[Record] = []
        moved: dict[int, int] = {}
        size, self._behind = 0, False
        for partition in self._waiting():
            if len(out) >= max_records or size >= max_bytes:
                self._behind = True
                break
            offset, end = self.offsets[partition], self._bounds[partition][1]
            records = self.file.read(partition, offset, max_records - len(out), max_bytes - size)
            if records:
                moved[partition] = records[-1].offset + 1
                self._behind |= moved[partition] < end
                size += sum(len(record.value) for record in records)
                out.extend(records)
        self.offsets.update(moved)
        return out

    def _waiting(self) -> list[int]:
        """The partitions with something to read, beginning with a different one each time, so that none is starved.

        Raises OffsetExpired.
        """
        found = []
        for partition, offset in self.offsets.items():
            begin, end = self._bounds[partition]
            if offset < begin and not self.file.spec.compacted:
                raise OffsetExpired(self.file.name, partition, offset, begin)
            if offset < end:
                found.append(partition)
        self._first += 1
        cut = self._first % len(found) if found else 0
        return found[cut:] + found[:cut]
