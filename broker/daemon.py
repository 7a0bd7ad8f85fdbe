"""What the daemons share around the log: exit statuses, and patience while the log is away."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Protocol

from broker.errors import HeadraceError, LogUnavailable, LogUnsettled, RunFileError
from monitoring.daemon import Stop, die_with_parent
from monitoring.garbage import end_unsearched

RETRY_SECONDS = 1.0
AWAY = 75  # exit status (EX_TEMPFAIL) for a log that went away when nobody could wait for it: start again later


class Flag(Protocol):
    """A gauge that is 1 while a condition holds."""

    def set(self, value: float, /) -> None: ...


def run_daemon(role: str, serve: Callable[[Stop], int]) -> int:
    """Run ``serve`` until it ends or is stopped. Returns its exit status, 2 for bad input, 3 for a fault, 75 for a log that is
    away or has to be read anew (one line says which)."""
    die_with_parent()
    end_unsearched()
    stop = Stop().install()
    try:
        return serve(stop)
    except RunFileError as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 2
    except (LogUnavailable, LogUnsettled) as error:
        print(f"fault: {error}", file=sys.stderr, flush=True)
        return AWAY
    except HeadraceError as error:
        print(f"fault: {error}", file=sys.stderr, flush=True)
        return 3
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"fault: the disk is full: free some space and start again ({error})", file=sys.stderr, flush=True)
        return 3


def keep_going(
    round_: Callable[[], None], stop: Stop, unavailable: Flag, over: Callable[[], bool] = lambda: False
) -> None:
    """Call ``round_`` until ``stop``, or until it is ``over``; while the log cannot be reached, report it and try again."""
    log = logging.getLogger("log")
    while not stop:
        try:
            round_()
            unavailable.set(0)
            if over():
                return
        except LogUnavailable as error:
            unavailable.set(1)
            log.warning("waiting for the log: %s", error)
            stop.wait(RETRY_SECONDS)
