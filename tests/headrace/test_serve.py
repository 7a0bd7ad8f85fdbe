"""Agents outside, over HTTP, on a real actor: what they say and hear is in the log, token for token, whoever is killed in between."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from agentdoor import House, house, user
from patience import HANG, until
from safetensors.torch import load_file

from actors.local.engine import LocalEngine
from broker.runfile import RunFile
from headrace.running.runfile import check

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    torch.set_num_threads(1)
    engine = LocalEngine(str(tiny_model), slots=8, context=256, seed=1)
    shown = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    engine.tokenizer.chat_template = shown + engine.tokenizer.chat_template
    engine.apply(4, load_file(tiny_model / "model.safetensors"))
    return engine


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, engine: LocalEngine) -> Iterator[House]:
    with house(tmp_path, tiny_model, engine, "idle = 600", "--patience", "5") as made:
        made.start_door()
        made.start_actor()
        yield made


def message(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]["message"]
    return found


def test_a_session_of_two_turns_is_one_episode_of_what_was_sampled(run: House, engine: LocalEngine) -> None:
    run.feed("t-1")
    talk = [{"role": "system", "content": "Be brief."}, user("Guess: 0 to 9")]
    first = run.chat(talk, "s1")
    talk += [message(first), user("5 to 9")]
    second = run.chat(talk, "s1").json()
    assert first.headers["X-Headrace-Session"] == "s1" and second["headrace"] == {"session": "s1", "version": 4}
    done = run.post("/v1/headrace/sessions/s1/reward", {"reward": 0.5, "why": "half right"}).json()
    assert done["ended"] == "rewarded" and done["votes"] == [{"group_id": "t-1@0", "index": 0}]
    (sample,) = until(run.samples).values()
    assert (sample.session, sample.environment, sample.outcome) == ("s1", "agents", None)
    said = [m["content"] for m in (*talk, second["choices"][0]["message"])]
    assert [m.content for m in sample.turns] == said
    assert [s.role for s in sample.segments] == ["prompt", "assistant", "user", "assistant"]
    assert second["usage"]["completion_tokens"] == sample.segments[-1].end - sample.segments[-1].start
    assert "(what" not in engine.tokenizer.decode(sample.tokens), "the agent's messages stand instead of the prompt's"
    (vote,) = run.votes()
    assert (vote.group_id, vote.index, vote.rewarder, vote.value, vote.why) == ("t-1@0", 0, "agent", 0.5, "half right")


def play(run: House, session: str, turns: int, **fields: Any) -> list[dict[str, Any]]:
    """A conversation of so many turns; returns all that was said."""
    talk: list[dict[str, Any]] = []
    for turn in range(turns):
        talk.append(user(f"{session}, turn {turn}"))
        talk.append(message(run.chat(talk, session, **fields)))
    return talk


def ended(run: House, session: str) -> dict[str, Any]:
    found: dict[str, Any] = run.post(f"/v1/headrace/sessions/{session}/finish").json()
    return found


def test_an_agent_that_edits_its_past_plays_another_part(run: House) -> None:
    run.feed("t-1", "t-2")
    talk = play(run, "s1", 2)
    edited = [user("Summary: nothing has happened"), talk[1], user("Go on")]
    last = message(run.chat(edited, "s1"))
    status = ended(run, "s1")
    assert [p["closed"] for p in status["parts"]] == ["edited", None]
    found = until(lambda: len(s := run.samples()) == 2 and s)
    assert [(s.session, len(s.segments)) for s in found.values()] == [("s1", 4), ("s1#2", 2)]
    assert [m.content for m in found["t-1@0#1"].turns] == [m["content"] for m in (*edited, last)]


def test_votes_come_hours_after_an_episode_and_the_first_one_holds(run: House) -> None:
    run.feed("t-1")
    for name in ("s1", "s2"):
        play(run, name, 1)
        ended(run, name)
    until(lambda: len(run.samples()) == 2)
    assert not run.votes()
    assert run.chat([user("more")], "s1").json()["error"]["code"] == "session_ended"
    for value in (1, 1.0):
        assert run.post("/v1/headrace/sessions/s1/reward", {"reward": value, "rewarder": "agent"}).status_code == 200
    again = run.post("/v1/headrace/sessions/s1/reward", {"reward": 0})
    assert again.status_code == 409 and "has given session 's1' 1.0 already" in again.json()["error"]["message"]
    assert {(v.index, v.value) for v in run.votes()} == {(0, 1.0)}


def test_the_same_request_again_is_another_try_once_its_reply_was_heard(run: House) -> None:
    run.feed("t-1")
    first = run.chat([user("hm")], "s1")
    again = run.chat([user("hm")], "s1")
    assert first.json()["id"] != again.json()["id"]
    assert [p["closed"] for p in run.get("/v1/headrace/sessions/s1").json()["parts"]] == ["edited", None]


def test_who_is_killed_in_between_loses_nothing_that_was_said(run: House) -> None:
    run.feed("t-1")
    talk = play(run, "s1", 2)
    run.kill_actor()
    run.start_actor("b")
    talk.append(user("still there?"))
    talk.append(message(run.chat(talk, "s1")))
    port = run.kill_door()
    run.start_door(port)
    talk.append(user("and you?"))
    talk.append(message(run.chat(talk, "s1")))
    run.kill_door()
    run.start_door(port)
    run.kill_actor()
    run.start_actor("a")
    assert run.post("/v1/headrace/sessions/s1/reward", {"reward": 1.0}).status_code == 200
    (sample,) = until(run.samples).values()
    assert [m.content for m in sample.turns] == [m["content"] for m in talk]
    assert [s.role for s in sample.segments] == ["prompt", "assistant", *["user", "assistant"] * 3]
    turns = [e.data["turn"] for e in run.events("turn")]
    assert b"".join(t["tokens"] for t in turns) == sample.tokens.astype("<i4").tobytes(), (
        "token for token what was told"
    )
    assert b"".join(t["logprobs"] for t in turns) == sample.logprobs.astype("<f4").tobytes()


def test_a_reply_that_was_not_heard_is_given_to_the_request_that_asks_again(run: House) -> None:
    run.feed("t-1")
    talk = play(run, "s1", 1)
    port = run.kill_door()  # the door cannot know any more whether its last reply was heard
    run.start_door(port)
    assert message(run.chat(talk[:1], "s1")) == talk[1]
    talk.append(user("next"))
    message(run.chat(talk, "s1"))
    assert len(run.get("/v1/headrace/sessions/s1").json()["parts"]) == 1


def test_samples_of_one_task_are_one_group(run: House) -> None:
    run.feed("t-1", "t-2", "t-3")

    def one(session: str, task: str) -> None:
        message(run.chat([user("Hello")], session, metadata={"task": task}))

    for session, task in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b")):
        one(session, task)
    where = {
        n: run.get(f"/v1/headrace/sessions/{n}").json()["parts"][0]["group_id"] for n in ("a1", "a2", "a3", "b1", "b2")
    }
    assert where["a1"] == where["a2"] and where["b1"] == where["b2"]
    assert {where["a1"], where["b1"], where["a3"]} == {"t-1@0", "t-2@0", "t-3@0"}, "in what order partitions are read"


def test_a_task_of_the_run_is_handed_to_who_opens_a_session(run: House) -> None:
    run.feed("shop-0", kind="shop")
    refused = run.chat([user("Hello")], "s0")
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "no_task"
    opened = run.post("/v1/headrace/sessions", {"session": "s1"}).json()
    assert opened["task"]["id"] == "shop-0" and opened["task"]["answer"] == "shop-0"
    assert opened["task"]["messages"] == [{"role": "user", "content": "Play shop-0"}]
    message(run.chat([user("Hello")], "s1"))
    assert ended(run, "s1")["task"] == "shop-0"
    sample = until(run.samples)["shop-0@0#0"]
    assert sample.messages[0].content == "Play shop-0" and sample.turns[0].content == "Hello"


def test_a_session_that_falls_silent_ends_and_one_that_never_spoke_gives_its_sample_back(
    tmp_path: Path, tiny_model: Path, engine: LocalEngine
) -> None:
    with house(tmp_path, tiny_model, engine, "idle = 0.5", "--patience", "5") as run:
        run.feed("t-1")
        run.start_door()
        run.start_actor()
        run.post("/v1/headrace/sessions", {"session": "silent"})
        play(run, "s1", 1)
        until(lambda: {e.session: e.data["why"] for e in run.events("ended")} == {"silent": "idle", "s1": "idle"})
        (sample,) = until(run.samples).values()
        assert sample.session == "s1"
        play(run, "s2", 1)
        assert run.events("freed")[0].session == "silent"


def test_an_agent_of_a_group_that_has_ended_goes_on_in_another(run: House) -> None:
    run.feed("t-1", "t-2")
    talk = play(run, "s1", 1)
    (part,) = run.get("/v1/headrace/sessions/s1").json()["parts"]
    first, second = sorted(("t-1@0", "t-2@0"), key=lambda name: name != part["group_id"])
    run.drop(first)
    until(lambda: run.events("closed"))
    talk.append(user("next"))
    message(run.chat(talk, "s1"))
    parts = run.get("/v1/headrace/sessions/s1").json()["parts"]
    assert [(p["group_id"], p["gone"]) for p in parts] == [(first, "incomplete"), (second, None)]
    assert run.post("/v1/headrace/sessions/s1/reward", {"reward": 1}).json()["votes"] == [
        {"group_id": second, "index": 0}
    ]
    assert not run.letters()
    until(lambda: sum(run.log.committed(run.run.topics.group("actors"), run.run.topics.prompts).values()) == 1)


HOSTILE: list[tuple[str, Any, str, str | None]] = [
    ("no JSON", b'{"messages": [', "the body is no JSON", None),
    ("a list", b"[]", "the body must be a JSON object", None),
    ("deep", b"[" * 100000, "the body is no JSON", None),
    ("no messages", {}, "messages = null: give a list", "messages"),
    ("model", {"model": "gpt-9"}, "model = \"gpt-9\": this run serves 'duty'", "model"),
    ("tokens", {"max_tokens": 10**9}, "max_tokens = 1000000000: the trainer's limit is 60", "max_tokens"),
    ("no tokens", {"max_tokens": 0}, "max_tokens = 0: give a number of tokens, at least 1", "max_tokens"),
    ("heat", {"temperature": 0.2}, "temperature = 0.2: the trainer samples with 1", "temperature"),
    ("heat text", {"temperature": "hot"}, 'temperature = "hot": give a number', "temperature"),
    ("many", {"n": 4}, "n = 4: a session has one reply a turn", "n"),
    ("seed", {"seed": 1}, "seed = 1: samples are drawn as the trainer draws them", "seed"),
    ("format", {"response_format": {"type": "json_object"}}, "response_format = ", "response_format"),
    ("stop", {"stop": [""]}, 'stop = [""]: give a text', "stop"),
    ("tools", {"tools": [{"name": "x"}]}, "tools = ", "tools"),
    (
        "image",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "only parts of type text",
        "messages[0].content",
    ),
    (
        "role",
        {"messages": [{"role": "wizard", "content": "x"}]},
        'messages[0].role = "wizard": use one of',
        "messages[0].role",
    ),
    (
        "prefill",
        {"messages": [user("x"), {"role": "assistant", "content": "y"}]},
        "the last message is the assistant's own",
        "messages",
    ),
    ("half", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a character", "messages[0].content"),
    ("session", {"user": "a b#c"}, 'metadata.session = "a b#c": give a name like', "metadata.session"),
    ("long", {"messages": [user("long " * 400)]}, "does not fit a context of 256 tokens", "messages"),
]


def test_what_cannot_be_served_says_field_value_and_cure_in_openais_shape(run: House) -> None:
    run.feed("t-1")
    for what, body, words, field in HOSTILE:
        if isinstance(body, dict) and what != "no messages":
            body = {"messages": [user("Hello")], "user": "s1", **body}
        answer = run.post("/v1/chat/completions", body)
        assert 400 <= answer.status_code < 500, what
        error = answer.json()["error"]
        assert words in error["message"] and error["param"] == field and error["type"] == "invalid_request_error", (
            what,
            error,
        )
    for path, status in (
        ("/v1/headrace/sessions/nobody/reward", 404),
        ("/v1/nothing", 404),
        ("/v1/headrace/sessions", 200),
    ):
        assert run.post(path, {"reward": 1}).status_code == status
    bad = run.post("/v1/headrace/sessions/s1/reward", b'{"reward": NaN}')
    assert bad.status_code == 400 and "reward = NaN: give a finite number" in bad.json()["error"]["message"]
    wrong = run.post("/v1/headrace/sessions/s1/reward", {"reward": 1, "rewarder": "agnt"})
    assert "external in the run file: ['agent']" in wrong.json()["error"]["message"]
    assert message(run.chat([user("Hello")], "s1")), "and nobody was harmed by it"
    assert not run.letters()


def test_without_a_sample_an_agent_waits_and_hears_what_for(
    tmp_path: Path, tiny_model: Path, engine: LocalEngine
) -> None:
    with house(tmp_path, tiny_model, engine, "", "--patience", "0.5") as run:
        run.start_door()
        nobody = run.chat([user("Hello")])
        assert nobody.status_code == 503 and "no actor has asked for an agent" in nobody.json()["error"]["message"]
        run.start_actor()
        run.feed("t-1", size=1)
        until(lambda: run.chat([user("Hello")], "s1").status_code == 200)
        full = run.chat([user("Hello")], "s2")
        assert full.status_code == 503 and "all samples that actors have are taken" in full.json()["error"]["message"]


def test_two_requests_of_one_session_at_once(run: House, engine: LocalEngine) -> None:
    run.feed("t-1", size=3)
    talk = [user("Hello")]
    run.kill_actor()  # so that the first one waits
    answers: list[Any] = []
    several = [threading.Thread(target=lambda: answers.append(run.chat(talk, "s1"))) for _ in range(2)]
    for one in several:
        one.start()
    until(lambda: run.get("/v1/headrace/sessions/s1").status_code == 200)
    busy = run.chat([user("Something else")], "s1")
    assert busy.status_code == 409 and busy.json()["error"]["code"] == "session_busy"
    run.start_actor()
    for one in several:
        one.join()
    assert message(answers[0]) == message(answers[1]), "the same request, whose connection broke, has the same reply"
    assert len(run.get("/v1/headrace/sessions/s1").json()["parts"]) == 1


def test_openais_own_client_talks_to_it(run: House) -> None:
    openai = pytest.importorskip("openai")
    run.feed("t-1", size=4)
    client = openai.OpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["duty"] and client.models.retrieve("duty").owned_by == "headrace"
    tools = [
        {
            "type": "function",
            "function": {"name": "price", "description": "Of a thing", "parameters": {"type": "object"}},
        }
    ]
    answer = client.chat.completions.create(
        model="duty", messages=[user("Hello")], tools=tools, user="s1", max_tokens=5
    )
    assert answer.usage.completion_tokens <= 5 and answer.choices[0].finish_reason in ("stop", "length")
    pieces = list(client.chat.completions.create(model="duty", messages=[user("Hello")], user="s2", stream=True))
    whole = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    ended(run, "s1")
    ended(run, "s2")
    found = until(lambda: len(s := run.samples()) == 2 and s)
    assert found["t-1@0#1"].text == whole
    assert '"name": "price"' in run.engine.tokenizer.decode(found["t-1@0#0"].tokens), "tools are in the prompt"
    with pytest.raises(openai.BadRequestError, match="n = 2: a session has one reply"):
        client.chat.completions.create(model="duty", messages=[user("Hello")], n=2)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_door_that_others_reach_needs_a_key_and_a_run_has_one_door(run: House, tmp_path: Path) -> None:
    def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headrace", "serve", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG)

    open_ = serve(str(run.directory), "--host", "0.0.0.0")
    assert open_.returncode == 2 and "needs a key; set one in a variable and name it with --key-from" in open_.stderr
    second = serve(str(run.directory), "--port", "0")
    assert second.returncode == 3 and "has its door already" in second.stderr
    shown = run.get("/v1/headrace/actors")
    assert shown.status_code == 401, "an agent is no actor"
    assert (run.directory / "serve.json").stat().st_mode & 0o077 == 0


def test_the_pages_own_blocks_play_and_reward_a_session(run: House, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    page = (Path(__file__).resolve().parents[2] / "docs" / "agents.md").read_text()
    tables = tomllib.loads(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    tables["run"] |= {"name": "NAME", "model": str(run.engine_path)}
    tables["stage"] = [{"kind": "rl", "steps": 1}]
    (tmp_path / "page.toml").write_text(tomli_w.dumps(tables))
    check(RunFile.read(tmp_path / "page.toml"))
    run.feed("t-1")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = "\n".join(blocks).replace("http://127.0.0.1:8800", run.url).replace("NAME", "duty")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    (command,) = re.findall(r"^    curl (.*)$", page, re.MULTILINE)
    assert "/v1/headrace/sessions" in command
    (vote,) = run.votes()
    assert (vote.value, vote.why) == (1.0, "tests pass")
    (sample,) = until(run.samples).values()
    assert (sample.session, len(sample.turns), run.events("bound")[0].data["task"]) == ("fix-17-a", 4, "fix-17")
