"""Follows the ``policy`` topic for the location of the newest published weights, and the learner's address."""

from __future__ import annotations

from broker.errors import DecodeError
from broker.log import Log
from broker.messages import PolicyVersion, decode
from broker.topics import Topics


class PolicyFollower:
    """``poll`` returns a newer record than the last, if there is one."""

    def __init__(self, log: Log, topics: Topics) -> None:
        self._reader = log.reader(topics.policy)

    def poll(self, timeout: float) -> PolicyVersion | None:
        newest: PolicyVersion | None = None
        for record in self._reader.poll(256, timeout):
            try:
                message = decode(record.value)
            except DecodeError:
                continue
            if isinstance(message, PolicyVersion):
                newest = message
        return newest

    def close(self) -> None:
        self._reader.close()
