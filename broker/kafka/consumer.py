"""Members of consumer groups: static, cooperative, without automatic commits, each with its own thread.

The thread keeps the membership alive while the owner works. It reads ahead up to a limit, and then pauses.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from broker.errors import LogError, LogUnavailable, MemberReplaced, OffsetExpired
from broker.kafka.faults import TOO_OLD, translated
from broker.kafka.opening import closed_on_failure, opened
from broker.kafka.reader import Silence, consumer_settings, record_of
from broker.kafka.settings import KafkaSettings
from broker.log import First, Record

log = logging.getLogger("log")
SESSION_SECONDS = 6.0  # a member silent for this long is dropped: the minimum that brokers allow by default
AHEAD_RECORDS, AHEAD_BYTES = 256, 16 << 20  # limits of reading ahead of the owner
SLICE_SECONDS = 0.05  # length of one poll by the thread, and so the longest that a commit waits for its turn
JOIN_SECONDS = 5.0  # how long joining waits for a first assignment
COMMIT_SECONDS = 10.0
CHECK_SECONDS = 5.0  # interval between questions to the broker whether this member still belongs to the group
NAME = re.compile(r"[^A-Za-z0-9._-]")
Part = tuple[str, int]


class Groups(Protocol):
    """Queries about a group that a member's own connection does not answer."""

    def members(self, group: str) -> frozenset[str]: ...

    def holder(self, group: str, instance: str) -> str: ...

    def leave(self, group: str, instance: str) -> None: ...


class LogConsumer:
    """Implements ``broker.log.Consumer``. ``poll`` raises MemberReplaced once a newer process has joined under this member's name.

    ``groups`` lists the members of a group and removes one: closing the client alone would leave a static member's place taken.
    A client can lose its place without noticing and keep reading outside its group, so the thread asks the broker every
    ``CHECK_SECONDS``.
    """

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], group: str, member: str,
        begins: Callable[[str], dict[int, int]], groups: Groups, first: First | None = None,
    ) -> None:  # fmt: skip
        self._first = first
        self._group, self._instance, self._begins, self._groups = group, NAME.sub("_", member), begins, groups
        self._settings, self._topics = settings, topics
        self._silence = Silence(settings)
        self._changed = threading.Condition()
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._held: frozenset[Part] = frozenset()
        self._commit: dict[Part, int] | None = None
        self._failure: BaseException | None = None
        self._closing = self._fenced = self._joined = False
        self._checked, self._missed, self._taken = time.monotonic(), 0, 0
        self._consumer: Any = self._open()  # None from the loss of its place until it has joined again
        self._thread = threading.Thread(target=self._run, name=f"member of {group}", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._joined or self._failure is not None, JOIN_SECONDS)

    def _open(self) -> KafkaConsumer:
        with translated(f"joining group {self._group}"):
            consumer = opened(
                KafkaConsumer, **consumer_settings(self._settings), group_id=self._group, group_instance_id=self._instance,
                partition_assignment_strategy=[CooperativeStickyAssignor], session_timeout_ms=int(SESSION_SECONDS * 1000),
                heartbeat_interval_ms=1500,
            )  # fmt: skip
            with closed_on_failure(consumer):
                for topic in self._topics:  # a group leader that does not know the partitions yet would assign none
                    consumer.partitions_for_topic(topic)
                consumer.subscribe(list(self._topics), listener=_Moves(self))
        return consumer

    # -- for the owner -------------------------------------------------------------------------------------------------

    def poll(self, max_records: int = 64, timeout: float = 0.0) -> list[Record]:
        with self._changed:
            if max_records > 0 and not self._records and timeout > 0:
                self._changed.wait_for(lambda: self._records or self._failure is not None or self._fenced, timeout)
            self._raise()
            if self._fenced:
                raise MemberReplaced(self._instance, self._group)
            taken = [self._records.popleft() for _ in range(min(max_records, len(self._records)))]
            self._bytes -= sum(len(r.value) for r in taken)
            return taken

    def commit(self, offsets: Mapping[Part, int]) -> None:
        with self._changed:
            wanted = {part: offset for part, offset in offsets.items() if part in self._held}
            if not wanted or self._fenced:
                return
            self._commit = wanted
            if not self._changed.wait_for(lambda: self._commit is None or self._failure is not None, COMMIT_SECONDS):
                self._commit = None
                raise LogUnavailable(f"group {self._group} could not commit within {COMMIT_SECONDS:.0f} s")
            self._raise()

    def _raise(self) -> None:
        """Raise the thread's last failure, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def assignment(self) -> frozenset[Part]:
        with self._changed:
            return frozenset() if self._fenced else self._held

    def close(self) -> None:
        with self._changed:
            self._closing = True
        self._thread.join(10)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing and not self._fenced:
            try:
                with translated(f"reading as a member of {self._group}"):
                    self._turn()
            except (LogError, OSError) as error:
                self._fail(error)
                time.sleep(0.2)
            except BaseException as error:
                self._fail(error)
                break
        try:
            with translated(f"leaving group {self._group}"):
                if self._consumer is not None:
                    if self._commit is not None:
                        self._commit_now()
                    self._consumer.close(autocommit=False, timeout_ms=1000)
                if not self._fenced:
                    self._groups.leave(self._group, self._instance)
        except (LogError, RuntimeError) as error:  # not needed: the broker ends the session after SESSION_SECONDS
            log.info("%s", error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _turn(self) -> None:
        if self._consumer is None:
            self._consumer = self._open()
        if self._commit is not None:
            self._commit_now()
        if time.monotonic() - self._checked > CHECK_SECONDS:
            self._check_place()
        with self._changed:
            enough = len(self._records) >= AHEAD_RECORDS or self._bytes >= AHEAD_BYTES
        self._pause(enough)
        try:
            batches = self._consumer.poll(int(SLICE_SECONDS * 1000), AHEAD_RECORDS)
        except errors.NoOffsetForPartitionError:
            return self._from_the_beginning()
        except errors.OffsetOutOfRangeError:
            return self._expired()
        except errors.FencedInstanceIdError:
            self._fence()
            return None
        except TOO_OLD:  # the next poll joins again
            return None
        records = [record_of(r) for batch in batches.values() for r in batch]
        if records:
            self._silence.heard()
            self._take(records)
        elif not enough:
            self._silence.check(self._consumer)
        return None

    def _fence(self) -> None:
        """A newer process has this member's name: stop reading; the owner's next ``poll`` raises MemberReplaced."""
        with self._changed:
            self._fenced = True
            self._changed.notify_all()

    def _check_place(self) -> None:
        """Ask the broker who has this member's name. Fence if it is another process, join again if it is nobody, each after two such answers
        in a row. Joining again drops what was read ahead: other members get it now."""
        self._checked = time.monotonic()
        try:
            holder = self._groups.holder(self._group, self._instance)
        except LogUnavailable:
            return  # an unreachable broker tells us nothing about this member's place
        listed = bool(holder)
        mine = str(self._consumer.group_metadata().member_id)
        self._taken = self._taken + 1 if listed and holder != mine else 0
        if self._taken > 1:  # the client keeps joining under a name that another process now holds
            self._fence()
            return
        self._missed = 0 if listed else self._missed + 1
        if self._missed > 1:
            log.warning("%s lost its place in group %s, and joins it again", self._instance, self._group)
            self._missed = 0
            self._moved([TopicPartition(*part) for part in self._held], ())
            lost, self._consumer = self._consumer, None
            lost.close(autocommit=False, timeout_ms=1000)
            self._consumer = self._open()  # the next turn tries again if this fails

    def _take(self, records: list[Record]) -> None:
        with self._changed:
            self._records.extend(r for r in records if (r.topic, r.partition) in self._held)
            self._bytes = sum(len(r.value) for r in self._records)
            self._changed.notify_all()

    def _pause(self, pause: bool) -> None:
        """Pause or resume all assigned partitions. A paused partition returns no records, but polling keeps the membership alive."""
        paused = self._consumer.paused()
        if pause:
            self._consumer.pause(*(self._consumer.assignment() - paused))
        elif paused:
            self._consumer.resume(*paused)

    def _commit_now(self) -> None:
        with self._changed:
            wanted, held = dict(self._commit or {}), self._held
        offsets = {TopicPartition(*p): OffsetAndMetadata(o, "", -1) for p, o in wanted.items() if p in held}
        try:
            if offsets:
                self._consumer.commit(offsets, timeout_ms=int(COMMIT_SECONDS * 1000))
        except errors.FencedInstanceIdError:
            self._fenced = True
        except TOO_OLD:  # the place was lost: another member does this work again
            pass
        with self._changed:
            self._commit = None
            self._changed.notify_all()

    def _from_the_beginning(self) -> None:
        """Seek partitions that have no committed offset to the first record that is needed, by default the oldest."""
        for part in self._consumer.assignment():
            if self._consumer.committed(part) is None and self._unplaced(part):
                first = self._first(part.topic).get(part.partition, 0) if self._first is not None else 0
                self._consumer.seek(part, max(first, self._begins(part.topic)[part.partition]))

    def _unplaced(self, part: TopicPartition) -> bool:
        try:
            return self._consumer.position(part, 0) is None
        except errors.NoOffsetForPartitionError:
            return True

    def _expired(self) -> None:
        """Raises OffsetExpired if retention has removed records that this group has not read, else LogError."""
        for part in self._consumer.assignment():
            committed = self._consumer.committed(part)
            begin = self._begins(part.topic)[part.partition]
            if committed is not None and committed < begin:
                raise OffsetExpired(part.topic, part.partition, committed, begin)
        raise LogError(f"group {self._group} has a position that its topic does not have")

    def _moved(self, gone: Iterable[Any], come: Iterable[Any]) -> None:
        """Update the assignment, and drop what was read ahead from lost partitions: other members get it now."""
        with self._changed:
            lost = {(p.topic, p.partition) for p in gone}
            self._held = (self._held - lost) | {(p.topic, p.partition) for p in come}
            self._records = deque(r for r in self._records if (r.topic, r.partition) not in lost)
            self._bytes = sum(len(r.value) for r in self._records)
            self._joined = True
            self._changed.notify_all()


class _Moves(ConsumerRebalanceListener):
    def __init__(self, owner: LogConsumer) -> None:
        self._owner = owner

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._owner._moved(revoked, ())

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._owner._moved((), assigned)

    def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        self._owner._moved(lost, ())
