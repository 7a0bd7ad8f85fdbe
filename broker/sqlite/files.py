"""SQLite files shared by processes: connections, the write lock, and the translation of SQLite's errors.

SQLite before 3.51.3 can lose a commit if a checkpoint resets the write-ahead file while another connection commits. An
flock around every write, and around every close (which also checkpoints), keeps the two apart. Local file systems only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from broker.errors import LogError, LogFull, LogUnavailable
from broker.sqlite.arrival import announce
from broker.sqlite.flock import held

BUSY_SECONDS = 30.0
FREE_BYTES = 1 << 20  # an I/O error on a disk with less free space than this means that the disk is full


class LockedFile:
    """One connection to one SQLite file. Every process opens its own; it must not be used across a fork."""

    def __init__(self, path: Path, durable: bool = False, max_pages: int = 0) -> None:
        """``durable``: each commit is fsynced and survives a power cut; else it survives only the end of any process.

        ``max_pages`` limits the size of the file, in pages (0: no limit). Raises LogUnavailable, LogFull, LogError.
        """
        self.path, self.lock = path, path.with_suffix(".lock")
        self._lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self.errors(), self.locked():
                self.db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                self.db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # new files only: lets them return free pages
                self.db.execute("PRAGMA journal_mode=WAL")
                self.db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self.db.execute("PRAGMA journal_size_limit=67108864")
                if max_pages:
                    self.db.execute(f"PRAGMA max_page_count={max_pages}")
        except BaseException:
            os.close(self._lock)
            raise

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return held(self._lock, self.path)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of the block is committed or nothing. Raises LogUnavailable, LogFull, LogError."""
        with self.errors(), self.locked():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
                announce(self._lock)
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def script(self, statement: str) -> None:
        """Run one statement to its end, in a transaction of its own. ``execute`` would run only the first step of one
        that returns empty rows."""
        with self.errors(), self.locked():
            self.db.executescript(statement)

    def checkpoint(self) -> bool:
        """Move the write-ahead file's content into the database; returns False if a reader prevents that."""
        with self.errors(), self.locked():
            self.db.execute("PRAGMA busy_timeout=0")
            try:
                (busy, _, _) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self.db.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        return not busy

    def vacuum(self) -> None:
        """Rewrite the whole file, so that it can return free pages to the disk. Holds the lock all the time."""
        with self.errors(), self.locked():
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Translate SQLite's errors: LogFull (no space), LogUnavailable (waiting may help), LogError (damaged)."""
        try:
            yield
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            io_error = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
            if code == sqlite3.SQLITE_FULL or (io_error and shutil.disk_usage(self.path.parent).free < FREE_BYTES):
                raise LogFull(f"no space for {self.path}: free some and start again ({error})") from error
            raise LogUnavailable(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise LogError(f"{self.path} is damaged or no log: {error}") from error

    def close(self) -> None:
        if self._lock >= 0:
            with self.errors(), self.locked():
                self.db.close()
            os.close(self._lock)
            self._lock = -1
