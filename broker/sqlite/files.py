"""SQLite files shared by processes: connections, the write lock, and the meaning of SQLite's errors.

SQLite before 3.51.3 can lose a commit when a checkpoint resets the write-ahead file beside another connection's commit. An
flock around every write, and around every close (which checkpoints too), keeps the two apart. Local filesystems only.
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
    """One connection to one SQLite file. Opened by the process that uses it, never carried through a fork."""

    def __init__(self, path: Path, durable: bool = False, max_pages: int = 0) -> None:
        """``durable``: a commit survives a power cut too (fsync each); otherwise it survives the end of any process."""
        self.path, self.lock = path, path.with_suffix(".lock")
        self._lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self.errors(), self.locked():
                self.db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                self.db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: it can give free pages back
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
        """One transaction: all of the block or nothing of it."""
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
        """Carry out one statement, in a transaction of its own, to its end: ``execute`` takes one step of those that give empty rows."""
        with self.errors(), self.locked():
            self.db.executescript(statement)

    def checkpoint(self) -> bool:
        """Bring the write-ahead file into the database and empty it; False while a reader keeps it from that."""
        with self.errors(), self.locked():
            self.db.execute("PRAGMA busy_timeout=0")
            try:
                (busy, _, _) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self.db.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        return not busy

    def vacuum(self) -> None:
        """Rewrite the file whole, as one that can give room back. Holds the lock for as long as that takes."""
        with self.errors(), self.locked():
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's errors as the log's: a full disk, a log that is away for now, or one that is damaged."""
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
