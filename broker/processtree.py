"""A child whose whole process tree ends with it: a keeper process sits between the worker and the parent.

The keeper adopts orphans of the worker, even those in their own session (PR_SET_CHILD_SUBREAPER), and kills all of them when the
worker ends, when the parent ends or closes the lifeline, and at SIGTERM. Linux only. Code that kills its keeper on purpose escapes:
code from a model runs in a sandbox.
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
    """Fork, and return in the worker. The calling process becomes its keeper, and exits with its status. Raises OSError.

    ``lifeline`` is the reading end of a pipe that only the parent can write to. Call it before starting any thread.
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
    """The keeper's loop; never returns."""
    status = 128 + signal.SIGTERM
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)  # readers must see the end of output when the worker ends
        poll = select.poll()
        poll.register(lifeline, 0)  # reports only a hang-up; what is written is for the worker
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
    """Kill descendants until none is left; the children of a killed one become this process's own."""
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
    """Kill a kept child with its process tree, and close its pipes."""
    halt(process)
    close_pipes(process)


def halt(process: subprocess.Popen[bytes]) -> None:
    """Kill a kept child with its process tree; its pipes stay open for a thread that still reads them."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:  # the keeper is stopped (SIGSTOP)
        kill_descendants(process.pid)
        process.kill()
        process.wait()


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
