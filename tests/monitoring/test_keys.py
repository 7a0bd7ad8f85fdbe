"""Single keys through a real pseudo-terminal, which is left as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import HANG

from monitoring.keys import LEFT, QUIT, RIGHT, SUSPEND, Keys, names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal: ours, and the program's."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def start(code: str, theirs: int) -> subprocess.Popen[bytes]:
    """A program in a session of its own whose terminal this is; its word on stdout is that it is ready."""
    take = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    return subprocess.Popen(
        [sys.executable, "-c", take + textwrap.dedent(code)],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True,
    )  # fmt: skip


def test_bytes_become_keys() -> None:
    assert names(b"1q\t") == ["1", "q", "\t"]
    assert names(b"\x1b[C\x1b[D\x1bOC") == [RIGHT, LEFT, RIGHT]
    assert names(b"\x1b[1;5A2\x1b[15~\x1bx\x1b") == ["2"], "a sequence that means nothing here is no letter"
    assert names("é".encode() + b"\xff\x7f3") == ["3"] and names(b"") == []


def test_keys_come_without_enter_and_the_terminal_is_left_as_it_was(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    code = """
        from monitoring.keys import Keys
        with Keys() as keys:
            print(keys.there, flush=True)
            while (key := keys.wait(30.0)) != "q":
                print(repr(key), flush=True)
    """
    program = start(code, theirs)
    assert program.stdout is not None and program.stdout.readline() == b"True\n"
    assert termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO) == 0, "in single-key mode"
    os.write(ours, b"12\x1b[C\x1a")
    assert [program.stdout.readline().strip() for _ in range(4)] == [b"'1'", b"'2'", b"'right'", b"'\\x1a'"]
    os.write(ours, b"q")
    assert program.wait(HANG) == 0
    assert termios.tcgetattr(theirs) == before


@pytest.mark.parametrize("how", ["ctrl_c", "terminate", "error"])
def test_however_it_ends_the_terminal_is_left_as_it_was(terminal: tuple[int, int], how: str) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    code = """
        import signal
        from monitoring.keys import Keys
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
        with Keys() as keys:
            print("ready", flush=True)
            keys.wait(30.0)
            raise ValueError("a fault of the program")
    """
    program = start(code, theirs)
    assert program.stdout is not None and program.stdout.readline() == b"ready\n"
    if how == "ctrl_c":
        os.write(ours, b"\x03")
    elif how == "terminate":
        program.send_signal(signal.SIGTERM)
    else:
        os.write(ours, b"x")
    _, said = program.communicate(timeout=HANG)
    expected = {"ctrl_c": b"KeyboardInterrupt", "terminate": b"", "error": b"a fault of the program"}[how]
    assert program.returncode != 0 and expected in said
    assert termios.tcgetattr(theirs) == before


def test_a_pipe_has_no_keys_and_a_lost_terminal_quits() -> None:
    reading, writing = os.pipe()
    with Keys(reading) as keys:
        os.write(writing, b"q")
        assert not keys.there and keys.wait(0.0) == ""
    os.close(reading)
    os.close(writing)
    with Keys(-1) as keys:
        assert not keys.there and keys.wait(0.0) == ""
    assert QUIT == "q" and SUSPEND == "\x1a"


def test_a_terminal_that_goes_away_ends_the_program() -> None:
    ours, theirs = os.openpty()
    code = """
        import signal
        from monitoring.keys import Keys
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Keys() as keys:
            print("ready", flush=True)
            print(keys.wait(30.0), flush=True)
    """
    program = start(code, theirs)
    assert program.stdout is not None and program.stdout.readline() == b"ready\n"
    os.close(theirs)
    os.close(ours)
    assert program.stdout.readline() == b"q\n" and program.wait(HANG) == 0


def test_ctrl_z_stops_the_job_with_the_terminal_as_it_was_until_it_is_continued(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    code = """
        import os, signal
        child = os.fork()
        if not child:  # a job in the foreground, as a shell starts it
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
            from monitoring.keys import SUSPEND, Keys
            with Keys() as keys:
                print("ready", flush=True)
                while (key := keys.wait(30.0)) != "q":
                    if key == SUSPEND:
                        keys.suspend()
                        print("on again", flush=True)
            os._exit(0)
        stopped = os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        print("stopped" if stopped else "ended", flush=True)
        signal.sigwait({signal.SIGUSR1})
        os.kill(child, signal.SIGCONT)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    program = start(
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n" + textwrap.dedent(code), theirs
    )
    assert program.stdout is not None and program.stdout.readline() == b"ready\n"
    os.write(ours, b"\x1a")
    assert program.stdout.readline() == b"stopped\n"
    assert termios.tcgetattr(theirs) == before
    program.send_signal(signal.SIGUSR1)
    assert program.stdout.readline() == b"on again\n"
    assert termios.tcgetattr(theirs)[3] & termios.ICANON == 0, "in single-key mode again"
    os.write(ours, b"q")
    assert program.wait(HANG) == 0 and termios.tcgetattr(theirs) == before
