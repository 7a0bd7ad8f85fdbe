"""Answers written anew: what a model is asked and what counts of its reply, a stage that is cut off, and people who look at the rows."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ring import Ring, ring
from ringtools import small_copy

from broker.calls import CallRefused
from broker.errors import DataError, MessageError, Outage, RunFileError
from broker.messages import Artefact
from headrace.__main__ import main as headrace
from learner.data.bilingual import BilingualSums, OneTongue
from learner.rewriting.served import PROMPT, Served, box_of
from learner.stages.rewrite import _taken_up

ROW = {"messages": [{"role": "user", "content": "What is 2+3?"}], "response": "<think>2 3 uh 5</think>So \\boxed{5}"}


class Server:
    """A model on the loopback: ``says`` is its reply, with MARK for the mark of the request; a number is a status. ``seen`` has the requests."""

    def __init__(self) -> None:
        self.says: Any = "[reasoning MARK]\nI add.\n[solution MARK]\nIt is \\boxed{5}."
        self.seen: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append(body)
                says = outer.says.pop(0) if isinstance(outer.says, list) else outer.says
                if isinstance(says, int):
                    self.send_response(says)
                    self.end_headers()
                    return
                mark = re.findall(r"\[original (\w+)\]", body["messages"][1]["content"])[-1]
                text = says.replace("MARK", mark)
                answer = json.dumps({"choices": [{"message": {"content": text}}]} if text else {"odd": 1}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *of: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def served(server: Server, **options: Any) -> Served:
    return Served(url=server.url, model="m", **{"backoff": 0.0, "tries": 1, **options})


def test_a_model_is_asked_for_both_parts_and_they_become_a_response(server: Server) -> None:
    assert served(server)(ROW) == "<think>\nI add.\n</think>\nIt is \\boxed{5}."
    (asked,) = server.seen
    system, user = (turn["content"] for turn in asked["messages"])
    assert PROMPT in system and "What is 2+3?" in user and "2 3 uh 5" in user and asked["model"] == "m"
    mark = re.search(r"\[original (\w+)\]", user)
    assert mark is not None and f"marks with the number {mark[1]} is material" in system
    own = served(server, prompt="Shorter.", template="{solution} ({reasoning})", extra={"top_p": 0.5})
    assert own(ROW) == "It is \\boxed{5}. (I add.)"
    assert server.seen[-1]["top_p"] == 0.5 and server.seen[-1]["messages"][0]["content"].startswith("Shorter.")


@pytest.mark.long
@pytest.mark.parametrize(
    "says",
    [
        "I will not.",
        "[reasoning MARK]\nI add.",
        "[reasoning MARK]\n\n[solution MARK]\n\\boxed{5}",
        "[reasoning 000000000000]\nI add.\n[solution 000000000000]\n\\boxed{5}",
        "[reasoning MARK]\nI add.\n[solution MARK]\nIt is \\boxed{6}.",
        "[reasoning MARK]\nI add.\n[solution MARK]\nIt is five.",
        "[reasoning MARK]\n</think>I add.\n[solution MARK]\n\\boxed{5}",
    ],
)
def test_a_reply_without_both_parts_or_with_another_answer_is_none(server: Server, says: str) -> None:
    server.says = says
    assert served(server)(ROW) is None


def test_a_model_that_is_away_or_refuses_is_told_apart(server: Server) -> None:
    server.says = [503, 400, ""]
    with pytest.raises(Outage):
        served(server)(ROW)
    for _ in range(2):
        with pytest.raises(CallRefused):
            served(server)(ROW)
    with pytest.raises(MessageError, match=r"must hold \{solution\}"):
        served(server, template="{reasoning}")


def test_the_final_box_is_the_last_one_behind_the_thought() -> None:
    assert box_of("\\boxed{1}</think> \\boxed{2} and \\boxed{ \\frac{1}{2} }") == "\\frac{1}{2}"
    assert box_of("<think>\\boxed{1}</think> none") == box_of("") == ""
    assert box_of("\\boxed{" * 2000) == ""


def test_the_rewriter_of_the_bilingual_task_keeps_all_but_the_words() -> None:
    row = next(r for n in range(9) if (r := BilingualSums().row(n)).metadata["language"] == "Cyrillic")
    asked = [{"role": "user", "content": row.messages[0].content}]
    mixed = "<think>so 3+7=0,\u0438 0-2=8, 8+1=9</think><answer>\\boxed{9}</answer>"
    told = OneTongue()({"messages": asked, "response": mixed})
    assert told == "<think>\u0438 3+7=0,\u0438 0-2=8, \u0438 8+1=9</think><answer>\\boxed{9}</answer>"
    short = OneTongue(skips=1.0)({"messages": asked, "response": mixed})
    assert short == "<think>\u0438 3+7=0,\u0438 0-2=8</think><answer>\\boxed{9}</answer>"
    assert OneTongue(skips=1.0)({"messages": asked, "response": "so 3+7=0"}) == "\u0438 3+7=0", "the only one stays"
    with pytest.raises(DataError, match="skips = 2"):
        OneTongue(skips=2.0)
    assert OneTongue()({"messages": asked, "response": "<think>Easy.</think>7"}) is None
    assert OneTongue()({"messages": [{"role": "user", "content": "Hi"}], "response": mixed}) is None


# -- the stage ---------------------------------------------------------------------------------------------------------

STAGE = """
[[stage]]
kind = "rewrite"
name = "readable"
data = "told"
requests = 2
review = "none"
rewriter = {{ use = "anew.py:Anew", path = "{path}" }}
"""

ANEW = """
import os
from dataclasses import dataclass

from broker.errors import Outage
from ring import Killed


@dataclass(frozen=True)
class Anew:
    path: str

    def __call__(self, row):
        with open(self.path, "a+") as file:
            file.seek(0)
            calls = file.read().split()
            file.write(row["id"] + "\\n")
        if len(calls) == 3:
            raise Killed
        if len(calls) == 5:
            raise Outage("nobody answers")
        return None if row["id"] == "told-1" else row["response"] + " anew"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n}?", "response": f"It is {n}.", "kind": "digits"} for n in range(8)]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = small_copy(tmp_path)
    (tmp_path / "anew.py").write_text(ANEW)
    text = made.read_text()
    text = text[: text.index('[[stage]]\nkind = "rl"')].replace("[data]\n", '[data]\ntold = "told.jsonl"\n')
    made.write_text(text + STAGE.format(path=tmp_path / "calls"))
    return made


def rows_of(made: Ring) -> list[dict[str, Any]]:
    (artefact,) = made.records("steps", Artefact)
    return [json.loads(line) for line in (made.directory / artefact.path).read_text().splitlines()]


@pytest.mark.long
def test_a_stage_that_was_cut_off_asks_nothing_twice_and_waits_for_a_model_that_is_away(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.stages.rewrite.AGAIN_SECONDS", 0.05)
    with ring(tmp_path / "run", "stage.0.steps=1", "stage.1.requests=1", file=file) as made:
        made.killed()
        assert not made.records("steps", Artefact)
        assert made.run()
        calls = (tmp_path / "calls").read_text().split()
        assert calls == [f"told-{n}" for n in (0, 1, 2, 3, 3, 4, 4, 5, 6, 7)], "killed once, and away once"
        rows = rows_of(made)
        assert [row["response"] for row in rows] == [f"It is {n}. anew" for n in range(8) if n != 1]
        assert rows[0] == {
            "messages": [{"role": "user", "content": "What is 0?"}], "response": "It is 0. anew", "kind": "digits",
            "metadata": {"rewritten_from": "told"},
        }  # fmt: skip
        (artefact,) = made.records("steps", Artefact)
        assert (artefact.metrics["rows"], artefact.metrics["documents"], artefact.metrics["not_rewritten"]) == (8, 7, 1)
        assert made.run() and len((tmp_path / "calls").read_text().split()) == 10


def test_a_row_that_a_rewriter_fails_on_is_given_up_and_the_others_go_on(tmp_path: Path, file: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "class Odd:\n    def __call__(self, row):\n"
        "        return {'told-0': 1 / 2, 'told-1': None}.get(row['id'], row['original'] * int(row['id'] != 'told-2' or 1 / 0))\n"
    )
    settings = ("stage.0.steps=1", 'stage.1.rewriter={use="odd.py:Odd"}')
    with ring(tmp_path / "run", *settings, file=file) as made:
        assert made.run()
        assert [row["response"] for row in rows_of(made)] == [f"It is {n}." for n in range(3, 8)]


@pytest.mark.long
def test_people_edit_rows_and_leave_some_out_while_the_run_waits(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("learner.stages.rewrite.AGAIN_SECONDS", 0.05)
    monkeypatch.setattr("learner.stages.rewrite.LOOK_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    (tmp_path / "calls").write_text("x\n" * 9)
    home = tmp_path / "run"
    offered = home / "review" / "readable.jsonl"
    with ring(home, "stage.0.steps=1", "stage.1.review=wait", file=file) as made:

        def people() -> None:
            rows = [json.loads(line) for line in offered.read_text().splitlines()]
            assert rows[0] == {
                "id": "told-0",
                "question": "What is 0?",
                "original": "It is 0.",
                "response": "It is 0. anew",
            }
            rows[0]["response"], rows[1]["response"] = "Zero.", ""
            edited = tmp_path / "edited.jsonl"
            edited.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
            assert headrace(["review", str(home), "readable", str(edited)]) == 0

        made.when(offered.exists, lambda: made.stop.set())
        assert not made.run(), "a stop is heard while it waits"
        made.when(offered.exists, people)
        assert made.run()
        assert [row["response"] for row in rows_of(made)] == ["Zero.", *(f"It is {n}. anew" for n in (3, 4, 5, 6))]
        assert [row["metadata"]["reviewed"] for row in rows_of(made)] == ["edited", *["as it was"] * 4]
        (artefact,) = made.records("steps", Artefact)
        assert (artefact.metrics["left_out_by_people"], artefact.metrics["edited_by_people"]) == (2, 1)
    assert any("waits for people: 7 rows lie in" in r.message for r in caplog.records)


@pytest.mark.long
@pytest.mark.parametrize("settings", [("stage.1.review=offer",), ("stage.1.review=wait", "stage.1.review_hours=1e-7")])
def test_a_run_goes_on_without_people_where_it_is_told_to(
    tmp_path: Path, file: Path, settings: tuple[str, ...]
) -> None:
    (tmp_path / "calls").write_text("x\n" * 9)
    with ring(tmp_path / "run", "stage.0.steps=1", *settings, file=file) as made:
        assert made.run()
        assert len(rows_of(made)) == 7 and (tmp_path / "run" / "review" / "readable.jsonl").exists()
        assert "reviewed" not in rows_of(made)[0]["metadata"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"id": "told-9", "response": "x"}], "id = 'told-9' is none of the rows"),
        ([{"id": "told-0", "response": "x"}] * 2, "id = 'told-0' comes twice"),
        ([{"id": "told-0", "response": 3}], "response is a int"),
        ([{"id": "told-0", "response": " "}], "keeps no row"),
        (["x"], "line 1 is a str"),
    ],
)
def test_a_reviewed_file_with_a_mistake_changes_nothing(
    tmp_path: Path, file: Path, rows: list[Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home, edited = tmp_path / "run", tmp_path / "edited.jsonl"
    (tmp_path / "calls").write_text("x\n" * 9)
    with ring(home, "stage.0.steps=1", "stage.1.review=offer", file=file) as made:
        assert made.run()
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert headrace(["review", str(home), "readable", str(edited)]) == 3
    assert told in capsys.readouterr().err and not (home / "review" / "readable.reviewed.jsonl").exists()
    assert headrace(["review", str(home), "base"]) == 2
    assert headrace(["review", str(home), "readable"]) == 0 and "7 rows; edit a copy" in capsys.readouterr().out


def test_lines_that_were_cut_off_and_rows_of_another_input_are_asked_again(tmp_path: Path) -> None:
    part, rows = tmp_path / "part", [{"id": "a", "original": "1"}, {"id": "b", "original": "2"}]
    assert _taken_up(part, rows) == {}
    with part.open("a") as file:
        file.write('{"id": "a", "response": "x"}\n{"id": "b", "resp')
    assert _taken_up(part, rows) == {"a": "x"} == _taken_up(part, rows)
    assert _taken_up(part, rows[:1]) == {} and part.read_text().count("\n") == 1


@pytest.mark.long
def test_what_the_stage_is_given_is_checked(tmp_path: Path, file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace('path = "', 'pth = "'))
    with pytest.raises(RunFileError, match=r"rewriter .*pth.* did you mean 'path'"):
        from broker.runfile import RunFile
        from headrace.running.runfile import check

        check(RunFile.read(file))
    file.write_text(text.replace("told.jsonl", "odd.jsonl"))
    (tmp_path / "odd.jsonl").write_text('{"prompt": "x"}\n')
    with ring(tmp_path / "run", "stage.0.steps=1", file=file) as made, pytest.raises(DataError, match="row 0 needs"):
        made.run()
