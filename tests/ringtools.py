"""Starts whole runs for tests, and ends every process that they have started."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import psutil
from patience import HANG, until

from headrace.__main__ import main
from monitoring.processes import STOPPED, holder_of, state_of

SMALL = Path(__file__).resolve().parent / "chaos" / "run.toml"


def start_run(directory: Path, *arguments: str, file: Path = SMALL) -> subprocess.Popen[bytes]:
    """``headrace run`` in a session of its own; its output is appended to ``directory/run.out``."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "run.out").open("ab") as out:
        command = [sys.executable, "-m", "headrace", "run", str(file), "--dir", str(directory), "--plain", *arguments]
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


class Answer(NamedTuple):
    """What a command has said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: for what a process alone shows, and for commands that change signals or logging."""
    return subprocess.run([sys.executable, "-m", "headrace", *arguments], capture_output=True, text=True, timeout=HANG)


def answer_of(*arguments: str) -> Answer:
    """A command in this process: the same arguments, output and exit status, without another start of Python and its libraries."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 1
    return Answer(status, out.getvalue(), err.getvalue())


def verify(directory: Path) -> dict[str, object]:
    done = answer_of("verify", str(directory), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def processes(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Every process below the supervisor."""
    try:
        return psutil.Process(run.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def by_role(run: subprocess.Popen[bytes], role: str) -> list[psutil.Process]:
    """The processes of a role: ``learner``, ``actors``, ``rewarders``, ``publisher`` or ``judge``."""
    words = {"publisher": "broker.weights.process", "judge": "broker.isolation"}
    found = []
    for process in processes(run):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if words.get(role, role) in command:
            found.append(process)
    return found


def old_run(directory: Path) -> Path:
    """A copy of the whole run of version 0.1.0, as the directory that it was made in."""
    shutil.copytree(Path(__file__).resolve().parent / "fixtures" / "v1", directory / "old")
    run = directory / "old" / "run"
    (run / "run.base").write_text(str(directory / "old"))
    return run


def small_copy(directory: Path) -> Path:
    """The small ring's run file and rewarder in ``directory``, to be edited."""
    directory.mkdir(parents=True, exist_ok=True)
    text = SMALL.read_text().replace("../../recipes", str(SMALL.parents[2] / "recipes"))
    (directory / "small.toml").write_text(text)
    (directory / "vowels.py").write_text((SMALL.parent / "vowels.py").read_text())
    return directory / "small.toml"


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    return state_of(pid) in ("", "Z", "X")


def freeze(pid: int, run: Path) -> None:
    """SIGSTOP a process, but not while it holds a file of the run's log, which would hold up everybody else there."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state_of(pid) == STOPPED, "a stop")
        if pid not in {holder(file) for file in (run / "log").glob("*.lock")}:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


@contextmanager
def stopped_in_an_append(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has stopped itself with ``file`` of an embedded log locked; SIGCONT lets it end."""
    script = "from pathlib import Path\nimport os, signal, sys\nfrom broker.sqlite.files import LockedFile\n"
    script += "with LockedFile(Path(sys.argv[1])).write():\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    with subprocess.Popen([sys.executable, "-c", script, str(file)]) as process:
        try:
            os.waitpid(process.pid, os.WUNTRACED)
            yield process
        finally:
            process.kill()


def kill_one_of(run: subprocess.Popen[bytes], role: str, rng: random.Random) -> bool:
    """SIGKILL a process of the role; False if there is none at the moment."""
    found = by_role(run, role)
    try:
        rng.choice(found).kill()
    except (IndexError, psutil.NoSuchProcess):
        return False
    return True


def kill(
    role: str, run: subprocess.Popen[bytes], rng: random.Random, home: Path, options: Sequence[str]
) -> subprocess.Popen[bytes]:
    """SIGKILL one process of ``role``; returns the run, another one where that was the supervisor."""
    if role == "supervisor":
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        return start_run(home, *options)
    deadline = time.monotonic() + HANG
    while not kill_one_of(run, role, rng):  # it may just be starting anew
        assert time.monotonic() < deadline and run.poll() is None, (home / "run.out").read_text()[-3000:]
        time.sleep(0.02)
    return run


def sets(*settings: str) -> list[str]:
    """``--set`` before each setting."""
    return [part for setting in settings for part in ("--set", setting)]


def holder(file: Path) -> int | None:
    with file.open() as opened:
        return holder_of(opened.fileno())


def end_run(run: subprocess.Popen[bytes]) -> None:
    """End a run and make sure that nothing of it is left."""
    left = processes(run)
    if run.poll() is None:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    until(lambda: all(gone(p.pid) for p in left), "the end of all orphans")
