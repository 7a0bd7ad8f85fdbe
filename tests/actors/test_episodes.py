"""Episodes over a real log, engine and environment processes: tokens in, tokens out; what fails, hangs or runs out is a fate with a reason."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import until
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.config import ActorsTable, EnvironmentTable, environment_tables
from actors.engine import Completion
from actors.environment import Turn, pack, unpack
from actors.episodes import Episode
from actors.intake import Intake
from actors.local.engine import LocalEngine
from actors.rooms import Rooms
from actors.worker import ABORTS, ActorWorker
from broker.chat import Chats, Rendered
from broker.errors import EnvironmentFault, RunFileError
from broker.log import Log
from broker.messages import ChatMessage, DeadLetter, Prompt, Sampling, Trajectory, VersionSpan, decode, encode
from broker.open import open_log
from broker.runfile import RunFile
from broker.topics import Topics
from headrace.reading.records import scan
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics
from rewarders.outcome import Outcome

TOPICS = Topics("t", partitions=1)
SOON = tuple(string.ascii_letters + string.digits)  # whatever is sampled, a reply ends after a few tokens
GAMES = '''
import os, time
from dataclasses import dataclass
from pathlib import Path
from actors.environment import Turn, over, say
from broker.messages import ChatMessage


@dataclass
class Echo:
    """Says back how many replies it has heard, `rounds` times; an opening line if it is given one."""

    rounds: int = 3
    opening: str = ""

    def open(self, prompt, index):
        self.heard = []
        return say(self.opening + str(index)) if self.opening else Turn()

    def step(self, reply):
        self.heard.append(reply)
        if len(self.heard) == self.rounds:
            return over(len(self.heard) / 10, "enough")
        return say(f"heard {len(self.heard)} <|im_end|>", outcome=0.05)


@dataclass
class Fickle:
    """Misbehaves in the first reply of each episode whose prompt says so; `where` keeps count over restarts."""

    how: str
    where: str = ""

    def open(self, prompt, index):
        self.bad = "bad" in prompt.messages[0].content
        return Turn()

    def step(self, reply):
        if self.bad:
            if self.how == "raise":
                raise ValueError("no such move")
            if self.how == "hang":
                time.sleep(3600)
            if self.how == "crash":
                os._exit(3)
            if self.how == "memory":
                bytearray(1 << 34)
            return "this is no turn"
        return over(1.0)


@dataclass
class Caller:
    """Asks a service, which is there when the file is."""

    file: str

    def open(self, prompt, index):
        return Turn()

    def step(self, reply):
        if not Path(self.file).exists():
            raise ConnectionRefusedError("nobody answers")
        return over(1.0)


@dataclass
class Meeting:
    """Its step waits until `all` of them are under way."""

    folder: str
    all: int

    def open(self, prompt, index):
        self.name = f"{prompt.group_id}-{index}.here"
        return Turn()

    def step(self, reply):
        (Path(self.folder) / self.name).touch()
        while len(list(Path(self.folder).glob("*.here"))) < self.all:
            time.sleep(0.01)
        return over(1.0)


@dataclass
class Gate:
    """Its step waits until a file is there."""

    file: str

    def open(self, prompt, index):
        return Turn()

    def step(self, reply):
        while not Path(self.file).exists():
            time.sleep(0.01)
        return over(1.0)
'''


def log_beside_games(tmp_path: Path) -> Iterator[Log]:
    """An empty log, with the games in a file beside it."""
    (tmp_path / "games.py").write_text(GAMES)
    log = open_log(f"sqlite://{tmp_path}/log")
    log.create(TOPICS.specs())
    yield log
    log.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    yield from log_beside_games(tmp_path)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> LocalEngine:
    torch.set_num_threads(1)
    engine = LocalEngine(str(tiny_model), slots=8, context=200, seed=1)
    engine.apply(4, load_file(tiny_model / "model.safetensors"))
    return engine


@pytest.fixture
def worker_of(log: Log, engine: LocalEngine, tmp_path: Path) -> Iterator[Callable[..., ActorWorker]]:
    opened: list[ActorWorker] = []

    def make(use: str, timeout: float = 10.0, memory_mb: int = 1024, processes: int = 2, **options: Any) -> ActorWorker:
        table = EnvironmentTable(use=use, timeout=timeout, memory_mb=memory_mb, processes=processes, **options)
        rooms, registry = Rooms({"game": table}, tmp_path), CollectorRegistry()
        metrics: tuple[Any, ...] = (ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor"))
        worker = ActorWorker("a", Intake("a", log, TOPICS), engine, rooms, ActorsTable(slots=8), *metrics)
        worker.registry = registry  # type: ignore[attr-defined]
        opened.append(worker)
        return worker

    yield make
    for worker in opened:
        worker.close()


def ask(log: Log, *names: str, environment: str = "game", size: int = 2, **sampling: Any) -> None:
    options = {"max_new_tokens": 60, "stop": tuple("0123456789+"), "max_turns": 5, **sampling}
    producer = log.producer()
    for name in names:
        prompt = Prompt(
            f"{name}@0", (ChatMessage("user", name),), size, sampling=Sampling(**options), environment=environment, rewards={"outcome": 1.0}
        )  # fmt: skip
        producer.send(TOPICS.prompts, name.encode(), encode(prompt))
    producer.flush()
    producer.close()


def samples(log: Log) -> list[Trajectory]:
    return [m for _, m in scan(log, TOPICS.trajectories) if isinstance(m, Trajectory)]


def letters(log: Log) -> dict[str, str]:
    return {m.group_id: m.error for _, m in scan(log, TOPICS.deadletters) if isinstance(m, DeadLetter)}


def work(worker: ActorWorker, done: Callable[[], bool]) -> None:
    until(done, doing=worker.round)


def committed(log: Log) -> int:
    return sum(log.committed(TOPICS.group("actors"), TOPICS.prompts).values())


def stopped(found: list[Trajectory]) -> list[Trajectory]:
    return [s for s in found if s.finish_reason == "stop"]


@pytest.mark.long
def test_an_episode_is_one_trajectory_of_what_was_sampled_and_what_was_said(
    log: Log, engine: LocalEngine, worker_of: Callable[..., ActorWorker], tiny_model: Path
) -> None:
    ask(log, "d-1", "d-2", size=4, max_new_tokens=40)
    worker = worker_of("games.py:Echo", rounds=3, opening="Sample ")
    work(worker, lambda: committed(log) == 2)
    found = samples(log)
    assert sorted(s.id for s in found) == [f"d-{n}@0#{i}" for n in (1, 2) for i in range(4)]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    whole = stopped(found)
    assert whole
    for s in found:
        assert s.environment == "game" and decode(encode(s)) == s
        roles = [x.role for x in s.segments]
        assert roles == ["prompt", *["assistant", "user"] * (len(roles) // 2 - 1), "assistant"]
        assert [m.role for m in s.turns] == ["user", *roles[1:]]
        assert s.turns[0].content == f"Sample {s.index}" and s.text == s.turns[-1].content
        ids, mask = torch.tensor(s.tokens).long()[None], s.mask()
        with torch.no_grad():
            each = torch.log_softmax(model(ids).logits[0, :-1].float(), -1).gather(1, ids[0, 1:, None])[:, 0].numpy()
        assert s.logprobs[1:][mask[1:]] == pytest.approx(each[mask[1:]], abs=1e-4), (
            "of the very tokens in their context"
        )
        assert not s.logprobs[~mask].any() and s.versions == (VersionSpan(4, s.segments[0].end),)
        text = engine.tokenizer.decode(s.tokens)
        assert text.count("<|im_end|>\n<|im_start|>assistant\n") == len(roles) // 2, "the template's own frame"
    for s in whole:
        assert len(s.segments) == 6 and s.outcome == 0.3
        assert [m.content for m in s.turns if m.role == "user"][1:] == ["heard 1 <|im_end|>", "heard 2 <|im_end|>"]
        vote = Outcome()(s)
        assert vote is not None and vote.value == 0.3


@pytest.mark.long
def test_limits_end_an_episode_and_say_which(log: Log, worker_of: Callable[..., ActorWorker]) -> None:
    ask(log, "turns", max_turns=2, size=4)
    ask(log, "total", max_total=60, max_turns=50, size=4)
    worker = worker_of("games.py:Echo", rounds=99)
    work(worker, lambda: committed(log) == 2)
    ask(log, "late", max_turns=50, size=4)
    work(worker_of("games.py:Echo", rounds=99, seconds=1e-6), lambda: committed(log) == 3)
    late = [s for s in samples(log) if s.group_id == "late@0"]
    assert all(len(s.replies) == 1 for s in late) and {s.finish_reason for s in late} <= {"turns", "length"}
    reasons = {(s.group_id, s.finish_reason) for s in samples(log)}
    assert ("turns@0", "turns") in reasons and ("total@0", "length") in reasons
    for s in samples(log):
        replies = sum(m.role == "assistant" for m in s.turns)
        assert s.segments[-1].role == "assistant", "nothing unanswered stays behind"
        assert replies <= 2 if s.group_id != "total@0" else len(s.tokens) <= 60
        if replies > 1:
            assert s.outcome == 0.05, "what the environment said last"


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ValueError: no such move"),
        ("hang", "timeout"),
        ("crash", "killed: .*ended"),
        ("memory", "MemoryError"),
        ("talk", "gave str where a Turn is expected"),
    ],
)
def test_an_environment_that_fails_ends_its_episode_with_the_reason_and_others_go_on(
    log: Log, worker_of: Callable[..., ActorWorker], how: str, reason: str, threads: int
) -> None:
    ask(log, "good-1", "bad", "good-2", max_new_tokens=100, stop=SOON)
    worker = worker_of("games.py:Fickle", timeout=1.0, processes=1, threads=threads, how=how)
    work(worker, lambda: committed(log) == 3)
    assert list(letters(log)) == ["bad@0"]
    assert re.search(f"environment 'game': .*{reason}", letters(log)["bad@0"])
    found = samples(log)
    assert {s.id for s in found if s.group_id != "bad@0"} == {f"good-{n}@0#{i}" for n in (1, 2) for i in range(2)}
    assert all(s.outcome == 1.0 for s in stopped(found)), "an error is never a reward of 0"
    counted = worker.registry.get_sample_value("headrace_aborted_total", {"reason": "environment"})  # type: ignore[attr-defined]
    assert counted >= 3


@pytest.mark.long
def test_a_slow_environment_does_not_hold_up_sampling(
    log: Log, worker_of: Callable[..., ActorWorker], tmp_path: Path
) -> None:
    ask(log, "slow", max_new_tokens=100)
    worker = worker_of("games.py:Gate", timeout=120.0, file=str(tmp_path / "go"))
    ask(log, *(f"plain-{n}" for n in range(6)), environment="")
    work(worker, lambda: len([s for s in samples(log) if not s.environment]) == 12)
    assert not [s for s in stopped(samples(log)) if s.environment]
    (tmp_path / "go").touch()
    work(worker, lambda: committed(log) == 7)
    assert len(samples(log)) == 14


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 4])
def test_an_environment_that_asks_what_is_away_waits_until_it_is_back(
    log: Log, worker_of: Callable[..., ActorWorker], tmp_path: Path, threads: int
) -> None:
    ask(log, "d-1", stop=SOON)
    worker = worker_of("games.py:Caller", threads=threads, file=str(tmp_path / "there"))
    registry: CollectorRegistry = worker.registry  # type: ignore[attr-defined]
    work(worker, lambda: (registry.get_sample_value("headrace_aborted_total", {"reason": "outage"}) or 0) >= 4)
    assert not letters(log) and not stopped(samples(log))
    (tmp_path / "there").touch()
    work(worker, lambda: committed(log) == 1)
    assert not letters(log) and all(s.outcome == 1.0 for s in stopped(samples(log)))


def test_threads_answer_slow_steps_side_by_side(
    log: Log, worker_of: Callable[..., ActorWorker], tmp_path: Path
) -> None:
    """Each step waits until all eight of one process are under way."""
    ask(log, "d-1", "d-2", size=4, max_new_tokens=100, stop=SOON)
    worker = worker_of("games.py:Meeting", processes=1, threads=8, timeout=60.0, folder=str(tmp_path), all=8)
    work(worker, lambda: committed(log) == 2)
    assert len(stopped(samples(log))) == 8 and all(s.outcome == 1.0 for s in samples(log))
    assert all(s.replies[0].seconds > 0 for s in samples(log))


def test_a_prompt_for_an_environment_that_is_not_there_is_a_dead_letter(
    log: Log, worker_of: Callable[..., ActorWorker]
) -> None:
    ask(log, "lost", environment="gane")
    work(worker_of("games.py:Echo"), lambda: committed(log) == 1)
    assert "'gane', which the run file does not have" in letters(log)["lost@0"]


def test_options_of_an_environment_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "games.py").write_text(GAMES)

    def read(text: str) -> Any:
        (tmp_path / "run.toml").write_text(text)
        return environment_tables(RunFile.read(tmp_path / "run.toml"))

    assert read('[environments.game]\nuse = "games.py:Echo"\nrounds = 4')["game"].options == {"rounds": 4}
    with pytest.raises(RunFileError, match=r"\[environments.game\] unknown option 'round' of games.py:Echo.*'rounds'"):
        read('[environments.game]\nuse = "games.py:Echo"\nround = 4')
    with pytest.raises(RunFileError, match=r"there is no game.py beside the run file"):
        read('[environments.game]\nuse = "game.py:Echo"')
    with pytest.raises(RunFileError, match=r"unknown table \[environment\].*environments"):
        read('[environment.game]\nuse = "games.py:Echo"')


@pytest.mark.parametrize(
    ("turn", "wrong"),
    [
        (Turn((ChatMessage("user", "x" * (1 << 21)),)), "2097152 characters in a turn"),
        (Turn(outcome=float("nan")), "outcome nan"),
        (Turn(value="much"), "value 'much'"),  # type: ignore[arg-type]
        (Turn(tools=({"name": {1, 2}},)), "what JSON can say"),
        (Turn(("hello",)), "ChatMessage"),  # type: ignore[arg-type]
    ],
)
def test_a_turn_that_cannot_travel_is_refused_with_what_is_wrong_with_it(turn: Turn, wrong: str) -> None:
    with pytest.raises(EnvironmentFault, match=wrong):
        pack(turn)
    assert unpack(pack(Turn((ChatMessage("user", "\ud800"),), why="\udfff"))) == Turn(
        (ChatMessage("user", "?"),), why="?"
    )


@pytest.mark.long
def test_an_environment_that_cannot_be_made_says_why(log: Log, worker_of: Callable[..., ActorWorker]) -> None:
    ask(log, "d-1")
    work(worker_of("games.py:Fickle"), lambda: committed(log) == 1)
    assert "missing 1 required positional argument: 'how'" in letters(log)["d-1@0"]


def test_turns_are_joined_by_their_versions_and_nothing_is_tokenised_again(tiny_model: Path) -> None:
    prompt = Prompt("g@0", (ChatMessage("user", "q"),), 1, sampling=Sampling(max_turns=3), environment="game")
    episode = Episode.begin(prompt, 0, Rendered([1, 2, 3], "<think>\n"), Turn(outcome=0.5))

    def reply(tokens: list[int], *spans: tuple[int, int]) -> Completion:
        logprobs = np.full(len(tokens), -0.5, np.float32)
        return Completion("g@0", 0, np.array(tokens, np.int32), logprobs, tuple(VersionSpan(*s) for s in spans), "stop", "ab", 1.0)  # fmt: skip

    assert episode.hear(reply([7, 8, 302], (3, 0), (4, 1)), frozenset({302})) == "<think>\nab" and episode.ended
    request = episode.say(Turn((ChatMessage("user", "x"),)), Rendered([50, 51], ""))
    assert request is not None and request.tokens.tolist() == [1, 2, 3, 7, 8, 302, 50, 51]
    episode.hear(reply([9, 9], (4, 0), (5, 1)))
    found = episode.trajectory("e", "a")
    assert found.tokens.tolist() == [1, 2, 3, 7, 8, 302, 50, 51, 9, 9]
    assert [tuple(v) for v in found.versions] == [(3, 3), (4, 4), (5, 9)] and found.oldest_version == 3
    assert found.mask().tolist() == [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2
    assert [m.content for m in found.turns] == ["<think>\nab", "x", "ab"] and found.text == "ab"
    assert found.response_tokens == 5 and found.outcome == 0.5


def test_a_turn_that_new_weights_end_again_and_again_is_kept(log: Log, tiny_model: Path) -> None:
    """With an update every few tokens no long sample would ever be finished."""
    weights = load_file(tiny_model / "model.safetensors")
    engine = LocalEngine(str(tiny_model), slots=8, context=128, mode="abort")
    engine.apply(0, weights)
    registry = CollectorRegistry()
    metrics: tuple[Any, ...] = (ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor"))
    worker = ActorWorker("a", Intake("a", log, TOPICS), engine, Rooms({}, tiny_model), ActorsTable(slots=8), *metrics)
    ask(log, "d-1", "d-2", environment="", size=4, stop=(), max_new_tokens=60)
    poll, version = engine.poll, 0

    def three_tokens(timeout: float) -> list[Completion]:
        nonlocal version
        done = [c for _ in range(3) for c in poll(0.0)]
        version += 1
        engine.apply(version, weights)
        return done

    engine.poll = three_tokens  # type: ignore[method-assign]
    until(lambda: len(samples(log)) == 8, doing=worker.round)
    worker.close()
    found = samples(log)
    assert len(found) == 8 and max(len(s.versions) for s in found) > 5
    aborted = registry.get_sample_value("headrace_aborted_total", {"reason": "update"})
    assert aborted is not None and 8 <= aborted <= 8 * (ABORTS + 1)


def test_templates_that_cannot_hold_an_episode_are_refused_with_their_words(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from actors.episodes import between
    from broker.errors import ChatError

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('no tools here') }}{% endif %}{{ m['content'] }}<|im_end|>{% endfor %}"  # fmt: skip
    prompt = Prompt("g@0", (ChatMessage("user", "q"),), 1, environment="game")
    episode = Episode.begin(prompt, 0, Rendered([1], ""))
    with pytest.raises(ChatError, match="no tools here"):
        between(Chats(tokenizer), episode, [ChatMessage("tool", "4")])


def test_a_model_that_calls_tools_is_heard_by_them_in_their_own_process(tmp_path: Path) -> None:
    """The interpreter's sandbox starts from a process whose memory is bound."""
    tools = ["actors.tools:Calculator", "actors.python:PythonTool"]
    rooms = Rooms({"desk": EnvironmentTable(use="actors.tools:Tools", timeout=60.0, tools=tools)}, tmp_path)  # type: ignore[call-arg]
    ticket = rooms.open(Prompt("g@0", (ChatMessage("user", "q"),), 1, environment="desk"), 0)

    def hear() -> Turn:
        found = until(rooms.ready)
        assert found[0].turn is not None, found[0].why
        return found[0].turn

    assert [t["function"]["name"] for t in hear().tools] == ["calculator", "python_tool"]
    calls = [("calculator", {"expression": "6*7"}), ("python_tool", {"code": "print(2**5)"})]
    reply = "".join(f"<tool_call>{json.dumps({'name': n, 'arguments': a})}</tool_call>" for n, a in calls)
    rooms.step(ticket, reply)
    assert [tuple(m) for m in hear().messages] == [("tool", "42"), ("tool", "32")]
    rooms.step(ticket, "Both are right.")
    assert hear().over
    rooms.close()
