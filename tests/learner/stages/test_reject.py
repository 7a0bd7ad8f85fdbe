"""What rejection sampling keeps of a group, which rule each of the others falls to, and the table of what was kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.messages import ChatMessage, Position, Prompt, Sampling, Segment, Trajectory, VersionSpan, Vote
from learner.data.files import read_table
from learner.data.tables import TableDocuments
from learner.planning.groups import Group
from learner.stages.reject import RejectStage, _document, statistics, table_lines


def group(*texts: str, finish: str = "stop", votes: float | None = 1.0) -> Group:
    """A group of samples that say ``texts``, a token a character, each with the same vote on it."""
    asked = (ChatMessage("user", "?"),)
    made = Group(Prompt("g-0@c", asked, len(texts), kind="sums", rewards={"accuracy": 1.0}), Position(0, 0), 0.0)
    for index, text in enumerate(texts):
        size = len(text)
        sample = Trajectory(
            "g-0@c", index, len(texts), asked, None, "sums", {}, {"accuracy": 1.0}, "collect", text,
            np.zeros(1 + size, np.int32), np.zeros(1 + size, np.float32),
            (Segment("prompt", 0, 1, False), Segment("assistant", 1, 1 + size, True)), (VersionSpan(0, 1),), finish, Sampling(),
        )  # fmt: skip
        made.add_sample(sample, Position(0, index))
        if votes is not None:
            made.add_vote(Vote("g-0@c", index, "accuracy", "value", votes), Position(0, index))
    return made


@pytest.mark.parametrize(
    ("options", "text", "why"),
    [
        ({}, "fine", ""),
        ({}, "  ", "empty"),
        ({"max_tokens": 3}, "four", "too long"),
        ({"code": False}, "so ```x```", "code block"),
        ({"max_paragraph": 5}, "ab\n\nabcdef", "long paragraph"),
        ({"max_paragraph": 6}, "ab\n\nabcdef", ""),
        ({"ngram": 2}, "la la la la la", "repetition"),
        ({"ngram": 2, "max_repetition": 1.0}, "la la la la la", ""),
        ({"max_foreign": 0.4}, "so \u0438 so \u0438", "mixed languages"),
        ({"max_foreign": 0.5}, "so \u0438 so \u0438", ""),
        ({}, "so \u0438 so \u0438", ""),
    ],
)
def test_an_answer_falls_to_the_first_rule_that_it_breaks(options: dict[str, Any], text: str, why: str) -> None:
    stage = RejectStage(kind="reject", name="r", **options)
    kept, reasons = stage.chosen(group(text))
    assert (len(kept), dict(reasons)) == ((0, {why: 1}) if why else (1, {}))


def test_what_is_wrong_unjudged_unfinished_or_said_twice_is_left_out() -> None:
    stage = RejectStage(kind="reject", name="r", keep=2, prefer_short=True)
    assert dict(stage.chosen(group("a", votes=0.5))[1]) == {"accuracy below 1": 1}
    assert dict(stage.chosen(group("a", votes=None))[1]) == {"not judged by accuracy": 1}
    assert dict(stage.chosen(group("a", finish="length"))[1]) == {"unfinished": 1}
    kept, reasons = stage.chosen(group("longest one", "a  b", "a b", "long one"))
    assert [s.text for s in kept] == ["a  b", "long one"] and dict(reasons) == {"twice": 1, "more than asked": 1}


def test_a_document_is_written_as_its_prompt_was_and_an_episode_with_all_its_turns(tmp_path: Path) -> None:
    made = group("<think>no</think>4")
    made.prompt = replace(made.prompt, template={"enable_thinking": False})
    sample, position = made.samples[0]
    said = (("assistant", "3?"), ("user", "higher"), ("assistant", "4"), ("user", "well done"))
    turns = tuple(ChatMessage(*turn) for turn in said)
    episode = Group(made.prompt, Position(0, 1), 0.0)
    episode.add_sample(replace(sample, text="3?4", turns=turns, environment="higher"), position)
    rows = [_document(found.samples[0][0], found) for found in (made, episode)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TableDocuments(read_table(str(tmp_path / "rows.jsonl")), "rows.jsonl")
    plain, spoken = source.document(0, 1.0), source.document(1, 1.0)
    assert plain.template == {"enable_thinking": False} and [m.content for m in plain.messages] == ["?", sample.text]
    assert spoken.messages == (ChatMessage("user", "?"), *turns[:3]) and spoken.trained == ()


def test_the_table_has_documents_rounds_and_tokens_of_each_domain_and_of_all() -> None:
    def row(kind: str, tokens: int, turns: int = 1) -> dict[str, Any]:
        messages = [{"role": "user"}, {"role": "assistant"}] * (turns - 1) + [{"role": "user"}]
        return {"kind": kind, "messages": messages, "metadata": {"tokens": tokens}}

    found = statistics([row("math", 10), row("math", 20), row("general", 6, 3), row("", 4)])
    assert found == {
        "general": {"documents": 1.0, "rounds_mean": 3.0, "tokens_mean": 6.0},
        "math": {"documents": 2.0, "rounds_mean": 1.0, "tokens_mean": 15.0},
        "other": {"documents": 1.0, "rounds_mean": 1.0, "tokens_mean": 4.0},
        "total": {"documents": 4.0, "rounds_mean": 1.5, "tokens_mean": 10.0},
    }
    assert [line.split() for line in table_lines(found)][2] == ["math", "2", "1.0", "15.0"]
    assert statistics([]) == {} and len(table_lines({})) == 1
