"""What an environment is: the other side of a conversation. It opens an episode, hears each reply, and answers or ends it.

A class with its options as fields, in the shape of a rewarder. An instance is made for each episode, in a process of its own kind
(``actors/rooms.py``): it may be slow, hang, crash or eat memory, which ends its episode as an error and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.errors import EnvironmentFault
from broker.messages import ChatMessage, Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """What an agent outside asks beside its messages, which stand instead of the prompt's: in which ``session`` (``NAME``, from its second
    part on ``NAME#2``), for at most ``limit`` tokens (0: as sampling says), up to one of the texts ``stop``. ``earlier`` are the turns that
    the episode had in another actor (``actors.turns``)."""

    session: str
    limit: int = 0
    stop: tuple[str, ...] = ()
    earlier: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """What the environment says: ``messages`` for the model to answer, or that the episode is ``over``.

    ``outcome`` is what it is worth so far (the last one said counts; rewards are votes: ``rewarders.outcome:Outcome`` gives it as its
    value), ``why`` a sentence for people. ``tools`` are OpenAI-style schemas for the chat template, in the opening turn only.
    """

    messages: tuple[ChatMessage, ...] = ()
    over: bool = False
    outcome: float | None = None
    why: str = ""
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    asked: Asked | None = None


def say(text: str, outcome: float | None = None, role: str = "user") -> Turn:
    """A turn with one message."""
    return Turn((ChatMessage(role, text),), outcome=outcome)


def over(outcome: float | None = None, why: str = "") -> Turn:
    """The end of an episode."""
    return Turn(over=True, outcome=outcome, why=why)


class Environment(Protocol):
    """One episode's other side."""

    def open(self, prompt: Prompt, index: int) -> Turn:
        """What is said behind the prompt's messages before the model speaks: ``Turn()`` if nothing. ``index`` is the sample's."""

    def step(self, reply: str) -> Turn:
        """What is said to a reply."""


def pack(turn: Any) -> dict[str, Any]:
    """A turn for the wire between processes. Raises EnvironmentFault for what is no turn."""
    if not isinstance(turn, Turn):
        raise EnvironmentFault(f"gave {type(turn).__name__} where a Turn is expected")
    messages = [list(m) for m in turn.messages]
    if any(len(m) != 2 or not all(isinstance(x, str) for x in m) for m in messages):
        raise EnvironmentFault(f"gave messages {messages!r:.100}; they must be ChatMessage(role, text)")
    if turn.outcome is not None and not math.isfinite(turn.outcome):
        raise EnvironmentFault(f"gave outcome {turn.outcome}; it must be a finite number")
    outcome = None if turn.outcome is None else float(turn.outcome)
    return {"messages": messages, "over": bool(turn.over), "outcome": outcome, "why": str(turn.why)[:500], "tools": [dict(t) for t in turn.tools]}  # fmt: skip


def unpack(wire: Mapping[str, Any]) -> Turn:
    return Turn(
        tuple(ChatMessage(role, text) for role, text in wire["messages"]), wire["over"], wire["outcome"], wire["why"], tuple(wire["tools"])
    )  # fmt: skip
