"""Whole runs on one thread: killed anywhere and redone, replayed, poisoned, edited, asked, full, set aside. What only processes prove is in
tests/headrace."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ring import Ring, ring
from ringtools import small_copy

from broker.errors import LogFull, RunFault
from broker.log import Producer
from broker.messages import Artefact, Manifest, Outage, Prompt, encode
from headrace.running.rundir import reopen
from learner.planning.requests import Asked, leave
from learner.planning.thread import Planning
from learner.replay import replay

SHORT = ("stage.0.steps=2", "stage.1.steps=8", "stage.1.eval_every=0", "stage.2.questions=4")

ASKS = """
import os
from rewarders.rewarder import Outage

class Vowels:
    def __call__(self, sample):
        if os.path.exists({down!r}):
            raise Outage("nobody answers")
        return sum(c in "aeiou" for c in sample.text) / max(1, len(sample.text))
"""


def replayed(made: Ring, out: Path, *settings: str) -> str:
    last = made.steps()[-1].step
    return replay(reopen(made.directory), 2, last, out, reopen(made.directory, list(settings)) if settings else None)


@pytest.mark.long
def test_a_killed_learner_is_redone_bit_for_bit_and_poison_is_buried(tmp_path: Path) -> None:
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=1000") as made:
        made.kill_at(4)  # no checkpoint since the first stage: every step is redone from the log
        made.killed()
        made.send("prompts", b"nobody", b"\xc1 rubbish")
        made.send("trajectories", b"nobody", b"\xc1 rubbish")
        made.send("rewards", b"nobody", encode(Manifest(0, 0, "close")))
        made.kill_at(7)
        made.killed()
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding, audit.problems) == (8, 32, 0, [])
        assert audit.dead_letters == 3, "two poison records of the learner's topics, and one of the actor's"
        assert replayed(made, tmp_path / "again") == made.newest_sha256(), "killed twice and redone: the same weights"
        assert (
            replayed(made, tmp_path / "other", "learner.objective=topr", "learner.optimizer.lr=1e-2")
            != made.newest_sha256()
        )


@pytest.mark.long
@pytest.mark.parametrize("version", [1, 2, 5, 9, 10])
def test_a_kill_at_any_version_loses_nothing_and_trains_nothing_twice(tmp_path: Path, version: int) -> None:
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=3") as made:
        made.kill_at(version)
        if version < 10:
            made.killed()
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.evaluated, audit.outstanding) == (8, 32, 4, 0) and not audit.problems


@pytest.mark.long
def test_a_stop_is_resumed(tmp_path: Path) -> None:
    with ring(tmp_path, *SHORT) as made:
        made.when(lambda: len(made.steps()) >= 3, lambda: made.stop.set())
        assert not made.run()
        assert 3 <= len(made.steps()) < 8
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding, audit.problems) == (8, 32, 0, [])


@pytest.mark.long
def test_a_run_that_is_over_goes_on_with_more_steps(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    text = file.read_text()
    file.write_text(text[: text.index('[[stage]]\nkind = "evaluate"')])
    constant = "learner.optimizer.schedule=constant"
    settings = ("stage.0.steps=2", "stage.1.eval_every=2", "stage.1.eval_questions=4", constant)
    with ring(tmp_path / "run", *settings, "stage.1.steps=8", file=file) as made:
        assert made.run() and made.run(), "there is nothing more to do"
        assert len(made.steps()) == 8
    with ring(tmp_path / "run", *settings, "stage.1.steps=11", file=file) as made:
        assert made.run()
        assert [r.stage_step for r in made.results() if r.stage == 1] == list(range(1, 12))
        assert [e.name for e in made.evaluations()] == [f"rl:{step}" for step in (2, 4, 6, 8, 10)], "each of them once"
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding, audit.problems) == (11, 44, 0, [])
        assert replayed(made, tmp_path / "again") == made.newest_sha256()


@pytest.mark.long
def test_a_stage_that_has_reached_its_aim_ends_and_what_was_planned_is_trained(tmp_path: Path) -> None:
    file = sure_copy(tmp_path)
    with ring(tmp_path / "run", *AIMED, file=file) as made:
        assert made.run()
        audit = made.verify()
        assert 4 <= audit.steps < 100 and audit.trained == 4 * audit.steps and audit.outstanding == 0
        assert made.evaluations()[-1].name == "after", "and the stage behind it was run"


@pytest.mark.long
def test_a_last_stage_that_has_reached_its_aim_does_not_go_on_when_the_run_is_started_again(tmp_path: Path) -> None:
    file = sure_copy(tmp_path)
    text = file.read_text()
    file.write_text(text.replace(text[text.index('[[stage]]\nkind = "evaluate"') : text.index("[rewarders.sure]")], ""))
    with ring(tmp_path / "run", *AIMED, file=file) as made:
        assert made.run()
        before = len(made.positions("steps"))
        assert made.run()
        assert len(made.positions("steps")) == before


AIMED = (
    "stage.0.steps=60", "stage.1.steps=100000", "stage.1.eval_every=4", "learner.checkpoint_every=2",
    "stage.1.until_pass_at_1=0.01",
)  # fmt: skip


def sure_copy(directory: Path) -> Path:
    """The small ring, where each answer that ends is right."""
    file = small_copy(directory)
    (directory / "sure.py").write_text("class Sure:\n    def __call__(self, sample):\n        return 1\n")
    text = file.read_text().replace('eval_rewarder = "vowels"', 'eval_rewarder = "sure"\nuntil_pass_at_1 = 0.9')
    text = text.replace("vowels = 1.0", "vowels = 1.0, sure = 0.1").replace(
        "max_new_tokens = 12", "max_new_tokens = 60"
    )
    file.write_text(text + '\n[rewarders.sure]\nuse = "sure.py:Sure"\n')
    return file


@pytest.mark.long
def test_a_rewarder_is_plugged_in_and_taken_out_by_editing_the_run_file(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    text = file.read_text()
    with ring(tmp_path / "run", *SHORT, "stage.1.steps=16", file=file) as made:

        def plug() -> None:
            source = "class Brevity:\n    def __call__(self, sample):\n        return 1.0 / (1 + len(sample.text))\n"
            (tmp_path / "brevity.py").write_text(source)
            plugged = text.replace("vowels = 1.0", "vowels = 1.0, brevity = 0.5")
            file.write_text(plugged + '\n[rewarders.brevity]\nuse = "brevity.py:Brevity"\n')
            made.follow_file()
            made.start_rewarder("brevity")
            made.when(lambda: len(made.steps()) >= 8, lambda: file.write_text(text))

        made.when(lambda: len(made.steps()) >= 2, plug)
        assert made.run()
        audit = made.verify()
        assert (audit.trained, audit.outstanding, audit.dropped) == (64, 0, 0)
        fed = sorted((p for p in made.records("prompts", Prompt) if p.purpose == "train"), key=lambda p: p.number)
        mixes = [frozenset(p.rewards) for p in fed]
        both, one = frozenset({"vowels", "brevity"}), frozenset({"vowels"})
        first, last = mixes.index(both), len(mixes) - mixes[::-1].index(both)
        assert 8 <= first < last < len(mixes)
        assert set(mixes[:first]) == set(mixes[last:]) == {one} and set(mixes[first:last]) == {both}


@pytest.mark.long
def test_a_rewarder_that_a_source_still_names_is_waited_for_when_it_leaves_the_mix_of_the_run(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    (tmp_path / "sure.py").write_text("class Sure:\n    def __call__(self, sample):\n        return 1\n")
    text = file.read_text() + '\n[rewarders.sure]\nuse = "sure.py:Sure"\n'
    text = text.replace("seed = 2 }", "seed = 2, rewards = { vowels = 1.0 } }")
    own = 'more = { use = "learner.data.sums:SignedSums", seed = 4, rewards = { vowels = 1.0, sure = 0.2 } }'
    text = text.replace("[data]\n", f"[data]\n{own}\n").replace(
        'kind = "rl"', 'kind = "rl"\ndata = { prompts = 1, more = 1 }'
    )
    both = text.replace("rewards = { vowels = 1.0 }\n", "rewards = { vowels = 1.0, sure = 0.1 }\n")
    file.write_text(both)
    with ring(tmp_path / "run", *SHORT, "stage.1.steps=4", file=file) as made:
        del made._tables["sure"]  # nobody serves it yet

        def followed() -> bool:
            return made.learner is not None and made.learner.sources.mix == {"vowels": 1.0}

        def edit() -> None:
            file.write_text(text)
            made.when(followed, lambda: made.start_rewarder("sure"))

        made.when(lambda: bool(made.records("prompts", Prompt)), edit)
        assert both != text and made.run()
        judges = {
            (group.group_id.partition("-")[0], tuple(vote.rewarder for vote in sample.votes))
            for step in made.steps() for group in step.groups for sample in group.samples
        }  # fmt: skip
        assert ("more", ("vowels", "sure")) in judges and ("more", ("vowels",)) not in judges


@pytest.mark.long
def test_an_evaluation_that_a_killed_learner_began_and_no_other_is_asked_for_ends_with_the_stage(
    tmp_path: Path,
) -> None:
    short = ("stage.0.steps=2", "stage.1.steps=4", "stage.2.questions=4")

    def asked(made: Ring) -> bool:
        return any(p.purpose == "eval" for p in made.records("prompts", Prompt))

    with ring(tmp_path, *short, "stage.1.eval_every=2") as made:
        made.when(lambda: asked(made), made.kill)
        made.killed()
    with ring(tmp_path, *short, "stage.1.eval_every=0") as made:
        assert made.run()
        audit = made.verify()
        assert (audit.outstanding, audit.dropped_by_reason, audit.problems) == (0, {"stage_end": 8}, [])
        assert [e.name for e in made.evaluations()] == ["after"]


@pytest.mark.long
def test_an_outage_of_a_rewarder_holds_the_run_and_drops_no_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, down = small_copy(tmp_path), tmp_path / "down"
    (tmp_path / "vowels.py").write_text(ASKS.format(down=str(down)))
    with ring(tmp_path / "run", *SHORT, "learner.deadline=60", file=file) as made:

        def age() -> None:
            """As if the outage had lasted for long already; the rewarder has told of it."""
            planner = made.learner.planning._planner if made.learner else None
            assert planner is not None and planner.join.outages.lasting(time.time()).keys() == {"vowels"}
            assert planner.training()
            planner._started -= 1000
            for group in planner.training():
                group.fed -= 1000
            rounds = made.rounds
            made.when(lambda: made.rounds > rounds + 20, down.unlink)

        def told() -> bool:
            learner = made.learner
            return learner is not None and bool(learner.planning._planner.join.outages.lasting(time.time()))

        def begin() -> None:
            down.touch()
            made.when(told, age)

        made.when(lambda: len(made.steps()) >= 2, begin)
        assert made.run()
        audit = made.verify()
        assert (audit.trained, audit.outstanding, audit.dropped, audit.problems) == (32, 0, 0, [])
        said = [outage.away for outage in made.records("rewards", Outage)]
        assert said[0] and not said[-1]
    assert "rewarder vowels (vowels-0) is out of order" in caplog.text and "nobody answers" in caplog.text


@pytest.mark.long
def test_the_last_version_of_a_stage_is_published_for_its_evaluation(tmp_path: Path) -> None:
    settings = ("stage.0.steps=2", "stage.1.steps=6", "stage.1.eval_every=3", "stage.1.eval_questions=4")
    with ring(tmp_path, *settings, "stage.2.questions=4", "learner.publish_every=4") as made:
        assert made.run()
        assert [(e.name, e.step, e.metrics["questions_asked"]) for e in made.evaluations()] == [
            ("rl:3", 4, 4.0), ("rl:6", 7, 4.0), ("after", 7, 4.0),
        ]  # fmt: skip
        assert not [e.name for e in made.evaluations() if e.dropped or e.doubt]


@pytest.mark.long
def test_an_evaluation_is_asked_for_while_the_run_goes_on_and_outlives_its_learner(tmp_path: Path) -> None:
    asked = Asked(name="now", rewarder="vowels", questions=6, k=3)
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=1000") as made:
        made.when(lambda: len(made.steps()) >= 2, lambda: leave(tmp_path, asked) and None)
        made.kill_at(5)
        made.killed()
        later = leave(tmp_path, Asked(name="later", rewarder="vowels", questions=4))
        assert made.run()
        found = {e.name: e for e in made.evaluations()}
        assert set(found) == {"now", "later", "after"} and not later.exists()
        assert (found["now"].k, found["now"].metrics["questions_asked"]) == (3, 6.0)
        assert made.verify().evaluated == 6 + 4 + 4


@pytest.mark.long
def test_a_full_disk_stops_the_run_with_a_clear_line_and_it_resumes(tmp_path: Path) -> None:
    """The log may not grow beyond one megabyte a topic, and that of the votes is nearly full before the run begins."""
    small = f"broker.url=sqlite://{tmp_path / 'log'}?max_mb=1"
    with pytest.raises(LogFull, match="free some"), ring(tmp_path, *SHORT, small) as made:
        fill(made, "rewards")
        made.run()
    with ring(tmp_path, *SHORT) as made:
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding, audit.problems) == (8, 32, 0, [])


def fill(made: Ring, topic: str) -> None:
    for size in (60_000, 500):
        with pytest.raises(LogFull):
            while True:
                made.send(topic, b"nobody", bytes(size))


MEMORY = (
    "stage.0.lora.rank=4", "stage.0.gradient_checkpointing=true", "stage.0.offload=all", "learner.lora.rank=4",
    "learner.lora.publish=adapters", "learner.gradient_checkpointing=true", "learner.offload=all", "learner.optimizer.lr=1e-2",
)  # fmt: skip


@pytest.mark.long
def test_a_run_with_every_memory_option_and_its_replay(tmp_path: Path) -> None:
    with ring(tmp_path, *SHORT, *MEMORY) as made:
        made.kill_at(6)
        made.killed()
        assert made.run()
        audit = made.verify()
        assert (audit.steps, audit.trained, audit.outstanding) == (8, 32, 0)
        results = [r for r in made.results() if r.stage == 1]
        assert all(r.metrics["mismatch"] < 1e-4 for r in results if "mismatch" in r.metrics), (
            "the merged policy samples"
        )
        assert all(r.metrics["trained_parameter_bytes"] < 0.2 * r.metrics["parameter_bytes"] for r in results)
        assert replayed(made, tmp_path / "again") == made.newest_sha256()
        written = sorted(p.name for p in (tmp_path / "adapters" / "1-rl").iterdir())
        assert written[0] == "base" and written[-1] == "v-00000009"


@pytest.mark.long
def test_a_step_that_cannot_be_executed_is_set_aside_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, {3, 5})
    with ring(tmp_path, *SHORT, "learner.checkpoint_every=4") as made:
        made.kill_at(6)
        made.killed()
        assert made.run()
        marks = [m for m in made.records("steps", Manifest) if m.kind == "set_aside"]
        assert [m.step for m in marks] == [3, 5] and "too long for the window" in marks[0].why
        assert {r.step for r in made.results() if r.stage == 1} == {2, 4, 6, 7, 8, 9}
        audit = made.verify()
        assert audit.outstanding == 0 and audit.problems == []
        assert (audit.trained, audit.dropped_by_reason.get("set_aside")) == (24, 8)
        assert replayed(made, tmp_path / "again") == made.newest_sha256()


@pytest.mark.long
def test_a_step_is_set_aside_on_the_thread_that_owns_the_producer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learner import opening

    fails_at(monkeypatch, {3})
    exclusive = opening.exclusive_steps
    monkeypatch.setattr(opening, "Planning", Threaded)
    monkeypatch.setattr(opening, "exclusive_steps", lambda *arguments: Owned(exclusive(*arguments)))
    with ring(tmp_path, *SHORT) as made:
        assert made.run()
        assert [m.step for m in made.records("steps", Manifest) if m.kind == "set_aside"] == [3]


class Threaded(Planning):
    """Planning on a thread of its own, which nobody but its caller turns."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="planner")

    def call(self, action: Callable[[], Any]) -> Any:
        return self._pool.submit(action).result()

    def round(self, timeout: float = 0.02) -> None:
        self._pool.submit(super().round, timeout).result()

    def stop(self) -> None:
        self._pool.shutdown()


class Owned:
    """A producer that only the planner's thread may use."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        assert name == "close" or threading.current_thread().name.startswith("planner"), name
        return getattr(self._producer, name)


def test_a_run_whose_steps_all_fail_ends_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, set(range(100)))
    with ring(tmp_path, *SHORT) as made, pytest.raises(RunFault, match=r"3 steps .* could not be executed.*too long"):
        made.run()


def fails_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """A model that cannot take the groups of these steps."""
    from learner.training import executor

    taken = executor.train_step

    def failing(state: object, groups: object, *rest: object) -> object:
        if state.step + 1 in steps:  # type: ignore[attr-defined]
            raise ValueError("a sequence of 300 tokens is too long for the window of 256")
        return taken(state, groups, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "train_step", failing)


REJECT = """
[[stage]]
kind = "reject"
name = "chosen"
questions = 6
samples = 4
keep = 2
require = { vowels = 0.05 }
sampling = { max_new_tokens = 60 }

[[stage]]
kind = "sft"
name = "cold"
data = "chosen"
model = "base"
steps = 3
documents_per_step = 2
"""


@pytest.mark.long
def test_what_a_stage_collects_is_trained_on_and_can_be_traced_to_its_votes(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    text = file.read_text()
    file.write_text(text[: text.index('[[stage]]\nkind = "rl"')] + REJECT)
    home = tmp_path / "run"
    with ring(home, "stage.0.steps=30", file=file) as made:
        made.kill_at(3)  # the weights of the last stage: the artefact is there, the stage has not closed
        made.killed()
        assert made.run()
        (artefact,) = made.records("steps", Artefact)
        assert artefact.metrics["documents"] == sum(len(g.samples) for g in artefact.kept) > 0
        assert {len(g.samples) for g in artefact.kept} <= {1, 2} and len(artefact.kept) + len(artefact.dropped) == 6
        rows = [json.loads(line) for line in (home / artefact.path).read_text().splitlines()]
        assert hashlib.sha256((home / artefact.path).read_bytes()).hexdigest() == artefact.sha256
        samples = {(p.partition, p.offset): t for p, t in made.positions("trajectories")}
        votes = {(p.partition, p.offset): v for p, v in made.positions("rewards")}
        for row in rows:
            sample = samples[tuple(row["metadata"]["position"])]
            assert (sample.id, sample.text, sample.purpose) == (row["metadata"]["sample"], row["response"], "collect")
        for ref in (s for g in artefact.kept for s in g.samples):
            (vote,) = [votes[tuple(v.position)] for v in ref.votes]
            assert vote.rewarder == "vowels" and vote.value >= 0.05
        trained = [r for r in made.results() if r.stage == 2]
        assert trained and trained[-1].metrics["tokens_trained"] > 0
        audit = made.verify()
        assert (audit.fed, audit.outstanding, audit.problems) == (6, 0, [])
