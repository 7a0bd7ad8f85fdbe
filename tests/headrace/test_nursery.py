"""Daemons that are forked behave as those that are started: parents, names, output, stops, ends, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from patience import HANG, until
from ringtools import gone

from headrace.running.nursery import Nursery
from headrace.running.supervisor import Command, Supervisor
from monitoring.daemon import PARENT, Stop
from monitoring.processes import Forked

pytestmark = pytest.mark.processes
HEAD = "import os, random, signal, sys, time\nfrom pathlib import Path\nfrom monitoring.daemon import die_with_parent\n\nif __name__ == '__main__':\n    die_with_parent()\n    "
BODIES = {
    "tells": "import numpy, colorsys; print(os.getppid(), os.getsid(0) == os.getpid(), sys.argv[1:], __name__, random.random(), "
    "numpy.random.random(), os.environ['FLAVOUR']); print('wrong', file=sys.stderr); sys.exit(7)",
    "sleeps": "time.sleep(3600)",
    "drains": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up', flush=True); time.sleep(3600)",
    "raises": "raise ValueError('no licence')",
    "runs_out": "import atexit; atexit.register(print, 'at the end')",
    "ends_on_request": "[time.sleep(0.01) for _ in iter(lambda: Path('done').exists(), True)]",
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, body in BODIES.items():
        (tmp_path / f"{name}.py").write_text(HEAD + body + "\n")
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def eventually(nursery: Nursery) -> Nursery:
    deadline = time.monotonic() + HANG
    while not nursery.ready():
        assert nursery.importing and time.monotonic() < deadline
        time.sleep(0.01)
    return nursery


@pytest.fixture
def nursery(house: Path) -> Iterator[Nursery]:
    with closing(Nursery(BODIES, ["numpy", "json"])) as made:
        yield eventually(made)


def start(nursery: Nursery, house: Path, *arguments: str) -> tuple[Forked, Path]:
    out = house / f"{arguments[0]}.{time.monotonic_ns()}.out"
    environment = {**os.environ, PARENT: str(os.getpid()), "FLAVOUR": "vanilla"}
    with out.open("ab") as output:
        made = nursery.start(arguments, output, environment)
    assert made is not None
    return made, out


def test_a_fork_is_a_child_of_the_supervisor_with_its_own_session_name_and_output(
    nursery: Nursery, house: Path
) -> None:
    lines = []
    for _ in range(2):
        process, out = start(nursery, house, "tells", "--name", "one")
        assert process.wait(HANG) == process.poll() == 7
        first, second = out.read_text().splitlines()
        assert second == "wrong"
        *known, own, numpys, flavour = first.split(" ")
        assert known == [str(os.getpid()), "True", "['--name',", "'one']", "__main__"] and flavour == "vanilla"
        lines.append((own, numpys))
    assert lines[0][0] != lines[1][0] and lines[0][1] != lines[1][1], "no two daemons draw the same"


def test_it_is_known_by_its_arguments_and_drains_at_a_sigterm(nursery: Nursery, house: Path) -> None:
    process, out = start(nursery, house, "drains", "run.toml")
    until(lambda: "up" in out.read_text())
    found = psutil.Process(process.pid)
    assert [w for w in found.cmdline() if w][1:] == ["-m", "drains", "run.toml"] and found.ppid() == os.getpid()
    process.terminate()
    assert process.wait(HANG) == 5


def test_its_ends_are_those_of_a_process_of_its_own(nursery: Nursery, house: Path) -> None:
    process, out = start(nursery, house, "raises")
    assert process.wait(HANG) == 1 and out.read_text().splitlines()[-1] == "ValueError: no licence"
    process, out = start(nursery, house, "runs_out")
    assert process.wait(HANG) == 0 and out.read_text() == "at the end\n"
    process, _ = start(nursery, house, "sleeps")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.kill()
    assert process.wait(HANG) == -signal.SIGKILL
    process.terminate()


def test_a_nursery_that_dies_leaves_its_daemons_alone_and_starts_no_more(nursery: Nursery, house: Path) -> None:
    process, _ = start(nursery, house, "sleeps")
    assert nursery._process is not None
    nursery._process.kill()
    nursery._process.wait()
    with (house / "more.out").open("ab") as output:
        assert nursery.start(["sleeps"], output, {**os.environ, PARENT: str(os.getpid())}) is None
    assert not nursery.takes(["sleeps"]) and process.poll() is None
    process.kill()
    process.wait(HANG)


def test_what_cannot_be_imported_makes_no_nursery(house: Path) -> None:
    with closing(Nursery(BODIES, ["no_such_module"])) as made:
        deadline = time.monotonic() + HANG
        while made.importing:
            assert not made.ready() and time.monotonic() < deadline
            time.sleep(0.01)
        assert not made.takes(["sleeps"])


@pytest.mark.parametrize("dead", [False, True])
def test_a_supervisor_restarts_what_was_forked_with_and_without_its_nursery(house: Path, dead: bool) -> None:
    killed: set[int] = set()
    with closing(Nursery(BODIES, ["json"])) as made:
        commands = [Command(f"{m}-0", "role", (m,)) for m in ("ends_on_request", "sleeps")]
        supervisor = Supervisor(commands, house / "logs", "ends_on_request-0", lambda note: None, made)

        def tick() -> None:
            pid = next(view.pid for view in supervisor.views() if view.name == "sleeps-0")
            if pid and not killed:
                killed.add(pid)
                if dead:
                    made.close()
                os.kill(pid, signal.SIGKILL)
            elif pid and pid not in killed:
                (house / "done").touch()

        assert supervisor.run(Stop(), tick) == 0
    assert killed and not psutil.pid_exists(killed.pop())


def test_no_daemon_outlives_a_supervisor_that_is_killed(house: Path) -> None:
    code = (
        "import os, sys, time\nfrom headrace.running.nursery import Nursery\nfrom monitoring.daemon import PARENT\n"
        "made = Nursery(['sleeps'], ['json'])\n"
        "while not made.ready(): time.sleep(0.01)\n"
        "process = made.start(['sleeps'], open('sleeps.out', 'ab'), {**os.environ, PARENT: str(os.getpid())})\n"
        "print(process.pid, made._process.pid, flush=True)\ntime.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        time.sleep(0.5)  # the daemon is asking the kernel to end it with its parent
        supervisor.kill()
    until(lambda: all(gone(pid) for pid in pids), "the end of what it had started")
