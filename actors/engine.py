"""The protocol of engines. An engine samples from a policy, and its weights can be replaced while it does.

Two implementations under one contract suite: the local engine (torch, this process) and SGLang servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from actors.slots import Pressure
from broker.messages import FloatArray, IntArray, Sampling, VersionSpan
from broker.weights.sink import WeightSink

UpdateMode = Literal["retract", "in_place", "abort"]


@dataclass(frozen=True, slots=True)
class Request:
    """Sample ``indices`` of group ``group_id``: all share the prompt ``tokens`` (int32 ``[P]``).

    ``keep``: weights that arrive do not end these samples; under ``abort`` they are treated as under ``retract``.
    """

    group_id: str
    indices: tuple[int, ...]
    tokens: IntArray
    sampling: Sampling
    min_version: int = 0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample: response ``tokens`` int32 ``[R]`` and behaviour ``logprobs`` float32 ``[R]`` (end token included).

    ``versions`` have starts counted from the first response token. ``text`` has neither end token nor stop string.
    ``finish_reason`` is ``stop``, ``length``, ``abort`` (partial: the worker asks for the sample again), or ``refused`` (it
    can never be served; ``text`` says why).
    """

    group_id: str
    index: int
    tokens: IntArray
    logprobs: FloatArray
    versions: tuple[VersionSpan, ...]
    finish_reason: str
    text: str
    started: float
    cached: int = 0
    """Prompt tokens that were not computed for this sample: another with the same beginning had them computed."""


class Engine(Protocol):
    """Samples. Driven by one thread; weights arrive through ``sink`` from another."""

    name: str
    """What trajectories record, e.g. ``local/0.1.0``."""

    tokenizer: Any
    """The model's, as transformers loads it."""

    ends: frozenset[int]
    """The token ids that end a reply."""

    @property
    def failure(self) -> str:
        """Why it will never sample again; empty while it may."""

    @property
    def version(self) -> int:
        """The policy version that is being sampled from; -1 while there are no weights."""

    @property
    def sinks(self) -> Mapping[str, WeightSink]:
        """Where the weight road delivers, by name: one for each set of weights that the engine holds."""

    def check(self, sampling: Sampling) -> None:
        """Raises EngineError, with the engine's own words, for parameters that it would refuse."""

    def room(self) -> int:
        """How many more samples it could take on without queueing them for long."""

    def pressure(self) -> Pressure:
        """How hard it is pressed now, for each of ``sinks`` alike."""

    def hold(self, slots: int) -> None:
        """Have ``room`` go by this many samples in flight for each of ``sinks``."""

    def submit(self, request: Request) -> None:
        """Queue one group. Raises EngineError if it can never be served (prompt too long, token out of range)."""

    def cancel(self, group_id: str) -> None:
        """Forget what is queued or running for this group; nothing of it is returned any more."""

    @property
    def resting(self) -> bool:
        """Whether it samples nothing because the devices are the learner's."""

    def rest(self) -> None:
        """Sample nothing more and give the device memory back, until ``wake``. Requests are queued meanwhile; what was under way goes on
        afterwards by the update mode. Each of ``sinks`` can do it alone. Raises WeightPushError if a server refuses."""

    def wake(self, version: int = -1, patience: float = 0.0) -> None:
        """Take the device memory back and sample: from ``version`` on, or after ``patience`` seconds from the weights that are held."""

    def poll(self, timeout: float) -> list[Completion]:
        """Work for about ``timeout`` seconds or until samples are finished, and return these."""

    def close(self) -> None: ...
