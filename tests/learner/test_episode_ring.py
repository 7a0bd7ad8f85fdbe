"""Whole runs of episodes on one thread: environments, judges, actor and learner are killed, and the log is sound; votes are of whole episodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psutil
import pytest
from patience import until
from ring import Killed, Ring, ring
from ringtools import small_copy

from broker.messages import DeadLetter, Trajectory, Vote
from headrace.running.rundir import reopen
from learner.replay import replay

PLUGINS = '''
import os
from dataclasses import dataclass
from actors.environment import Turn, over, say
from rewarders.rewarder import GroupRewarder, Reward


@dataclass
class Talk:
    """Three replies, each worth something by itself; the outcome is the share of vowels. While the file `away` is there, every step fails."""

    away: str = ""

    def open(self, prompt, index):
        self.heard = ""
        self.replies = 0
        return say("Talk.")

    def step(self, reply):
        if self.away and os.path.exists(self.away):
            raise RuntimeError("the other side is away")
        self.replies += 1
        self.heard += reply
        share = sum(c in "aeiou" for c in self.heard) / max(1, len(self.heard))
        if self.replies == 3:
            return over(share, "said all", value=1.0)
        return say(f"{self.replies}. Go on.", outcome=share, value=0.5 * self.replies)


class Longest(GroupRewarder):
    """1 for the episode with the most turns."""

    def judge(self, samples):
        most = max(len(s.turns) for s in samples)
        return [Reward(float(len(s.turns) == most), f"{len(s.turns)} turns of {sorted({s.index for s in samples})}") for s in samples]


class Turns:
    def __call__(self, sample):
        return len(sample.turns)
'''
TABLES = """
[environments.talk]
use = "plugins.py:Talk"
timeout = 20.0
{more}

[rewarders.outcome]
use = "rewarders.outcome:Outcome"

[rewarders.longest]
use = "plugins.py:Longest"

[rewarders.turns]
use = "plugins.py:Turns"
shadow = true
"""
SHORT = ("stage.0.steps=2", "stage.1.steps=8", "stage.1.eval_every=0")
STOPS = '", "'.join("etaoinsrhldcu 0123456789")


def run_file(directory: Path, more: str = "") -> Path:
    """The small run with three replies a sample, an outcome, a group's rewarder and a shadow."""
    file = small_copy(directory)
    (directory / "plugins.py").write_text(PLUGINS)
    text = file.read_text().replace("vowels = 1.0", "outcome = 1.0, longest = 0.1")
    text = text.replace('Sums", seed = 1 }', 'Sums", seed = 1, environment = "talk" }')
    text = text.replace("max_new_tokens = 12", f'max_new_tokens = 24, max_turns = 4, stop = ["{STOPS}"]')
    start = text.index("[rewarders.vowels]")
    text = text[:start] + text[text.index("[learner]") :]
    file.write_text(text[: text.index('[[stage]]\nkind = "evaluate"')] + TABLES.format(more=more))
    return file


def children() -> list[psutil.Process]:
    """The processes of this one's environments and judges."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "broker.isolation" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def episodes(made: Ring) -> list[Trajectory]:
    return [t for t in made.records("trajectories", Trajectory) if t.environment]


@pytest.mark.long
def test_votes_are_of_whole_episodes_and_of_their_turns(tmp_path: Path) -> None:
    with ring(tmp_path / "run", *SHORT, "stage.1.steps=4", file=run_file(tmp_path)) as made:
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding, audit.problems) == (4, 16, 0, [])
        known = {(t.group_id, t.index): t for t in episodes(made)}
        votes = made.records("rewards", Vote)
        assert {v.rewarder for v in votes} == {"outcome", "longest", "turns"}
        whole = 0
        for vote in votes:
            sample = known[vote.group_id, vote.index]
            if vote.rewarder == "outcome":
                spoken = [s for s in sample.segments if s.trainable]
                worth = [r.value for r in sample.replies]
                told = [(s.start, s.end, v) for s, v in zip(spoken, worth, strict=True) if v is not None]
                assert [tuple(s) for s in vote.spans] == told, "a value for the tokens of each reply that has one"
                whole += len(told) == 3
            elif vote.rewarder == "longest":
                assert vote.why.endswith("turns of [0, 1, 2, 3]"), "the group is whole"
            else:
                assert vote.shadow and vote.value == len(sample.turns)
        assert whole, "somebody has said all"
        assert all(name in ("outcome", "longest") for m in made.steps() for g in m.groups for s in g.samples for name in [v.rewarder for v in s.votes])  # fmt: skip


@pytest.mark.slow
def test_a_storm_of_kills_leaves_a_sound_log_and_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL for environments and judges, a learner and an actor that are gone from one moment to the next."""
    fates, kills = ["process", "process", "learner", "process", "actor", "process"] * 2, Counter[str]()
    due = 6  # entries of the log until the next one: whoever was killed has worked again before somebody else is
    more = "processes = 2\nthreads = 4"
    with ring(tmp_path / "run", *SHORT, "learner.checkpoint_every=3", file=run_file(tmp_path, more)) as made:

        def storm() -> None:
            nonlocal due
            if not fates or made.written("trajectories", "rewards") < due or "actor" not in made.serving:
                return
            fate = fates.pop(0)
            if fate == "process":
                found = children()
                found[kills[fate] % len(found)].kill()
            elif fate == "actor":
                made.lose_actor()
            kills[fate] += 1
            due = made.written("trajectories", "rewards") + 30
            if fate == "learner":
                raise Killed

        made.watch = storm
        finished = False
        while not finished:
            try:
                finished = made.run()
            except Killed:
                continue
        audit = made.verify()
        assert audit.problems == [] and audit.outstanding == 0 and audit.steps == 8
        assert audit.fed == audit.trained + audit.dropped + audit.dead_lettered
        assert not fates, f"only {kills}"
        assert any(len(t.replies) == 3 for t in episodes(made))
        last = made.steps()[-1].step
        assert replay(reopen(made.directory), 2, last, tmp_path / "again", None) == made.newest_sha256()


@pytest.mark.long
def test_what_an_environment_could_not_answer_is_a_dead_letter_and_can_be_asked_again(tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.touch()
    file = run_file(tmp_path, f'away = "{away}"')
    with ring(tmp_path / "run", *SHORT, "stage.1.steps=3", file=file) as made:

        def back() -> bool:
            return len(made.records("deadletters", DeadLetter)) >= 2

        made.when(back, away.unlink)
        assert made.run()
        audit = made.verify()
        assert audit.problems == [] and audit.dead_lettered >= 2 and audit.trained == 12
        letters = made.records("deadletters", DeadLetter)
        assert all("environment 'talk': error: RuntimeError: the other side is away" in d.error for d in letters)
        assert {d.group_id for d in letters}.isdisjoint(g.group_id for m in made.steps() for g in m.groups)
        made.send("prompts", letters[0].key, letters[0].value)  # as ``headrace broker dlq replay`` does
        again = letters[0].group_id
        until(lambda: sum(t.group_id == again for t in episodes(made)) == 4, "the episodes", doing=made.round)
        assert {t.index for t in episodes(made) if t.group_id == again} == {0, 1, 2, 3}
        assert made.verify().problems == []


@pytest.mark.long
@pytest.mark.parametrize("place", ["open", "step"])
def test_an_environment_that_takes_all_memory_takes_nobody_along(tmp_path: Path, place: str) -> None:
    file = run_file(tmp_path, "memory_mb = 256")
    text = (tmp_path / "plugins.py").read_text()
    bomb = f"def {place}(self, {'prompt, index' if place == 'open' else 'reply'}):\n"
    at = text.index(bomb) + len(bomb)
    greedy = '        if "3" in getattr(self, "asked", str(getattr(locals().get("prompt"), "number", ""))):\n            bytearray(1 << 34)\n'
    text = text[:at] + greedy + text[at:]
    text = text.replace(
        '        self.heard = ""\n', '        self.heard = ""\n        self.asked = str(prompt.number)\n'
    )
    (tmp_path / "plugins.py").write_text(text)
    with ring(tmp_path / "run", *SHORT, "stage.1.steps=3", file=file) as made:
        assert made.run()
        audit = made.verify()
        assert audit.problems == [] and audit.trained == 12
        letters = made.records("deadletters", DeadLetter)
        assert letters and all("MemoryError" in d.error and "3" in d.group_id.split("@")[0] for d in letters)
