"""The OpenAI forms of requests and replies, and whether a request goes on with what its session has said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.tools import PARSERS
from headrace.serving.forms import (
    WRITERS,
    ApiError,
    Message,
    Reply,
    chunks,
    completion,
    is_same,
    parsed,
    read_request,
    said,
)
from headrace.serving.sessions import Book, Part

CALL = '<tool_call>\n{"name": "price", "arguments": {"item": "apple"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}


def turn(said_: list[tuple[str, str]], tools: list[Any] | None = None, finish: str = "stop") -> dict[str, Any]:
    return {
        "turns": [list(m) for m in said_], "tools": tools or [], "finish": finish, "text": said_[-1][1], "versions": [],
        "segments": [["prompt", 0, 5, False], ["assistant", 5, 8, True]],
    }  # fmt: skip


def asked(body: dict[str, Any]) -> tuple[Message, ...]:
    return read_request({"model": "m", **body}, "m", "s", "").messages


def of(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = completion(reply, "m")["choices"][0]
    return found


@pytest.mark.parametrize("parser", list(PARSERS))
def test_a_call_that_is_written_is_read_as_it_was(parser: str) -> None:
    calls = (("price", '{"item": "apple", "n": 2}'),)
    assert parsed(WRITERS[parser](calls), parser, True) == Message("assistant", "", calls)


def test_calls_go_out_in_openais_form_and_come_back_as_the_same_turn() -> None:
    text = f"Let me see.\n{CALL}"
    choice = of(Reply(text, "stop", 5, 3, 1, "s", True, "hermes"))
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see."
    assert call["function"] == {"name": "price", "arguments": '{"item": "apple"}'} and call["type"] == "function"
    part = Part(("g@0", 0))
    part.add(turn([("user", "An apple?"), ("assistant", text)], [TOOL]))
    back = [
        {"role": "user", "content": "An apple?"}, choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "3 crowns"},
    ]  # fmt: skip
    assert part.fit(asked({"messages": back}), [TOOL]) == "next"
    back[1] = {
        **choice["message"],
        "tool_calls": [{**call, "function": {"name": "price", "arguments": '{"item":"pear"}'}}],
    }
    assert part.fit(asked({"messages": back}), [TOOL]) == "edited", "the agent has changed what the model has said"
    assert part.fit(asked({"messages": back[:1]}), [TOOL]) == "again"
    assert part.fit(asked({"messages": back[:1]}), []) == "edited", "other tools are another prompt"


def test_a_past_that_was_edited_has_the_model_s_own_words_as_they_were_sampled() -> None:
    part = Part(("g@0", 0))
    part.add(turn([("user", "An apple?"), ("assistant", f"  Well.\n{CALL}")], [TOOL]))
    own = of(Reply(f"  Well.\n{CALL}", "stop", 5, 3, 1, "s", True, "hermes"))["message"]
    written = part.written(
        asked({"messages": [{"role": "user", "content": "Shorter"}, own, {"role": "user", "content": "?"}]})
    )
    assert [m.content for m in written] == ["Shorter", f"  Well.\n{CALL}", "?"]
    few_shot = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "function": {"name": "price", "arguments": "{}"}}],
    }
    (_, shot, _) = part.written(
        asked({"messages": [{"role": "user", "content": "a"}, few_shot, {"role": "user", "content": "b"}]})
    )
    assert shot.content == '<tool_call>\n{"name": "price", "arguments": {}}\n</tool_call>'


def test_what_is_no_call_is_text() -> None:
    broken = '<tool_call>{"name": 7}</tool_call>'
    choice = of(Reply(broken, "stop", 1, 1, 0, "s", True, "hermes"))
    assert choice["message"] == {"role": "assistant", "content": broken} and choice["finish_reason"] == "stop"
    assert of(Reply(CALL, "stop", 1, 1, 0, "s", False, "hermes"))["message"]["content"] == CALL, "nobody gave it tools"
    assert is_same(" text \n", Message("assistant", "text"), "hermes", False), "agents strip"


def test_a_stream_is_one_whole_piece() -> None:
    events = chunks(Reply(f"Yes.\n{CALL}", "stop", 5, 3, 1, "s", True, "hermes"), "m", True)
    assert events[-1] == "data: [DONE]\n\n"
    found = [json.loads(e.removeprefix("data: ")) for e in events[:-1]]
    delta = found[0]["choices"][0]["delta"]
    assert delta["content"] == "Yes." and delta["tool_calls"][0]["index"] == 0
    assert found[1]["choices"][0]["finish_reason"] == "tool_calls" and found[2]["usage"]["total_tokens"] == 8


def test_tool_choice_and_names_and_roles_are_read() -> None:
    body = {
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    }
    request = read_request(
        {**body, "tools": [TOOL], "tool_choice": "none", "user": "u1", "metadata": {"task": "t"}}, "m", "", ""
    )
    assert (
        request.messages == (Message("system", "ab"),)
        and request.tools == ()
        and (request.session, request.task) == ("u1", "t")
    )
    assert said(Message("tool", "3"), "hermes").role == "tool"
    for wrong in (
        {"tool_choice": "required"},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}]},
    ):
        with pytest.raises(ApiError):
            read_request({**body, **wrong}, "m", "", "")


def test_a_book_is_what_its_events_say() -> None:
    bound = {"group": "g@0", "index": 1, "task": "t", "open": True, "parser": "hermes", "purpose": "train", "environment": "agents", "mix": ["agent"]}  # fmt: skip
    book = Book()
    book.take("s", "bound", bound)
    assert book.labels == {"g@0": "t"} and ("g@0", 1) in book.playing
    book.take("s", "freed", {})
    assert not book.labels and not book.playing and not book.sessions["s"].parts
    book.take("s", "bound", bound)
    book.take("s", "turn", {"part": 0, "turn": turn([("user", "a"), ("assistant", "b")], finish="length")})
    assert book.sessions["s"].parts[0].closed == "length"
    book.take("s", "closed", {"part": 0, "why": "stop", "gone": ""})
    assert book.sessions["s"].parts[0].closed == "length", "the first reason holds"


@pytest.mark.parametrize(
    "field,value",
    [("temperature", float("inf")), ("temperature", 10**400), ("temperature", float("nan")), ("top_p", -(10**400))],
)
def test_a_number_that_no_float_holds_is_refused_by_name(field: str, value: float) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], field: value}
    with pytest.raises(ApiError, match=f"{field} = .*give a number from"):
        read_request(body, "m", "", "")


@pytest.mark.parametrize("calls", [5, True, "call me", {"function": {}}])
def test_tool_calls_that_are_no_list_are_refused_by_name(calls: object) -> None:
    past = {"role": "assistant", "content": None, "tool_calls": calls}
    body = {"model": "m", "messages": [past, {"role": "user", "content": "hi"}]}
    with pytest.raises(ApiError, match=r"messages\[0\].tool_calls = .*give a list of calls"):
        read_request(body, "m", "", "")
