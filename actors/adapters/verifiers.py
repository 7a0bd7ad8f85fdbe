"""Environments of the package ``verifiers`` (PyPI, 0.1.10 to 0.3), unchanged: single- and multi-turn, with tools.

The environment plays its own ``rollout``; what it takes for a model's client is this episode: it hands over the messages, and waits for the
reply. When the rollout is over its rubric says the outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.environment import Turn
from actors.tools import PARSERS, tagged
from broker import verifiers
from broker.errors import EnvironmentFault
from broker.messages import ChatMessage, Prompt
from broker.spelling import nearest

RAISED: contextvars.ContextVar[list[BaseException]] = contextvars.ContextVar("raised")


class _Raised(list[BaseException]):
    """Where watched functions leave what they raise: by episode, for they run side by side."""

    def append(self, error: BaseException) -> None:
        RAISED.get().append(error)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The one loop of this process that all of its episodes are played on."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="verifiers", daemon=True).start()
    return loop


@functools.cache
def _watched(named: str, arguments: str, base: Path) -> Any:
    found = verifiers.environment(named, json.loads(arguments), base, "[environments]")
    verifiers.watch(found.rubric, _Raised())
    return found


@dataclass
class VerifiersEnvironment:
    """``load`` is ``module:name``, ``file.py:name``, or the name of an installed environment; ``arguments`` go to what makes it. With
    ``score`` its rubric gives the outcome. ``parser`` is the format of the model's tool calls, ``role`` as whom results are said."""

    load: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    score: bool = True
    parser: str = "hermes"
    role: str = "tool"
    base: Path = Path()

    def __post_init__(self) -> None:
        if self.parser not in PARSERS:
            raise EnvironmentFault(
                f"parser {self.parser!r} is not one of {list(PARSERS)}{nearest(self.parser, list(PARSERS))}"
            )
        self._made = _watched(self.load, json.dumps(dict(self.arguments), sort_keys=True), self.base)
        self._said: queue.SimpleQueue[Turn | BaseException] = queue.SimpleQueue()
        self._heard = 0  # messages of the conversation that are known
        self._tools = False
        self._reply: asyncio.Future[str] | None = None
        self._playing: Any = None

    def open(self, prompt: Prompt, index: int) -> Turn:
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        self._heard = len(messages)
        given = {
            "prompt": messages, "answer": prompt.answer or "", "task": prompt.kind or "default", "example_id": prompt.number,
            **({"info": prompt.metadata["info"]} if prompt.metadata.get("info") else {}),
        }  # fmt: skip
        self._playing = asyncio.run_coroutine_threadsafe(self._play(given), _loop())
        return self._next()

    def step(self, reply: str) -> Turn:
        _loop().call_soon_threadsafe(self._take, reply)
        return self._next()

    def close(self) -> None:
        """Nobody plays on."""
        if self._playing is not None:
            self._playing.cancel()

    def _take(self, reply: str) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)

    def _next(self) -> Turn:
        said = self._said.get()
        if isinstance(said, BaseException):
            raise EnvironmentFault(f"{type(said).__name__}: {said}") from said
        return said

    async def _play(self, given: dict[str, Any]) -> None:
        """The whole episode, on the loop."""
        raised: list[BaseException] = []
        RAISED.set(raised)
        try:
            client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=self._create)))
            state = await self._made.rollout(given, client, "headrace", {})
            if state.get("error") is not None:
                raise state["error"].__cause__ or state["error"]
            outcome = None
            if self.score:
                await self._made.rubric.score_rollout(state)
                if raised:
                    raise raised[0]
                outcome = float(state["reward"])
            last = tuple(self._message(m) for m in state.get("final_env_response") or ())
            self._said.put(Turn(last, over=True, outcome=outcome, why=_metrics(state)))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a plug-in's: whatever it raises is this episode's end
            self._said.put(error)

    async def _create(self, *, messages: Sequence[Any], tools: Sequence[Any] | None = None, **rest: Any) -> Any:
        """What an OpenAI client would do: say ``messages``, hear the reply."""
        if len(messages) < self._heard:
            raise EnvironmentFault(
                f"it asks with {len(messages)} messages after {self._heard}: episodes whose past changes cannot be played"
            )
        new = tuple(self._message(m) for m in messages[self._heard :])
        schemas, self._tools = tuple(tools or ()) if self._reply is None else (), bool(tools)
        self._reply = asyncio.get_running_loop().create_future()
        self._said.put(Turn(new, tools=schemas))
        reply = await self._reply
        self._heard = len(messages) + 1
        return self._completion(reply)

    def _message(self, message: Mapping[str, Any]) -> ChatMessage:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        return ChatMessage(self.role if message["role"] == "tool" else message["role"], content or "")

    def _completion(self, reply: str) -> Any:
        from openai.types.chat import ChatCompletion

        calls = [c for c in PARSERS[self.parser](reply) if not c.error] if self._tools else []
        text = tagged(reply)[1].strip() if calls and self.parser == "hermes" else "" if calls else reply
        asked = [
            {"id": f"call_{uuid.uuid4().hex[:12]}", "type": "function",
             "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))}}
            for c in calls
        ]  # fmt: skip
        # an empty reply is the model's, and would be taken for a failure of the server
        message = {"role": "assistant", "content": text or (None if asked else " "), "tool_calls": asked or None}
        return ChatCompletion.model_validate(
            {"id": uuid.uuid4().hex, "object": "chat.completion", "created": int(time.time()), "model": "headrace",
             "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if asked else "stop"}]}
        )  # fmt: skip


def _metrics(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in (state.get("metrics") or {}).items())
