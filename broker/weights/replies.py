"""The answers of an epoch's members on the control road: acknowledgements, failures, absences."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from broker.control.server import Member
from broker.control.wire import Message
from broker.errors import WeightPushError
from broker.weights.sink import Push

LOOK_SECONDS = 0.25  # after this much silence, check whether the awaited members are still alive
WORD_SECONDS = 3.0  # how long members of a failed epoch have to show that they are alive


class Words:
    """Collects the answers to one push at a time from the queue ``acks``."""

    def __init__(self, acks: queue.SimpleQueue[Message]) -> None:
        self._acks = acks
        self._epoch = 0
        self._early: deque[Message] = deque()  # answers taken from the queue before anybody waited for them
        self._heard: set[str] = set()  # members that have answered anything since the push began

    def begin(self) -> None:
        """Begin a push: drop earlier answers, which belong to other pushes."""
        self._heard.clear()
        self._early.clear()
        while not self._acks.empty():
            self._acks.get()

    def follow(self, epoch: int) -> None:
        """Ignore the answers of any other epoch from now on."""
        self._epoch = epoch

    def acknowledged(
        self, members: Sequence[Member], push: Push, limit: float, lives: Callable[[Member], bool] = lambda member: True
    ) -> list[str]:
        """Wait up to ``limit`` seconds for all ``members`` to confirm the push; returns the names of those that did not, sorted.

        Stops early once none of the missing ones ``lives``. Raises WeightPushError if one failed, or reports another checksum than the others.
        """
        by_name, held = {m.name: m for m in members}, {"bytes": push.checksum}
        missing = set(by_name)
        for ack in self._coming(limit):
            if ack is None:
                if not any(lives(by_name[name]) for name in missing):
                    break
                continue
            if ack.get("what") == "push" and ack.get("version") == push.version:
                if not ack.get("ok"):
                    raise WeightPushError(f"{ack.get('name')}: {ack.get('error')}")
                kind, _, checksum = str(ack.get("checksum") or f"on disk:{push.version}").rpartition(":")
                if held.setdefault(kind or "bytes", checksum) != checksum:
                    raise WeightPushError(f"{ack.get('name')} holds {checksum}, not {held[kind or 'bytes']}")
                missing.discard(str(ack.get("name")))
            if not missing:
                break
        return sorted(missing)

    def silent(self, members: Iterable[Member], lives: Callable[[Member], bool] = lambda member: True) -> list[str]:
        """Names of the members of a failed epoch that answered nothing; waits ``WORD_SECONDS`` at most, and only for those that ``lives``."""
        members = list(members)
        names = {m.name for m in members}
        if names - self._heard:
            for _ in self._coming(WORD_SECONDS):
                if not {m.name for m in members if lives(m)} - self._heard:
                    break
        return sorted(names - self._heard)

    def away(self) -> str:
        """The reason given by a member that cannot take part; empty if there is none. Does not wait."""
        while not self._acks.empty():
            ack = self._acks.get()
            if self._concerns(ack):
                self._early.append(ack)
                if ack.get("receives") is False:
                    return f"{ack.get('name')} is away: {ack.get('error')}"
        return ""

    def _coming(self, limit: float) -> Iterator[Message | None]:
        """Yield the answers of this epoch for ``limit`` seconds, and None every ``LOOK_SECONDS`` without one."""
        while self._early:
            yield self._early.popleft()
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0:
            try:
                ack = self._acks.get(timeout=min(left, LOOK_SECONDS))
            except queue.Empty:
                yield None
                continue
            if self._concerns(ack):
                yield ack

    def _concerns(self, ack: Message) -> bool:
        """Whether an answer belongs to this epoch; if so, marks its sender as heard."""
        if ack.get("epoch") != self._epoch:
            return False
        self._heard.add(str(ack.get("name")))
        return True
