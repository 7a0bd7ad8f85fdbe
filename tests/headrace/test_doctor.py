"""The doctor on real rings: each stall is staged and must be named, with its evidence and its cure."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import HANG, until
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest
from rich.console import Console
from ringtools import SMALL, answer_of, end_run, freeze, stopped_in_an_append
from runlog import scraped

from broker.messages import DeadLetter, Manifest, encode
from broker.run import Run
from headrace.doctor.evidence import Daemon, Evidence
from headrace.doctor.finding import RECENT_SECONDS
from headrace.doctor.ground import crash_loop
from headrace.running.rundir import reopen
from headrace.running.runfile import check
from headrace.running.supervisor import HEALTHY_SECONDS
from headrace.running.waits import waits
from monitoring.daemon import Registration, own_version, registered
from monitoring.exporter import Exporter
from monitoring.live import PlainView
from monitoring.metrics import ActorMetrics, BrokerMetrics, LearnerMetrics, RewarderMetrics, RunMetrics, SystemMetrics
from monitoring.scrape import samples
from monitoring.view import RunView

MOODS = """
import time
from pathlib import Path

MOOD = Path(__file__).with_name("mood")


class Vowels:
    def __call__(self, sample):
        mood = MOOD.read_text()
        if mood == "flat":
            return 0.5
        if mood == "hang":
            time.sleep(3600)
        return sum(c in "aeiou" for c in sample.text) / max(1, len(sample.text))
"""


class Ring:
    """A ring whose daemons are started and ended by hand."""

    def __init__(self, home: Path) -> None:
        self.home, self.run = home, home / "run"
        home.mkdir(exist_ok=True)
        text = SMALL.read_text().replace('"../../recipes', f'"{SMALL.parents[2]}/recipes')
        text = text.replace("push_timeout = 5.0", "push_timeout = 1.0").replace("steps = 30", "steps = 100000")
        text = text.replace("eval_every = 10", "eval_every = 0")
        text = text.replace('use = "vowels.py:Vowels"', 'use = "vowels.py:Vowels"\ntimeout = 3600.0')
        (home / "ring.toml").write_text(text)
        (home / "vowels.py").write_text(MOODS)
        self.mood("fair")
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def mood(self, mood: str) -> None:
        (self.home / "mood").write_text(mood)

    def start(self, role: str, name: str, *more: str) -> None:
        command = [sys.executable, "-m", "headrace", role, str(self.home / "ring.toml"), "--dir", str(self.run)]
        with (self.home / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [*command, "--name", name, *more],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.daemons[name].pid, number)

    def freeze(self, name: str) -> None:
        freeze(self.daemons[name].pid, self.run)

    def end(self, name: str) -> None:
        end_run(self.daemons.pop(name))

    def diagnosis(self) -> list[dict[str, str]]:
        return list(diagnosis(self.run)["findings"])

    def wait_until_named(self, what: str) -> dict[str, str]:
        """The finding whose text begins with ``what``."""
        deadline = time.monotonic() + HANG
        while True:
            found = self.diagnosis()
            for finding in found:
                if finding["what"].startswith(what):
                    return finding
            assert time.monotonic() < deadline, f"{what!r} was not named, but {found}"

    def steps(self) -> int:
        return self.written("steps")

    def written(self, topic: str) -> int:
        """How many entries a topic has."""
        run = reopen(self.run)
        log = run.open_log()
        found = sum(log.ends(getattr(run.topics, topic)).values())
        log.close()
        return found

    def wait_until_all_is_sampled(self) -> None:
        """With no votes and so no steps, the actor comes to the end of the credits."""
        counts = [-1, self.written("trajectories")]
        while counts[-1] > counts[-2]:
            time.sleep(1.0)
            counts.append(self.written("trajectories"))


def diagnosis(run: Path) -> dict[str, Any]:
    done = answer_of("doctor", str(run), "--json")
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring(tmp_path / "home")
    yield ring
    for name in list(ring.daemons):
        ring.end(name)


@pytest.mark.processes
@pytest.mark.slow
def test_a_ring_by_hand_is_short_of_one_thing_after_the_other(ring: Ring) -> None:
    ring.start("learner", "learner-0")
    until(lambda: (ring.run / "weights").exists() and ring.run.joinpath("run.toml").exists(), "prompts")
    assert "headrace actor" in ring.wait_until_named("no actor lives")["fix"]

    ring.start("actor", "actor-0")
    finding = ring.wait_until_named("no rewarder serves 'vowels'")
    assert "--rewarder vowels" in finding["fix"] and int(finding["evidence"].split()[0]) > 0
    credits = ring.wait_until_named("all credits are held by incomplete groups")
    assert "12 lack votes of 'vowels'" in credits["evidence"]

    ring.mood("hang")
    ring.start("rewarder", "vowels-0", "--rewarder", "vowels")
    assert "samples before it" in ring.wait_until_named("rewarder 'vowels' is behind")["evidence"]
    ring.mood("fair")
    ring.end("vowels-0")
    ring.start("rewarder", "vowels-0", "--rewarder", "vowels")
    begun = ring.steps()
    until(lambda: ring.steps() > begun + 8, "steps")
    until(lambda: diagnosis(ring.run)["ok"], "a sound ring")

    ring.freeze("vowels-0")
    assert ring.wait_until_named("vowels-0 is stopped")["fix"] == f"`kill -CONT {ring.daemons['vowels-0'].pid}`"
    ring.signal("vowels-0", signal.SIGCONT)

    ring.mood("flat")
    assert "equal" in ring.wait_until_named("nearly all groups have equal rewards")["what"]
    ring.mood("fair")

    while evictions(ring.run) < 3:
        # Held back, votes give the learner steps to make, and versions to push, once the actor has stopped.
        ring.freeze("vowels-0")
        ring.wait_until_all_is_sampled()
        ring.freeze("actor-0")
        ring.signal("vowels-0", signal.SIGCONT)
        # Evicted, or no longer heard of before there was a push to it, which counts for nothing: then once more.
        until(lambda: scraped(ring.run, "learner-0")["headrace_weight_receivers"] == 0, "no receiver")
        ring.signal("actor-0", signal.SIGCONT)
        begun = ring.steps()  # at most six can be made of what was complete before
        until(lambda begun=begun: ring.steps() > begun + 8, "steps with it")  # type: ignore[misc]
    assert "evictions" in ring.wait_until_named("broadcasts evict actor-0 again and again")["evidence"]


def evictions(run: Path) -> float:
    return scraped(run, "learner-0").get("headrace_broadcast_evictions_total{member=actor-0}", 0.0)


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """The directory of a run whose log is made, and that nobody runs."""
    from headrace.running.rundir import record

    run = Run.open(SMALL, [], tmp_path)
    record(run)
    run.open_log().close()
    return tmp_path


@pytest.mark.long
def test_a_log_that_is_away_is_the_first_cause(tmp_path: Path) -> None:
    from headrace.running.rundir import record

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    record(Run.open(SMALL, [f"broker.url=kafka://127.0.0.1:{port}"], tmp_path))
    first = diagnosis(tmp_path)["findings"][0]
    assert first["what"] == "the log cannot be reached" and str(port) in first["evidence"]


@pytest.mark.long
def test_a_process_that_was_stopped_with_the_log_in_its_hand_is_named(quiet: Path) -> None:
    with stopped_in_an_append(quiet / "log" / "small.steps.sqlite") as process:
        first = diagnosis(quiet)["findings"][0]
    assert first["what"] == "the log cannot be reached" and f"`kill -CONT {process.pid}`" in first["evidence"]


@pytest.mark.long
def test_a_run_that_nobody_runs_says_how_to_go_on(quiet: Path) -> None:
    (quiet / "logs").mkdir()
    (quiet / "logs" / "learner-0.out").write_text("loading\nfault: the model has no such layer\n")
    (finding,) = diagnosis(quiet)["findings"]
    assert finding["what"] == "no daemon of this run lives" and "no such layer" in finding["evidence"]
    assert str(quiet / "run.toml") in finding["fix"]
    (quiet / "finished").touch()
    assert diagnosis(quiet)["findings"][0]["what"] == "the run is finished"


@pytest.mark.long
def test_what_daemons_export_is_read(quiet: Path) -> None:
    """Daemons' own metrics classes, served as daemons do, in states that no run can be brought into quickly."""
    with ExitStack() as stack:

        def daemon(name: str, role: str, *fill: Callable[[CollectorRegistry], object]) -> None:
            registry = CollectorRegistry()
            for one in fill:
                one(registry)
            exporter = Exporter(registry)
            stack.callback(exporter.close)
            stack.enter_context(registered(quiet, name, role, exporter.address))

        daemon("learner-0", "learner", lambda r: LearnerMetrics(r).phase_since("checkpoint").set(time.time() - 60_000))
        daemon("supervisor", "supervisor", lambda r: RunMetrics(r).restarts("vowels-0", "rewarder").inc(4))
        daemon("actor-0", "actor", lambda r: ActorMetrics(r).weight_version.set(-1))
        daemon(
            "fast",
            "rewarder",
            lambda r: Gauge("headrace_clock_timestamp_seconds", "-", registry=r).set(time.time() + 99),
        )
        daemon("full", "rewarder", lambda r: BrokerMetrics(r).produce_errors("small.rewards", "LogFull").inc())
        (quiet / "logs").mkdir()
        (quiet / "logs" / "vowels-0.out").write_text("fault: out of cheese\n")
        older = quiet / "daemons" / "full.json"
        older.write_text(older.read_text().replace(f'"version": "{own_version()}"', '"version": "0.0.1"'))
        server = Exporter(CollectorRegistry())  # answers /health with 404
        stack.callback(server.close)
        stack.enter_context(registered(quiet, "actor-0.server", "sglang", f"http://{server.address}"))

        found = {f["what"]: f for f in diagnosis(quiet)["findings"]}
        assert "for 60" in found["the learner is in checkpoint"]["evidence"]
        assert "4 restarts; last words: out of cheese" in found["vowels-0 ends again and again"]["evidence"]
        assert "actor-0 has no weights" in found
        assert "s ahead of" in found["the clock of fast is wrong"]["evidence"]
        assert "0.0.1: full" in found["daemons run different versions"]["evidence"]
        assert "appends of full were refused" in found["the log is full"]["evidence"]
        assert "SGLang server actor-0.server is not healthy" in found
        shown = answer_of("doctor", str(quiet))
        assert shown.returncode == 1 and "it waits, because: the log is full" in shown.stdout
        assert "notice: the clock of fast is wrong" in shown.stdout


def test_a_daemon_that_has_lived_for_a_while_is_in_no_crash_loop(quiet: Path) -> None:
    run, now = reopen(quiet), 10_000.0
    registry = CollectorRegistry()
    RunMetrics(registry).restarts("vowels-0", "rewarder").inc(3)
    told = samples(generate_latest(registry).decode())

    def found(lived: float | None) -> list[bool]:
        """Whether it holds up the run, once for each finding."""
        ages = {"supervisor": 9000.0} | ({} if lived is None else {"vowels-0": lived})
        entries = [
            Registration(n, n.partition("-")[0], 1, "127.0.0.1:9", now - age, "here", "1") for n, age in ages.items()
        ]
        living = [Daemon(e, told, told, "S") if e.role == "supervisor" else Daemon(e, {}, {}, "S") for e in entries]
        return [finding.holds for finding in crash_loop(Evidence(run, check(run.file), living, now=now))]

    assert found(None) == [True], "it is down"
    assert found(HEALTHY_SECONDS - 1) == [True]
    assert found(HEALTHY_SECONDS + 1) == [False]
    assert found(RECENT_SECONDS + 1) == []


@pytest.mark.long
def test_one_slow_partition_is_told_from_a_slow_rewarder(quiet: Path) -> None:
    run = reopen(quiet)
    log = run.open_log()
    group, topic = run.topics.group("rewarder.vowels"), run.topics.trajectories
    producer, consumer = log.producer(), log.consumer([topic], group, "m")
    for number in range(40):
        producer.send(topic, b"k", b"not decodable", 3)
        producer.send(topic, b"k", b"not decodable", number % 3)
    producer.flush()
    done: dict[tuple[str, int], int] = {}
    deadline = time.monotonic() + HANG
    while sum(done.values()) < 80:
        assert time.monotonic() < deadline
        for record in consumer.poll(64, 0.1):
            done[record.topic, record.partition] = record.offset + 1
    consumer.commit({place: offset for place, offset in done.items() if place[1] != 3})
    with registered(quiet, "vowels-0", "rewarder", "127.0.0.1:9"):
        found = [f["what"] for f in diagnosis(quiet)["findings"]]
    assert f"partition 3 of {topic} is slow for {group}" in found
    for part in (consumer, producer, log):
        part.close()


@contextmanager
def told(quiet: Path, **daemons: Callable[[CollectorRegistry], object]) -> Iterator[None]:
    """Daemons by ``role`` that export what ``fill`` sets; a rewarder's page is what ``fill`` returns, if that is a dictionary."""
    with ExitStack() as stack:
        for role, fill in daemons.items():
            registry = CollectorRegistry()
            page = fill(registry)
            exporter = Exporter(registry, pages={"/rewarder": lambda page=page: json.dumps(page)})  # type: ignore[misc]
            stack.callback(exporter.close)
            stack.enter_context(registered(quiet, f"{role}-0", role, exporter.address))
        yield


@pytest.mark.long
def test_rewarders_that_are_out_of_order_or_gamed_are_named(quiet: Path) -> None:
    page = {"rewarder": "vowels", "state": "outage", "seconds": 75, "error": "no server", "held": 12, "next_try": 8.0}

    def rewarder(registry: CollectorRegistry) -> object:
        metrics = RewarderMetrics(registry, "vowels")
        metrics.outage.set(1)
        metrics.degraded.set(1)
        return page

    def learner(registry: CollectorRegistry) -> None:
        metrics = LearnerMetrics(registry)
        metrics.away_since("vowels").set(time.time() - 75)
        metrics.reward_gap("vowels").set(0.4)
        metrics.asked_again.inc(3)

    with told(quiet, rewarder=rewarder, learner=learner):
        findings = diagnosis(quiet)["findings"]
        seen = answer_of("top", str(quiet), "--once").stdout
    found = {f["what"]: f for f in findings}
    outage = found["rewarder 'vowels' is out of order, and rewarder-0 holds its samples"]
    assert "75 s, 12 samples, tried again in 8 s; the last error: no server" in outage["evidence"] and outage["holds"]
    assert any(what.startswith("the sandbox of rewarder 'vowels' fails its self-test") for what in found)
    assert not found["rewarder 'vowels' may be gamed: it gives more, and others do not agree"]["holds"]
    assert "samples of 3 groups were lost and are asked for again" in found
    (wait,) = (what for what in found if what.startswith("waiting for rewarder vowels since "))
    assert wait.rpartition(" (")[0] in seen, "top says the same"


@pytest.mark.long
def test_a_row_that_cannot_be_asked_and_a_step_set_aside_are_told(quiet: Path) -> None:
    run = reopen(quiet)
    with closing(run.open_log()) as log:
        producer = log.producer()
        letter = DeadLetter("data.prompts", 0, 17, b"3", b"", "no question", "learner", created=time.time())
        producer.send(run.topics.deadletters, b"prompts", encode(letter))
        producer.send(run.topics.steps, b"set_aside/4", encode(Manifest(4, 1, "set_aside", why="ValueError: too long")))
        producer.flush()
    found = {f["what"]: f["evidence"] for f in diagnosis(quiet)["findings"]}
    assert found["1 rows of [data.prompts] cannot be asked"] == "row 17: no question"
    assert found["step 4 could not be executed and is set aside: its groups train nothing"] == "ValueError: too long"


def test_long_waits_are_one_line_each() -> None:
    now = 10_000.0

    def entry(name: str, role: str, age: float = 75.0) -> Registration:
        return Registration(name, role, 1, "127.0.0.1:9", now - age, "here", "1")

    def exported(*fill: Callable[[CollectorRegistry], object]) -> dict[str, float]:
        registry = CollectorRegistry()
        for one in fill:
            one(registry)
        return samples(generate_latest(registry).decode())

    loading = exported(lambda r: ActorMetrics(r), lambda r: SystemMetrics(r, "actor"))
    sampling = exported(lambda r: ActorMetrics(r).generated_tokens.inc(5))
    waiting = exported(lambda r: LearnerMetrics(r).phase_since("wait_data").set(now - 45), lambda r: None)
    assert waits([(entry("actor-0", "actor"), loading)], now) == ["actor-0 loads its engine (75 s)"]
    assert waits([(entry("actor-0", "actor"), sampling)], now) == []
    assert waits([(entry("actor-0", "actor", 20.0), loading)], now) == [], "not yet worth a word"
    assert "learner-0 waits for judged groups (45 s)" in waits([(entry("learner-0", "learner"), waiting)], now)
    asking = exported(lambda r: LearnerMetrics(r).phase_since("collect").set(now - 45), lambda r: None)
    asked = "learner-0 waits for the answers to an evaluation or a collection (45 s)"
    assert asked in waits([(entry("learner-0", "learner"), asking)], now)
    assert waits([(entry("learner-0", "learner"), {})], now) == [], "who does not answer is another matter"
    assert waits([(entry("mine", "of tomorrow"), {"up": 1.0})], now) == []


def test_a_wait_is_said_once_on_a_plain_terminal() -> None:
    out = io.StringIO()
    view = PlainView(Console(file=out, width=200))
    for seconds in (31, 32, 33):
        view.update(RunView("r", notes=[f"actor-0 loads its engine ({seconds} s)"]))
    view.update(RunView("r"))
    view.update(RunView("r", notes=["actor-0 loads its engine (31 s)"]))
    assert out.getvalue().count("loads its engine") == 2
