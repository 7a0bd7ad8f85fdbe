"""The supervisor over real processes: restarts, crash loops, faults, bad input, no orphans, one a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import until
from ringtools import gone

import headrace.running.supervisor
from broker.errors import RunFault, RunFileError
from headrace.running.supervisor import Command, Supervisor, sole_supervisor
from monitoring.daemon import Stop

BODIES = {
    "sleeps": "time.sleep(3600)",
    "ends": "sys.exit(0)",
    "ends_on_request": "[time.sleep(0.01) for _ in iter(lambda: Path('done').exists(), True)]",
    "fails": "print('Traceback: no licence'); sys.exit(1)",
    "faults": "print('fault: the disk is full'); print('a last line'); sys.exit(3)",
    "refuses": "print('[learner] lr is wrong', file=sys.stderr); sys.exit(2)",
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "is_deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN); Path('deaf').touch(); time.sleep(3600)",
    "drains": "signal.signal(signal.SIGTERM, lambda *_: (Path('drained').touch(), sys.exit(0))); Path('up').touch(); time.sleep(3600)",
    "drains_long": "signal.signal(signal.SIGTERM, lambda *_: open('signals', 'a').write('x')); Path('up').touch();"
    "[time.sleep(0.01) for _ in iter(lambda: Path('enough').exists(), True)]",
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one module for each kind of daemon; quick back-off."""
    head = "import os, signal, sys, time\nfrom pathlib import Path\nfrom monitoring.daemon import die_with_parent\ndie_with_parent()\n"
    for name, body in BODIES.items():
        (tmp_path / f"{name}.py").write_text(head + body + "\n")
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(headrace.running.supervisor, "BACK_OFF", (0.01, 0.05))
    monkeypatch.setattr(headrace.running.supervisor, "OUTSIDE_BACK_OFF", 0.05)
    monkeypatch.setattr(headrace.running.supervisor, "TICK_SECONDS", 0.05)
    return tmp_path


class Turn:
    """Supervises the modules named; the first is the critical one. ``tick`` is called with this at every turn."""

    def __init__(self, house: Path, *modules: str) -> None:
        self.notes: list[str] = []
        self.stop = Stop()
        commands = [Command(f"{m}-0", "role", (m,)) for m in modules]
        self.supervisor = Supervisor(commands, house / "logs", f"{modules[0]}-0", self.notes.append)

    def run(self, tick: Callable[[], None] = lambda: None) -> int | None:
        return self.supervisor.run(self.stop, tick)

    def pid(self, name: str) -> int:
        return next(view.pid for view in self.supervisor.views() if view.name == f"{name}-0")


def test_the_end_of_the_critical_daemon_is_the_end_of_the_run(house: Path) -> None:
    turn, pids = Turn(house, "ends_on_request", "sleeps"), set()

    def tick() -> None:
        pids.add(turn.pid("sleeps"))
        (house / "done").touch()

    assert turn.run(tick) == 0
    assert pids - {0} and all(gone(pid) for pid in pids - {0}), "the others are ended with it"


@pytest.mark.long
def test_what_is_killed_from_outside_is_started_again_for_ever(house: Path) -> None:
    turn, killed = Turn(house, "ends_on_request", "sleeps"), []

    def tick() -> None:
        pid = turn.pid("sleeps")
        if pid and pid not in killed and len(killed) < 8:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        elif pid and len(killed) == 8 and pid not in killed:
            (house / "done").touch()

    assert turn.run(tick) == 0
    assert len(set(killed)) == 8 and sum("SIGKILL" in note for note in turn.notes) == 8


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "word"), [("fails", "no licence"), ("crashes", "said nothing"), ("faults", "disk is full")]
)
def test_a_crash_loop_stops_the_run_with_its_reason(house: Path, module: str, word: str) -> None:
    turn = Turn(house, "sleeps", module)
    with pytest.raises(
        RunFault, match=rf"{module}-0 has failed {3 if module == 'faults' else 5} times in a row: .*{word}"
    ):
        turn.run()
    assert len(turn.notes) == (2 if module == "faults" else 4) and "starting it again" in turn.notes[0]


@pytest.mark.long
def test_a_healthy_life_forgives_the_failures_before_it(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headrace.running.supervisor, "HEALTHY_SECONDS", 0.0)
    turn = Turn(house, "sleeps", "fails")

    def tick() -> None:
        if len(turn.notes) > 8:
            turn.stop.set()

    assert turn.run(tick) is None


def test_a_fault_of_the_critical_daemon_stops_at_once(house: Path) -> None:
    with pytest.raises(RunFault, match=r"^faults-0: the disk is full$"):
        Turn(house, "faults", "sleeps").run()


def test_bad_input_stops_at_once(house: Path) -> None:
    with pytest.raises(RunFileError, match=r"refuses-0: \[learner\] lr is wrong"):
        Turn(house, "sleeps", "refuses").run()


def test_the_last_words_are_those_of_this_life(house: Path) -> None:
    (house / "logs").mkdir()
    (house / "logs" / "fails-0.out").write_text("fault: of yesterday\n")
    with pytest.raises(RunFault, match="no licence"):
        Turn(house, "fails").run()


@pytest.mark.long
def test_a_stop_drains_and_then_kills(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headrace.running.supervisor, "DRAIN_SECONDS", 3.0)
    turn, pids = Turn(house, "sleeps", "drains", "is_deaf"), {}

    def tick() -> None:
        pids.update({name: turn.pid(name) for name in ("sleeps", "drains", "is_deaf")})
        if (house / "up").exists() and (house / "deaf").exists():
            turn.stop.set()

    assert turn.run(tick) is None
    assert (house / "drained").exists() and all(gone(pid) for pid in pids.values())
    assert "stopping" in turn.notes[-1]


def test_no_orphan_is_left_by_a_killed_supervisor(house: Path) -> None:
    script = house / "main.py"
    script.write_text(
        "from pathlib import Path\nfrom headrace.running.supervisor import Command, Supervisor\nfrom monitoring.daemon import Stop\n"
        "s = Supervisor([Command('a', 'r', ('sleeps',)), Command('b', 'r', ('is_deaf',))], Path('logs'), 'a', print)\n"
        "from monitoring.files import replace\n"
        "s.run(Stop(), lambda: replace(Path('pids'), ' '.join(str(v.pid) for v in s.views())))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        until(lambda: (house / "deaf").exists() and "0" not in (house / "pids").read_text().split())
    finally:
        process.kill()
        process.wait()
    pids = [int(word) for word in (house / "pids").read_text().split()]
    assert len(pids) == 2
    until(lambda: all(gone(pid) for pid in pids), "the end of all orphans")


def test_one_supervisor_a_run(tmp_path: Path) -> None:
    with sole_supervisor(tmp_path), pytest.raises(RunFault, match=f"pid {os.getpid()}"), sole_supervisor(tmp_path):
        raise AssertionError("two supervisors")
    with sole_supervisor(tmp_path):
        assert (tmp_path / "supervisor.lock").read_text() == str(os.getpid())


def test_a_daemon_that_is_part_of_the_run_no_more_drains_and_is_forgotten(house: Path) -> None:
    turn = Turn(house, "sleeps", "drains", "fails")

    def tick() -> None:
        names = [view.name for view in turn.supervisor.views()]
        if names == ["sleeps-0"]:
            turn.stop.set()
        elif (house / "up").exists():
            turn.supervisor.change([Command("sleeps-0", "role", ("sleeps",))], ())

    assert turn.run(tick) is None
    assert (house / "drained").exists() and "drains-0 has left: the run file names it no more" in turn.notes


def test_edits_are_no_failures_however_many(house: Path) -> None:
    turn, views = Turn(house, "sleeps", "drains"), []
    commands = [Command(f"{m}-0", "role", (m,)) for m in ("sleeps", "drains")]

    def tick() -> None:
        if not (house / "up").exists():
            return
        views.append(turn.supervisor.views()[1])
        if len(views) > 6:
            turn.stop.set()
            return
        (house / "up").unlink()
        if len(views) == 3:  # taken out, and put back at once
            turn.supervisor.change(commands[:1], ())
            turn.supervisor.change(commands, ())
        else:
            turn.supervisor.change(commands, {"drains-0"})

    assert turn.run(tick) is None
    assert len({view.pid for view in views}) == 7 and {view.restarts for view in views} == {0}
    assert turn.notes[:-1] == ["drains-0 is started anew: its table was edited"] * 6


def test_further_edits_leave_a_daemon_that_ends_its_time(house: Path) -> None:
    turn, signals, edits = Turn(house, "sleeps", "drains_long"), house / "signals", 0
    commands = [Command(f"{m}-0", "role", (m,)) for m in ("sleeps", "drains_long")]

    def tick() -> None:
        nonlocal edits
        if edits == 0 and (house / "up").exists():
            turn.supervisor.change(commands, {"drains_long-0"})
            edits = 1
        elif edits == 1 and signals.exists() and signals.read_text():
            turn.supervisor.change(commands, {"drains_long-0"})
            turn.supervisor.change(commands[:1], ())
            edits = 2
        elif edits == 2:
            (house / "enough").touch()
            if len(turn.supervisor.views()) == 1:
                turn.stop.set()

    assert turn.run(tick) is None
    assert signals.read_text() == "x"
