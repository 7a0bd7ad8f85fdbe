"""The protocol of environments. An environment is the other side of a conversation: it opens an episode, gets each reply, and answers or ends it.

A class with its options as fields, in the shape of a rewarder. An instance is made for each episode, in a process of its own kind
(``actors/rooms.py``): if it is slow, hangs, crashes or uses too much memory, that ends its own episode as an error, and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.errors import EnvironmentFault
from broker.messages import ChatMessage, Prompt

MAX_CHARACTERS = 1 << 20  # of a turn: who samples must not be held up by what no context can hold


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
    value), ``why`` a sentence for people. ``value`` is what the reply that was just heard is worth by itself, beside the outcome.
    ``tools`` are OpenAI-style schemas for the chat template, in the opening turn only.
    """

    messages: tuple[ChatMessage, ...] = ()
    over: bool = False
    outcome: float | None = None
    why: str = ""
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    value: float | None = None
    asked: Asked | None = None


def say(text: str, outcome: float | None = None, role: str = "user", value: float | None = None) -> Turn:
    """A turn with one message."""
    return Turn((ChatMessage(role, text),), outcome=outcome, value=value)


def over(outcome: float | None = None, why: str = "", value: float | None = None) -> Turn:
    """The end of an episode."""
    return Turn(over=True, outcome=outcome, why=why, value=value)


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
    if (length := sum(len(text) for _, text in messages)) > MAX_CHARACTERS:
        raise EnvironmentFault(f"gave {length} characters in a turn; at most {MAX_CHARACTERS} are read")
    messages = [[_text(role), _text(text)] for role, text in messages]
    return {
        "messages": messages, "over": bool(turn.over), "outcome": _number("outcome", turn.outcome), "why": _text(str(turn.why)[:500]),
        "tools": _tools(turn.tools), "value": _number("value", turn.value),
    }  # fmt: skip


def _text(text: str) -> str:
    """What no record can carry (a lone surrogate) is replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _tools(tools: Any) -> list[dict[str, Any]]:
    try:
        return [dict(json.loads(json.dumps(t))) for t in tools]
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvironmentFault(f"gave tools {tools!r:.100}; they must be what JSON can say: {error}") from error


def _number(name: str, given: Any) -> float | None:
    if given is None:
        return None
    try:
        number = float(given)
    except (TypeError, ValueError) as error:
        raise EnvironmentFault(f"gave {name} {given!r:.100}; it must be a finite number") from error
    if not math.isfinite(number):
        raise EnvironmentFault(f"gave {name} {given}; it must be a finite number")
    return number


def unpack(wire: Mapping[str, Any]) -> Turn:
    messages = tuple(ChatMessage(role, text) for role, text in wire["messages"])
    return Turn(messages, wire["over"], wire["outcome"], wire["why"], tuple(wire["tools"]), wire["value"])
