"""Environments of the real package verifiers, unchanged, as environments of a run: in their own process and by themselves."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from patience import until

from actors.adapters.verifiers import VerifiersEnvironment
from actors.config import EnvironmentTable
from actors.environment import Turn
from actors.rooms import Rooms
from broker.errors import EnvironmentFault, RunFileError
from broker.messages import ChatMessage, Prompt
from learner.data.verifiers import VerifiersTasks

HERE = Path(__file__).parent


def made(name: str, **options: Any) -> VerifiersEnvironment:
    return VerifiersEnvironment(f"vf_environments.py:{name}", base=HERE, **options)


def prompt_of(name: str, number: int = 0, **arguments: Any) -> Prompt:
    row = VerifiersTasks(f"vf_environments.py:{name}", arguments, base=HERE).row(number)
    return Prompt(f"d-{number}@0", row.messages, 2, row.answer, row.kind, row.metadata, environment="vf")


@pytest.mark.long
def test_a_single_turn_environment_asks_its_rows_and_its_rubric_says_the_outcome() -> None:
    tasks = VerifiersTasks("vf_environments.py:reverse", {"system_prompt": "Turn it round."}, base=HERE)
    assert tasks.size == 2
    prompt = prompt_of("reverse", 1, system_prompt="Turn it round.")
    assert prompt.messages == (ChatMessage("system", "Turn it round."), ChatMessage("user", "hello"))
    assert prompt.answer == "olleh" and prompt.metadata["info"] == {"length": 5}
    for reply, outcome in (("olleh", 1.5), ("hello", 0.5), ("", 0.0)):
        it = made("reverse")
        assert it.open(prompt, 0) == Turn()
        end = it.step(reply)
        assert end.over and end.outcome == outcome and "same" in end.why


@pytest.mark.long
def test_an_environment_with_tools_calls_them_and_says_what_they_gave() -> None:
    it = made("sums")
    opened = it.open(prompt_of("sums"), 0)
    assert opened.tools[0]["function"]["name"] == "add" and opened.messages == ()
    turn = it.step('<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>')
    assert turn == Turn((ChatMessage("tool", "42"),))
    wrong = it.step('<tool_call>{"name": "sub", "arguments": {}}</tool_call>')
    assert wrong.messages[0].role == "tool" and "sub" in wrong.messages[0].content
    end = it.step("It is 42.")
    assert end.over and end.outcome == 1.0 and "add_calls 1" in end.why


def test_an_environment_of_several_turns_says_the_next_thing_and_the_last() -> None:
    it = made("doubling")
    it.open(prompt_of("doubling"), 0)
    assert [it.step(reply).messages[0].content for reply in ("1", "2", "4")] == ["double 1", "double 2", "double 4"]
    end = it.step("8")
    assert end == Turn((ChatMessage("user", "enough"),), over=True, outcome=0.4, why=end.why)
    silent = made("doubling", score=False)
    silent.open(prompt_of("doubling"), 0)
    assert [silent.step("1").over for _ in range(6)] == [False] * 5 + [True], "its own limit of turns"


def test_what_fails_in_it_is_an_error_and_never_a_reward_of_nothing() -> None:
    it = made("broken_rubric")
    it.open(prompt_of("broken_rubric"), 0)
    with pytest.raises(EnvironmentFault, match="ZeroDivisionError: the rubric is broken"):
        it.step("y")
    it = made("doubling")
    it.open(prompt_of("doubling"), 0)
    with pytest.raises(EnvironmentFault, match="ValueError: it is broken"):
        it.step("break")
    with pytest.raises(RunFileError, match=r"load = .vf_environments.py:add. .*missing 2 required"):
        made("add")
    with pytest.raises(RunFileError, match="load = 'no-such-env' cannot be loaded"):
        VerifiersEnvironment("no-such-env", base=HERE)


def test_an_episode_that_nobody_plays_on_leaves_nothing_behind() -> None:
    before = threading.active_count()
    for _ in range(20):
        it = made("doubling")
        it.open(prompt_of("doubling"), 0)
        it.close()
    until(it._playing.done)
    assert threading.active_count() <= before + 1


@pytest.mark.slow
def test_reasoning_gyms_environment_of_the_package_plays_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    (tmp_path / "gym.py").write_text(
        "from verifiers.envs.integrations.reasoninggym_env import ReasoningGymEnv\n\n"
        "def basic():\n    return ReasoningGymEnv('basic_arithmetic', num_train_examples=20, num_eval_examples=5, seed=3)\n"
    )
    row = VerifiersTasks("gym.py:basic", base=tmp_path).row(2)
    options = {"use": "actors.adapters.verifiers:VerifiersEnvironment", "load": "gym.py:basic"}
    table = EnvironmentTable.model_validate({**options, "memory_mb": 8192, "timeout": 60.0, "processes": 1})
    rooms = Rooms({"vf": table}, tmp_path)

    def hear() -> Turn:
        found = until(rooms.ready)
        assert found[0].turn is not None, found[0].why
        return found[0].turn

    import reasoning_gym

    entry = reasoning_gym.create_dataset("basic_arithmetic", size=25, seed=3)[2]
    assert entry["question"] in row.messages[-1].content
    outcomes = []
    for answer in (entry["answer"], "nonsense"):
        ticket = rooms.open(Prompt("d-2@0", row.messages, 2, row.answer, row.kind, row.metadata, environment="vf"), 0)
        assert hear() == Turn()
        rooms.step(ticket, f"<answer>{answer}</answer>")
        outcomes.append(hear().outcome)
        rooms.forget(ticket)
    assert outcomes[0] == 1.0 and outcomes[1] is not None and outcomes[1] < 0.1
    rooms.close()
