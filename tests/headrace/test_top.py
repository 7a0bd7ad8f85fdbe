"""What ``headrace top`` reads from a log and from the daemons' metrics, and the command itself in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from handmade import Handmade
from patience import HANG
from prometheus_client import CollectorRegistry
from ringtools import answer_of

from broker.messages import DeadLetter, Settled
from broker.run import announced
from headrace.commands.top import daemons
from headrace.running.daemon_metrics import Pulse, total
from headrace.running.progress import Progress
from learner.config import LearnerConfig
from monitoring.metrics import ActorMetrics, RunMetrics, SystemMetrics
from monitoring.view import PAGES, RunView

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Handmade]:
    hand = Handmade(tmp_path / "log").whole()
    hand.run(tmp_path)
    yield hand
    hand.close()


def look(hand: Handmade, home: Path, *shown: str) -> RunView:
    run = hand.run(home)
    with closing(Progress(run, LearnerConfig(run.file), lambda: daemons(run))) as progress:
        return progress.refresh(*shown)


def test_steps_and_samples_are_those_of_the_log(made: Handmade, tmp_path: Path) -> None:
    view = look(made, tmp_path, "steps", "samples")
    assert [(s.version, s.step, s.metrics["staleness_mean"]) for s in view.history] == [(2, 1, 1.0), (3, 2, 0.5)], (
        "of a redo the last holds"
    )
    assert [s.reward for s in view.samples] == [1.5, 0.0, 1.5, 0.0]
    assert view.samples[0].text == "it is 4" and "p-4@0#1" in view.samples[0].title
    assert "accuracy=1 (as it should be)" in view.samples[0].votes
    assert look(made, tmp_path, "queues").samples == [], "only what is looked at is read"


def test_a_stage_that_the_run_file_has_no_more_goes_by_its_number(made: Handmade, tmp_path: Path) -> None:
    made.result(4, {"reward_mean": 0.5}, stage=2)
    view = look(made, tmp_path)
    assert (view.history[-1].stage, view.stage, view.stage_number, view.steps) == ("stage 2", "stage 2", 2, 0)
    made.manifest(5, stage=2, kind="close")
    assert look(made, tmp_path).stage == "stage 2", "nothing follows it"


def test_queues_tell_what_waits_and_for_how_long(made: Handmade, tmp_path: Path) -> None:
    group = made.topics.group("actors")
    consumer = made.log.consumer([made.topics.prompts], group, "actor-0")
    records = consumer.poll(64, 5.0)
    consumer.commit({(made.topics.prompts, records[0].partition): records[0].offset + 1})
    behind = made.log.lag(group, made.topics.prompts)
    (queue,) = look(made, tmp_path, "queues").lags
    assert (queue.group, queue.topic, queue.lag) == ("actors", "prompts", behind) and behind > 0
    assert queue.age is not None and 0 <= queue.age < 3600
    ends = made.log.ends(made.topics.prompts)
    consumer.commit({(made.topics.prompts, p): end for p, end in ends.items()})
    consumer.close()
    (queue,) = look(made, tmp_path, "queues").lags
    assert (queue.lag, queue.age) == (0, None)


def test_dead_letters_are_listed_with_what_became_of_them(made: Handmade, tmp_path: Path) -> None:
    for n in range(12):
        letter = DeadLetter(
            made.topics.rewards, 1, n, b"k", b"v", f"reason {n}", "learner-0", f"p-{n}@0", created=5.0 + n
        )
        at = made.write(made.topics.deadletters, letter)
    made.write(made.topics.deadletters, Settled(at.offset, "replayed"))
    view = look(made, tmp_path, "letters")
    assert view.letters_waiting == 11 and len(view.letters) == 10
    last = view.letters[-1]
    assert (last.record, last.group, last.worker, last.reason) == ("rewards[1] 11", "p-11@0", "learner-0", "reason 11")
    assert (last.became, view.letters[-2].became, last.at) == ("replayed", "waiting", 16.0)


@pytest.mark.long
def test_daemons_are_as_fast_and_busy_as_their_metrics_say(
    made: Handmade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.running.daemon_metrics.SCRAPE_SECONDS", 10.0)
    monkeypatch.setattr("headrace.running.daemon_metrics.ANSWER_SECONDS", 10.0)
    run = made.run(tmp_path)
    actor, above = CollectorRegistry(), CollectorRegistry()
    metrics, system, whole = ActorMetrics(actor), SystemMetrics(actor, "actor"), RunMetrics(above)
    metrics.inflight.set(17)
    metrics.slots.set(24)
    metrics.weight_version.set(9)
    whole.up("actor-0", "actor").set(1)
    whole.up("format-0", "rewarder").set(0)
    whole.restarts("actor-0", "actor").inc(3)
    with announced(run, "actor-0", "actor", actor), announced(run, "supervisor", "supervisor", above):
        pulse = Pulse(tmp_path)
        began = time.time()
        pulse.take(daemons(run), everyone=True)
        metrics.generated_tokens.inc(1000)
        with system.idle("no_prompts"):
            time.sleep(0.3)
        found = {d.name: d for d in pulse.take(daemons(run), everyone=True)}
        passed = time.time() - began
    one = found["actor-0"]
    assert (one.inflight, one.slots, one.version, one.restarts) == (17, 24, 9, 3)
    assert (one.unit, one.state) == ("tok/s", "running")
    assert one.rate is not None and 1000 / passed <= one.rate <= 1000 / 0.3, "over the time between the two looks"
    assert one.busy is not None and 0 <= one.busy < 1
    assert found["format-0"].state == "gone" and "supervisor" not in found
    assert total({"a_total{x=1}": 2.0, "a_total{x=2}": 3.0, "a_total_more": 9.0}, "a_total") == 5.0


def test_one_look_prints_each_view_that_is_asked_for(made: Handmade, tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text('{"seconds": 3725.0}')
    asked = [word for name in PAGES for word in ("--view", name)]
    done = answer_of("top", str(tmp_path), "--once", *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("small  stage 2/2 1-rl (rl)  1:02:05") == len(PAGES) and "\x1b" not in done.stdout
    assert "grad norm" in done.stdout and "it is 4" in done.stdout and "dead letters waiting: 0" in done.stdout
    wrong = answer_of("top", str(tmp_path), "--view", "step")
    assert wrong.returncode == 2 and "'steps'" in wrong.stderr


class Shown:
    """Reads all that a program draws on its terminal."""

    def __init__(self, ours: int) -> None:
        self._ours, self.all = ours, ""

    def until(self, word: str) -> str:
        """What was drawn up to ``word`` since the last call."""
        text, deadline = "", time.monotonic() + HANG
        while word not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text):
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{word!r} did not come: {text[-2000:]}"
            text += os.read(self._ours, 65536).decode(errors="replace")
        self.all += text
        return text


@pytest.mark.long
@pytest.mark.parametrize("end", [b"q", b"\x03"])
def test_keys_switch_the_views_and_the_terminal_is_left_as_it_was(made: Handmade, tmp_path: Path, end: bytes) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    before = termios.tcgetattr(theirs)
    code = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from headrace.__main__ import main; raise SystemExit(main(['top', {str(tmp_path)!r}]))"
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    try:
        shown = Shown(ours)
        shown.until("small  stage 2/2")
        for key, word in (
            (b"4", "grad norm"),
            (b"6", "it is 4"),
            (b"3", "dead letters waiting: 0"),
            (b"h", "the run goes on"),
        ):
            os.write(ours, key)
            shown.until(word)
        os.write(ours, b"\x1b[D")
        shown.until("no daemon of this run")
        os.write(ours, end)
        shown.until("")
        assert program.wait(HANG) == 0
        while select.select([ours], [], [], 0.0)[0]:
            shown.all += os.read(ours, 65536).decode(errors="replace")
        assert termios.tcgetattr(theirs) == before
        assert shown.all.count("\x1b[?1049h") == shown.all.count("\x1b[?1049l") == 1, "the former screen is back"
        assert shown.all.rindex("\x1b[?25h") > shown.all.rindex("\x1b[?25l"), "the cursor is back"
    finally:
        program.kill()
        program.wait()
        os.close(ours)
        os.close(theirs)
