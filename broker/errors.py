"""The errors of the project: one small tree, so that callers can catch exactly what they can handle."""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of everything this project raises on purpose."""


class RunFileError(HeadraceError):
    """The run file or a ``--set`` is wrong; the message names table, key, value and the fix (exit status 2)."""


class MessageError(HeadraceError, ValueError):
    """A record's fields are invalid; raised where the record is made."""


class DecodeError(HeadraceError):
    """Bytes that are no message. Carries them, so that they can be dead-lettered."""

    def __init__(self, reason: str, data: bytes) -> None:
        super().__init__(reason)
        self.reason = reason
        self.data = data


class LogError(HeadraceError):
    """The log cannot do what was asked."""


class LogUnavailable(LogError):
    """The log cannot be reached at present; worth trying again."""


class RecordTooLarge(LogError):
    """A record is larger than its topic allows; it was not taken, and never will be."""


class WriteInterrupted(LogUnavailable):
    """A write was given up because this process is to stop. Its records may be waiting in the producer still: whoever decided on them must decide
    on nothing else, or the log would get both."""


class LogUnsettled(LogError):
    """Only the log knows whether it took a record: this process must end, and the next one reads what the log has."""


class LogFull(LogError):
    """No space is left for the log; stop, free space, and resume."""


class OffsetExpired(LogError):
    """Retention has removed a position that is needed."""

    def __init__(self, topic: str, partition: int, offset: int, begin: int) -> None:
        super().__init__(
            f"{topic}[{partition}] offset {offset} has expired: the log begins at {begin}; "
            f"raise [broker] retention or start a new run"
        )
        self.topic, self.partition, self.offset, self.begin = topic, partition, offset, begin


class HeldByAnother(LogError):
    """Another live process owns something that may have only one owner (a run's learner)."""

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(f"{name} is held by {owner}")
        self.name, self.owner = name, owner


class MemberReplaced(HeldByAnother):
    """A newer process has joined a consumer group under the name of this member."""

    def __init__(self, member: str, group: str) -> None:
        super().__init__(
            f"the place of {member} in group {group}", "a newer process of that name; give each its own --name"
        )


class ControlError(HeadraceError):
    """The control road cannot be used as asked."""


class WeightPushError(HeadraceError):
    """A weight push did not reach a receiver whole."""


class EngineError(HeadraceError):
    """An engine refuses a request or has failed."""


class EnvironmentFault(HeadraceError):
    """An environment failed, or returned something that is no turn."""


class DataError(HeadraceError):
    """A data source cannot be read, or one of its rows is not what it should be."""


class DataAway(DataError):
    """The data is remote, and currently unavailable."""


class ChatError(HeadraceError):
    """A chat template refuses a conversation, or cannot hold it as it is."""


class CheckpointError(HeadraceError):
    """A checkpoint is missing or damaged."""


class Outage(HeadraceError):
    """Something that a plug-in needs (a server, a file, a device) is unavailable: there is no verdict yet, and waiting may help."""


class RunFault(HeadraceError):
    """The run cannot go on (exit status 3); the message is the one line that says why."""
