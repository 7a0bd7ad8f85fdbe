"""The OpenAI formats: reads and checks what an agent asks, and writes replies and errors.

Fields that would change the sampling must agree with the trainer's, or the request is refused: a token that is trained on has the
probability that it was drawn with. Fields that do not affect sampling are ignored.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.tools import PARSERS, tagged
from broker.errors import HeadraceError
from broker.messages import ChatMessage
from broker.sessions import NAME

ROLES = ("system", "developer", "user", "assistant", "tool")
OFF: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
    "seed": (), "functions": ([],), "function_call": ("none",), "modalities": (["text"],), "audio": (), "prediction": (),
    "response_format": ({"type": "text"},), "tool_choice": ("auto", "none"), "top_k": (-1, 0), "min_p": (0,), "repetition_penalty": (1,),
}  # fmt: skip
"""Fields that would change what is sampled, with the values that change nothing."""
HIGHEST = 1e6
"""No number of a request is meant beyond this; JSON may say Infinity, or more digits than a float has room for."""


class ApiError(HeadraceError):
    """An answer in OpenAI's error shape; the message names field, value and cure."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Message:
    """One message in one form: ``calls`` are an assistant's tool calls, (name, arguments as canonical JSON)."""

    role: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that can be served. ``temperature`` and ``top_p`` are None where the agent leaves them to the trainer."""

    messages: tuple[Message, ...]
    session: str
    task: str
    tools: tuple[Mapping[str, Any], ...]
    limit: int
    stop: tuple[str, ...]
    temperature: float | None
    top_p: float | None
    stream: bool
    usage: bool


def refuse(field: str, value: object, cure: str, code: str | None = None) -> ApiError:
    return ApiError(f"{field} = {_shown(value)}: {cure}", param=field, code=code)


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=True)
    return text if len(text) <= 120 else f"{text[:120]}..."


def read_request(body: Any, model: str, session: str, task: str) -> ChatRequest:
    """``session`` and ``task`` are what the request's address and headers say; else they are looked for in it. Raises ApiError."""
    if not isinstance(body, dict):
        raise ApiError('the body must be a JSON object, such as {"model": ..., "messages": [...]}', code="invalid_body")
    asked = body.get("model", model)
    if asked not in (model, "headrace"):
        raise ApiError(
            f"model = {_shown(asked)}: this run serves {model!r}", status=404, param="model", code="model_not_found"
        )
    for field, neutral in OFF.items():
        value = body.get(field)
        if value is not None and value not in neutral:
            raise refuse(field, value, _cure(field), "unsupported_value")
    given = body.get("metadata") or {}
    if not isinstance(given, dict):
        raise refuse("metadata", given, "give an object with texts")
    session = session or _name(given.get("session") or body.get("user") or "", "metadata.session")
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(_is_tool(t) for t in tools):
        raise refuse(
            "tools", tools, 'give a list of {"type": "function", "function": {"name": ..., "parameters": {...}}}'
        )
    options = body.get("stream_options") or {}
    return ChatRequest(
        _messages(body.get("messages")), session, task or _name(given.get("task") or "", "metadata.task"),
        () if body.get("tool_choice") == "none" else tuple(tools), _limit(body), _stops(body.get("stop")),
        _number(body, "temperature", 0.0, math.inf), _number(body, "top_p", 1e-9, 1.0), body.get("stream") is True,
        isinstance(options, dict) and options.get("include_usage") is True,
    )  # fmt: skip


def _cure(field: str) -> str:
    if field == "n":
        return "a session has one reply a turn; open several sessions of one task for several samples"
    return "samples are drawn as the trainer draws them; leave it out"


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or (value and not NAME.fullmatch(value)):
        raise refuse(field, value, f"give a name like {NAME.pattern}")
    return value


def read_name(value: Any, field: str) -> str:
    """A name of a session or task, or the empty text. Raises ApiError."""
    return _name(value, field)


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _limit(body: Mapping[str, Any]) -> int:
    for field in ("max_completion_tokens", "max_tokens"):
        value = body.get(field)
        if value is not None:
            if type(value) is not int or value < 1:
                raise refuse(field, value, "give a number of tokens, at least 1")
            return value
    return 0


def _stops(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list) or len(found) > 16 or not all(isinstance(s, str) and s for s in found):
        raise refuse("stop", value, "give a text, or a list of at most 16 texts that are not empty")
    return tuple(found)


def _number(body: Mapping[str, Any], field: str, least: float, most: float) -> float | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= min(most, HIGHEST):
        raise refuse(field, value, f"give a number from {least:g} to {most:g}")
    return float(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise refuse("messages", value, "give a list of at least one message")
    found = tuple(_message(m, f"messages[{i}]") for i, m in enumerate(value))
    if found[-1].role == "assistant":
        raise refuse(
            "messages", value[-1], "the last message is the assistant's own; say something to it", "last_message"
        )
    return found


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise refuse(where, value, 'give an object with "role" and "content"')
    role = value.get("role")
    if role not in ROLES:
        raise refuse(f"{where}.role", role, f"use one of {', '.join(ROLES)}")
    asked = value.get("tool_calls") or []
    if not isinstance(asked, list):
        raise refuse(f"{where}.tool_calls", asked, "give a list of calls")
    calls = tuple(_call(c, f"{where}.tool_calls") for c in asked) if role == "assistant" else ()
    return Message("system" if role == "developer" else role, _text(value.get("content"), where), calls)


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in value):
            raise refuse(f"{where}.content", value, "only parts of type text can be read here")
        value = "".join(p["text"] for p in value)
    if not isinstance(value, str):
        raise refuse(f"{where}.content", value, "give a text")
    if value.encode("utf-8", "replace").decode("utf-8") != value:
        raise refuse(f"{where}.content", value, "it holds half a character (a lone surrogate); give whole ones")
    return value


def _call(value: Any, where: str) -> tuple[str, str]:
    try:
        function = value["function"]
        return str(function["name"]), canonical(json.loads(function["arguments"] or "{}"))
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise refuse(
            where, value, f"give calls as they came: a function with name and arguments as JSON ({error})"
        ) from error


def canonical(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True, ensure_ascii=False, default=str)


# -- replies -----------------------------------------------------------------------------------------------------------


def parsed(text: str, parser: str, tools: bool) -> Message:
    """A reply as the agent sees it: with ``tools``, the calls that it asks for apart from the rest. One that cannot be read is text."""
    calls = list(PARSERS[parser](text)) if tools else []
    if not calls or any(call.error for call in calls):
        return Message("assistant", text)
    rest = tagged(text)[1].strip() if parser == "hermes" else ""
    return Message("assistant", rest, tuple((c.name, canonical(c.arguments)) for c in calls))


def is_same(text: str, message: Message, parser: str, tools: bool) -> bool:
    """Whether ``message`` is what the reply ``text`` was given out as, or the reply itself."""
    if message.role != "assistant":
        return False
    if not message.calls and message.text.strip() == text.strip():
        return True
    own = parsed(text, parser, tools)
    return own.calls == message.calls and own.text.strip() == message.text.strip()


WRITERS = {
    "hermes": lambda calls: "\n".join(f'<tool_call>\n{{"name": {json.dumps(n)}, "arguments": {a}}}\n</tool_call>' for n, a in calls),
    "llama3": lambda calls: "; ".join(f'{{"name": {json.dumps(n)}, "parameters": {a}}}' for n, a in calls),
    "pythonic": lambda calls: "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in json.loads(a).items())})" for n, a in calls) + "]",
}  # fmt: skip
"""How the calls of a message that the model has not said itself are written, by the format that it was taught."""


def said(message: Message, parser: str, tool_role: str = "tool") -> ChatMessage:
    """A message as the chat template takes it."""
    if message.role == "tool":
        return ChatMessage(tool_role, message.text)
    written = WRITERS[parser](message.calls) if message.calls else ""
    return ChatMessage(
        message.role, "\n".join(part for part in (message.text, written) if part) if written else message.text
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to an agent: the model's ``text`` in ``session``; the numbers are tokens, ``version`` the newest policy in it."""

    text: str
    finish: str
    prompt_tokens: int
    tokens: int
    version: int
    session: str
    tools: bool
    parser: str


def completion(reply: Reply, model: str) -> dict[str, Any]:
    """The body of a chat completion."""
    message, finish = _of_reply(reply)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": _usage(reply), "headrace": {"session": reply.session, "version": reply.version},
    }  # fmt: skip


def _of_reply(reply: Reply) -> tuple[dict[str, Any], str]:
    found = parsed(reply.text, reply.parser, reply.tools)
    message: dict[str, Any] = {"role": "assistant", "content": found.text or (None if found.calls else "")}
    if found.calls:
        message["tool_calls"] = [
            {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": n, "arguments": a}}
            for n, a in found.calls
        ]
    return message, "tool_calls" if found.calls and reply.finish == "stop" else reply.finish


def _usage(reply: Reply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}


def chunks(reply: Reply, model: str, usage: bool) -> list[str]:
    """The same as server-sent events: the reply is one piece, because it is stored before any of it is sent."""
    message, finish = _of_reply(reply)
    for place, call in enumerate(message.get("tool_calls", ())):
        call["index"] = place
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time()), "model": model,
    }  # fmt: skip
    first = {**head, "choices": [{"index": 0, "delta": message, "finish_reason": None}]}
    last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    events: Sequence[Any] = [first, last, *([{**head, "choices": [], "usage": _usage(reply)}] if usage else [])]
    return [*(f"data: {json.dumps(e, ensure_ascii=False)}\n\n" for e in events), "data: [DONE]\n\n"]
