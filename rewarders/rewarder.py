"""The interface of a rewarder: a class with options as fields and a call. Built-in rewarders and a user's own use the
same one.

``Reward`` is also what a judging process sends to its worker (``pack``, ``unpack``): a verdict has no other form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from broker.errors import MessageError, Outage
from broker.messages import Trajectory
from broker.verdicts import ValueSpan

__all__ = ["GroupRewarder", "Outage", "Reward", "Rewarder", "ValueSpan", "Verdict", "reward_of_verdict"]

WHY_CHARACTERS = 500
ANSWER_CHARACTERS = 1024
CAUSES = ("", "timeout", "killed")


@dataclass(frozen=True, slots=True)
class Reward:
    """A verdict: a finite value, and why (shown by ``headrace trace`` and the report).

    ``value`` may be any number, also one of numpy's or torch's. ``answer`` is the final answer in canonical form:
    samples with equal answers vote together in cons@k. ``cause`` is ``timeout`` or ``killed`` if the *answer* made the
    judge time out or die, so that wrong answers and bombs are counted separately. ``spans`` give single steps of the
    response values of their own, by token: ``(start, end, value)`` with ``start <= t < end``. ``logprobs`` is a
    teacher's verdict (see ``taught``). Text that no record can carry (lone surrogates) is replaced, and long text is
    cut.

    Raises MessageError, naming the field.
    """

    value: float
    why: str = ""
    answer: str = ""
    cause: str = ""
    spans: tuple[ValueSpan, ...] = ()
    logprobs: bytes = b""

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen
        put(self, "value", _number(self.value, "value"))
        put(self, "why", _text(self.why, WHY_CHARACTERS))
        put(self, "answer", _text(self.answer, ANSWER_CHARACTERS))
        if self.cause not in CAUSES:
            raise MessageError(f"reward cause is {self.cause!r}; it must be one of {CAUSES}")
        put(self, "spans", _spans(self.spans))
        put(self, "logprobs", _logprobs(self.logprobs))

    @classmethod
    def taught(cls, logprobs: Sequence[float] | NDArray[Any], why: str = "") -> Reward:
        """A teacher's verdict: its log-probability of each trainable token of the sample, in order ``[trainable tokens]``; the value is their mean."""
        array = np.asarray(logprobs, dtype="<f4")
        mean = float(array.mean(dtype=np.float64)) if array.size else 0.0
        return cls(mean, why, logprobs=_logprobs(array))

    def pack(self) -> dict[str, Any]:
        """The fields that are not empty, in types that msgpack can encode."""
        wire = {"value": self.value, "why": self.why, "answer": self.answer, "cause": self.cause}
        more = {"spans": [list(span) for span in self.spans], "logprobs": self.logprobs}
        return {name: value for name, value in {**wire, **more}.items() if value or name == "value"}

    @classmethod
    def unpack(cls, wire: Mapping[str, Any]) -> Reward:
        return cls(**wire)


Verdict: TypeAlias = Reward | float | None
"""What a rewarder may return: a Reward, a number, or None to abstain."""


class Rewarder(Protocol):
    """Judges one sample. Whatever it raises is an error, never a reward of 0.

    A rewarder that must check something before it may judge also has ``prepare()``, which is called once in each
    judging process and raises if the check fails (SandboxError: the daemon takes no samples, reports why, and tries
    again). ``warm_up()``, if there is one, is called once in each judging process before its first sample, to load what
    takes long.

    A rewarder that depends on a service raises ``Outage`` (or Python's own ConnectionError) if the service cannot be
    reached: the sample waits, and is judged once the service is back. A class attribute ``bounded = True`` says that
    the cost of a judgement is the answer's own doing: an answer that runs into the time-out or the memory bound at
    every attempt is then a wrong one (see ``on_timeout`` in the run file).
    """

    def __call__(self, sample: Trajectory) -> Verdict: ...


class GroupRewarder(Protocol):
    """Judges all samples of a group at once, for rewards that need a comparison (difficulty, diversity, tournaments).

    ``samples`` is the whole group in the order of its indices; as many verdicts are returned, in that order. Say ``per_group = True`` in a
    class of your own, or inherit it from here.
    """

    per_group: ClassVar[bool] = True

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Verdict]: ...


def reward_of_verdict(verdict: object) -> Reward | None:
    """``verdict`` as a Reward, None for an abstention. Raises MessageError for anything else."""
    if verdict is None or isinstance(verdict, Reward):
        return verdict
    try:
        return Reward(_number(verdict, "value"))
    except MessageError as error:
        if isinstance(verdict, int | float | np.generic):
            raise
        raise MessageError(
            f"returned {type(verdict).__name__}; return a number, Reward(value, why), or None to abstain"
        ) from error


def _number(value: Any, name: str) -> float:
    """A finite number of Python, numpy or torch, as a float."""
    shown = repr(value)[:80]
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise MessageError(f"reward {name} is {shown}; it must be a finite number")
    try:
        number = float(value)
    except (
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
    ) as error:  # an array of several, an int beyond all floats
        raise MessageError(f"reward {name} is {shown}; it must be a finite number") from error
    if not math.isfinite(number):
        raise MessageError(f"reward {name} is {shown}; it must be a finite number")
    return number


def _text(value: Any, limit: int) -> str:
    return str(value)[:limit].encode("utf-8", "replace").decode("utf-8")


def _spans(spans: Iterable[Any]) -> tuple[ValueSpan, ...]:
    found = []
    for span in spans:
        try:
            start, end, value = span
            found.append(ValueSpan(int(start), int(end), _number(value, "spans")))
        except (TypeError, ValueError) as error:
            raise MessageError(f"reward spans hold {span!r}; each must be (start, end, value)") from error
        if not 0 <= found[-1].start < found[-1].end:
            raise MessageError(f"reward spans hold {span!r}; a span must be 0 <= start < end")
    return tuple(found)


def _logprobs(given: bytes | NDArray[Any]) -> bytes:
    if isinstance(given, bytes):
        array = np.frombuffer(given, dtype="<f4") if len(given) % 4 == 0 else None
    else:
        array = np.asarray(given, dtype="<f4")
    if array is None or array.ndim != 1 or not np.isfinite(array).all() or (array > 1e-4).any():
        raise MessageError("reward logprobs must be one finite float32 <= 0 for each trainable token")
    return array.tobytes()
