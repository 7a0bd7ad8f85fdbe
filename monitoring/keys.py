"""Reads single keys from a terminal without waiting for Enter, and always restores the terminal's settings."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from types import TracebackType

LEFT, RIGHT, QUIT, SUSPEND = "left", "right", "q", "\x1a"
_ARROWS = {b"\x1b[D": LEFT, b"\x1b[C": RIGHT, b"\x1bOD": LEFT, b"\x1bOC": RIGHT}
_TOKEN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?|.", re.DOTALL)
_DISTURBING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def names(data: bytes) -> list[str]:
    """The keys that a terminal sent as ``data``. Everything but single ASCII keys and the left and right arrows is
    ignored.
    """
    found = []
    for token in _TOKEN.findall(data):
        if token in _ARROWS:
            found.append(_ARROWS[token])
        elif len(token) == 1 and token < b"\x7f" and token != b"\x1b":
            found.append(token.decode())
    return found


class Keys:
    """Reads keys inside its ``with`` block. There are none without a terminal to read from (a pipe, a background job).

    Ctrl-Z is the key ``SUSPEND``; a terminal that has gone away gives ``QUIT``.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._fd = _stdin() if descriptor is None else descriptor
        self._before: list[object] | None = None
        self._pending: deque[str] = deque()

    @property
    def there(self) -> bool:
        """Whether there is a terminal to read keys from."""
        return self._before is not None

    def __enter__(self) -> Keys:
        if self._fd >= 0 and os.isatty(self._fd) and os.tcgetpgrp(self._fd) == os.getpgrp():
            self._before = termios.tcgetattr(self._fd)
            self._take()
        return self

    def _take(self) -> None:
        tty.setcbreak(self._fd, termios.TCSANOW)
        mode = termios.tcgetattr(self._fd)
        mode[6][termios.VSUSP] = b"\x00"  # read Ctrl-Z as a key, so that the screen can be restored before the stop
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def _give_back(self) -> None:
        if self._before is not None:
            with undisturbed(), contextlib.suppress(termios.error):  # the terminal may be gone
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)  # type: ignore[arg-type]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back()
        self._before = None

    def wait(self, seconds: float) -> str:
        """The next key; empty if none is pressed within ``seconds``."""
        if not self._pending:
            readable, _, _ = select.select([self._fd] if self.there else [], [], [], max(0.0, seconds))
            if readable:
                self._pending.extend(self._read())
        return self._pending.popleft() if self._pending else ""

    def _read(self) -> list[str]:
        try:
            data = os.read(self._fd, 256)
        except OSError:
            data = b""
        return names(data) if data else [QUIT]

    def suspend(self) -> None:
        """Stop this process group, as Ctrl-Z does, with the terminal restored; returns once it is continued."""
        self._give_back()
        os.kill(0, signal.SIGTSTP)
        self._take()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Delay SIGINT, SIGTERM and SIGHUP until the block has finished."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DISTURBING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stdin() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or replaced by an object without a descriptor
        return -1
