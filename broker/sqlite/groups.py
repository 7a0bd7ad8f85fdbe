"""Consumer groups on the embedded log: members with leases, their share of the partitions, and committed offsets."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.errors import LogError, MemberReplaced
from broker.sqlite.files import LockedFile

Part = tuple[str, int]


class GroupsFile:
    """A connection to the file that holds all groups of one log."""

    def __init__(self, directory: Path) -> None:
        self._file = LockedFile(directory / "_groups.sqlite")
        with self._file.write() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS members (grp TEXT, member TEXT, token TEXT, topics TEXT, until REAL, PRIMARY KEY (grp, member))"
            )
            db.execute(
                "CREATE TABLE IF NOT EXISTS offsets (grp TEXT, topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (grp, topic, partition))"
            )

    def beat(
        self, group: str, member: str, token: str, topics: Sequence[str], lease: float, *, joining: bool
    ) -> list[tuple[str, str]]:
        """Renew (or take, ``joining``) a static member's place for ``lease`` seconds; returns the live members with their topics.

        The newest process of a static name owns the place: an older one finds its token replaced. Raises MemberReplaced then; an
        expired place is still its own.
        """
        now = time.time()
        with self._file.write() as db:
            db.execute("DELETE FROM members WHERE grp = ? AND until NOT BETWEEN ? AND ?", (group, *_live(now, lease)))
            held = db.execute("SELECT token FROM members WHERE grp = ? AND member = ?", (group, member)).fetchone()
            if held is not None and held[0] != token and not joining:
                raise MemberReplaced(member, group)
            db.execute(
                "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)",
                (group, member, token, json.dumps(list(topics)), now + lease),
            )
            return db.execute("SELECT member, topics FROM members WHERE grp = ? ORDER BY member", (group,)).fetchall()

    def leave(self, group: str, member: str, token: str) -> None:
        with self._file.write() as db:
            db.execute("DELETE FROM members WHERE grp = ? AND member = ? AND token = ?", (group, member, token))

    def commit(
        self, group: str, member: str, token: str, offsets: Mapping[Part, int], partitions: Mapping[str, int]
    ) -> None:
        """Commit the offsets of partitions that this member holds now, and ignore the others. No offset moves back.

        A lease that ran out takes nothing away before another member's ``beat`` gives it to somebody.
        """
        with self._file.write() as db:
            rows = db.execute("SELECT member, topics FROM members WHERE grp = ? ORDER BY member", (group,)).fetchall()
            mine = db.execute("SELECT token FROM members WHERE grp = ? AND member = ?", (group, member)).fetchone()
            if mine is None or mine[0] != token:
                return
            held = share(rows, member, partitions)
            db.executemany(
                "INSERT INTO offsets VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next = MAX(next, excluded.next)",
                [(group, topic, p, offset) for (topic, p), offset in offsets.items() if (topic, p) in held],
            )

    def committed(self, group: str, topic: str) -> dict[int, int]:
        with self._file.errors():
            return dict(
                self._file.db.execute(
                    "SELECT partition, next FROM offsets WHERE grp = ? AND topic = ?", (group, topic)
                ).fetchall()
            )

    def delete(self, groups: Sequence[str], lease: float) -> None:
        """Remove these groups, whose members renew their places for ``lease`` seconds. Raises LogError if one has a live member."""
        with self._file.write() as db:
            for group in groups:
                row = db.execute(
                    "SELECT member FROM members WHERE grp = ? AND until BETWEEN ? AND ?",
                    (group, *_live(time.time(), lease)),
                ).fetchone()
                if row is not None:
                    raise LogError(f"group {group} has a living member, {row[0]!r}: stop the run first")
            for table in ("members", "offsets"):
                db.executemany(f"DELETE FROM {table} WHERE grp = ?", [(group,) for group in groups])

    def groups(self) -> dict[str, tuple[str, ...]]:
        with self._file.errors():
            found: dict[str, set[str]] = {}
            for group, topic in self._file.db.execute("SELECT DISTINCT grp, topic FROM offsets"):
                found.setdefault(group, set()).add(topic)
            for group, topics in self._file.db.execute("SELECT grp, topics FROM members"):
                found.setdefault(group, set()).update(json.loads(topics))
        return {group: tuple(sorted(topics)) for group, topics in sorted(found.items())}

    def close(self) -> None:
        self._file.close()


def _live(now: float, lease: float) -> tuple[float, float]:
    """Between which times the leases of live members end. One that ends later is of a clock that has been set back since."""
    return now, now + 2 * lease


def share(members: Sequence[tuple[str, str]], member: str, partitions: Mapping[str, int]) -> frozenset[Part]:
    """The partitions that ``member`` holds: those of each topic are dealt in turn to the members that read it.

    ``members`` are names with their topics (JSON), in order; ``partitions`` has each topic's number of partitions.
    """
    held: set[Part] = set()
    for topic, count in partitions.items():
        readers = [name for name, topics in members if topic in json.loads(topics)]
        if member in readers:
            held.update((topic, p) for p in range(readers.index(member), count, len(readers)))
    return frozenset(held)
