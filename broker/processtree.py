"""A child that takes its whole process tree with it when it ends: a keeper process sits between the working process and the parent.

The keeper adopts whatever the worker leaves behind, also what has made a session of its own (PR_SET_CHILD_SUBREAPER), and ends all of it
when the worker ends, when the parent ends or lets go of the lifeline, and at SIGTERM. Linux only. It does not hold against code that kills
its own keeper on purpose: code from a model runs in a sandbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time

from monitoring.daemon import die_with_parent

PR_SET_CHILD_SUBREAPER = 36
END_SECONDS = 5.0  # a process that the kernel has not ended by then is left to init
STOP_SECONDS = 2.0


def keep(lifeline: int) -> None:
    """Fork: returns in the process that works. The calling process stays behind as its keeper, and ends with its exit status.

    ``lifeline`` is the reading end of a pipe that only the parent can write to. To be called before any thread is started.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel cannot keep a process tree together (PR_SET_CHILD_SUBREAPER)")
    keeper = os.getpid()
    wake, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    worker = os.fork()
    if worker:
        _watch(worker, lifeline, wake)
    die_with_parent(keeper)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.close(wake)
    os.close(waking)


def _watch(worker: int, lifeline: int, wake: int) -> None:
    """The keeper's life; never returns."""
    status = 128 + signal.SIGTERM
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)  # the end of what the worker writes is the worker's end alone
        poll = select.poll()
        poll.register(lifeline, 0)  # tells when it is cut, and leaves what is written to the worker
        poll.register(wake, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if lifeline in ready:
                break
            signals = os.read(wake, 64)
            ended = _reap()
            if worker in ended:
                status = os.waitstatus_to_exitcode(ended[worker])
                status = status if status >= 0 else 128 - status
                break
            if signal.SIGTERM in signals:
                break
    finally:
        _end_all()
        os._exit(status)


def _reap() -> dict[int, int]:
    """The wait statuses of the children that have ended, by pid."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def _end_all() -> None:
    """Kill every descendant until there is none: those of a killed one become this process's own children."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        kill_descendants(os.getpid())
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def kill_descendants(pid: int) -> None:
    """SIGKILL to everything below ``pid``."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a kept child with all that lives below it, and close its pipes."""
    halt(process)
    close_pipes(process)


def halt(process: subprocess.Popen[bytes]) -> None:
    """End a kept child with all that lives below it; its pipes stay open, for a thread that still reads them."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:  # somebody has stopped the keeper
        kill_descendants(process.pid)
        process.kill()
        process.wait()


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
