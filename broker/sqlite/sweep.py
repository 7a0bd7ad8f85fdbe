"""Removes records below a partition's first offset and returns their space to the disk, in slices, so that others can
write in between.

A record is gone once ``partitions.begin`` is above it; its row and its pages are removed later. If a sweep is killed,
the next one continues it, because the file records what is left to remove.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable

from broker.sqlite.files import LockedFile

log = logging.getLogger("log")
SHIFT = 40  # a record's id is partition << 40 | offset: one clustered key, in order within a partition
SLICE_SECONDS = 0.05  # target for how long one slice holds the lock
FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 1 << 20, 1 << 18, 1 << 26
FIRST_PAGES, LEAST_PAGES, MOST_PAGES = 256, 16, 1 << 14
PAUSE_SECONDS = 0.01  # minimum pause between two slices: longer than the longest nap of those who wait for the lock
TRUNCATE_SECONDS = 2.0  # how long to wait for readers to leave the write-ahead file
INCREMENTAL = 2  # value of ``PRAGMA auto_vacuum`` for a file that can give its free pages back


def begin_at(db: sqlite3.Connection, partition: int, offset: int) -> None:
    """Move the partition's first offset up to ``offset``, at most to its end: everything below is gone from now on."""
    db.execute(
        "UPDATE partitions SET begin = MIN(next, ?) WHERE number = ? AND begin < MIN(next, ?)",
        (offset, partition, offset),
    )


def expired(db: sqlite3.Connection, before: float, limit: int, rows: int) -> bool:
    """Move each partition's first offset past records older than ``before`` (seconds since the epoch), and past its
    oldest records while it has more than ``limit`` bytes (0: no limit), but by at most ``rows`` offsets.

    Reads at most one record more than that. Returns whether more may have expired.
    """
    more = False
    for partition, begin, end, size in db.execute("SELECT number, begin, next, bytes FROM partitions").fetchall():
        low, over, to = partition << SHIFT, size - limit if limit else 0, begin
        for row_id, at, length in db.execute(
            "SELECT id, at, LENGTH(value) FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (low + begin, low + end, rows + 1),
        ):
            if at >= before and over <= 0:
                break
            if row_id - low - begin >= rows:
                more = True
                break
            to, over = row_id - low + 1, over - length
        begin_at(db, partition, to)
    return more


def sweep(db: sqlite3.Connection, most: int) -> int:
    """Remove rows below the first offsets, about ``most`` bytes of them; returns how many, 0 if none are left."""
    removed = 0
    for partition, begin in db.execute("SELECT number, begin FROM partitions WHERE begin > 0").fetchall():
        low, last, size = partition << SHIFT, -1, 0
        for row_id, length in db.execute(
            "SELECT id, LENGTH(key) + LENGTH(value) + 16 FROM records WHERE id >= ? AND id < ? ORDER BY id",
            (low, low + begin),
        ):
            last, size = row_id, size + length
            if removed + size >= most:
                break
        if last >= 0:
            (values,) = db.execute(
                "SELECT SUM(LENGTH(value)) FROM records WHERE id >= ? AND id <= ?", (low, last)
            ).fetchone()
            db.execute("DELETE FROM records WHERE id >= ? AND id <= ?", (low, last))
            db.execute("UPDATE partitions SET bytes = bytes - ? WHERE number = ?", (values, partition))
            removed += size
        if removed >= most:
            break
    return removed


def free_pages(file: LockedFile) -> tuple[int, int]:
    """The number of free pages in the file, and of all its pages."""
    (free,), (all_,) = (file.db.execute(f"PRAGMA {what}").fetchone() for what in ("freelist_count", "page_count"))
    return int(free), int(all_)


def shrink(file: LockedFile, pages: int) -> int:
    """Return up to ``pages`` free pages of the file to the disk; returns how many there were."""
    before, _ = free_pages(file)
    if before:
        file.script(f"PRAGMA incremental_vacuum({pages});")
    return before - free_pages(file)[0]


def sweep_all(file: LockedFile) -> None:
    """Remove everything below the first offsets, slice by slice."""

    def work(most: int) -> int:
        with file.write() as db:
            return sweep(db, most)

    _in_slices(work, FIRST_BYTES, LEAST_BYTES, MOST_BYTES)


def shrink_all(file: LockedFile) -> None:
    """Return the free pages to the disk, slice by slice. For a file of an older version, which cannot, log a warning
    with the cure."""
    (kind,) = file.db.execute("PRAGMA auto_vacuum").fetchone()
    if kind == INCREMENTAL:
        _in_slices(lambda pages: shrink(file, pages), FIRST_PAGES, LEAST_PAGES, MOST_PAGES)
    elif (free := free_pages(file)[0]) > FIRST_PAGES:
        log.warning(
            "%s has %d MB free inside, which new records fill before the file grows again; it was made by an older version, so the disk gets "
            "them back only by `python -m broker.sqlite.vacuum %s` while the run is stopped",
            file.path, free * 4096 >> 20, file.path.parent,
        )  # fmt: skip
    deadline = time.monotonic() + TRUNCATE_SECONDS
    while not file.checkpoint() and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)


def _in_slices(work: Callable[[int], int], first: int, least: int, most: int) -> None:
    """Call ``work``, which takes the lock itself, until it returns 0. Its argument, between ``least`` and ``most``, is
    adapted so that a call takes about SLICE_SECONDS."""
    amount = first
    while True:
        started = time.monotonic()
        if not work(amount):
            return
        took = time.monotonic() - started
        if took > SLICE_SECONDS:
            amount = max(least, amount // 2)
        elif took < SLICE_SECONDS / 2:
            amount = min(most, amount * 2)
        time.sleep(max(PAUSE_SECONDS, took))
