"""A warm process that forks a child to compare answers. If a hostile answer kills the child, a new one is ready in
milliseconds, with its libraries loaded.

The kernel limits the child's processor time and memory, and ends it whatever it is doing; an alarm handled in Python
could not. Requests come one at a time, a line of JSON each, over the pipes that every fork inherits.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from monitoring.daemon import die_with_parent


def main() -> None:
    parent, factory, memory_mb = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    die_with_parent(parent)
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    module, _, name = factory.partition(":")
    handler = getattr(importlib.import_module(module), name)()
    gc.collect()
    gc.freeze()  # or the collector's marks would make the fork copy every shared page
    me = os.getpid()
    while True:
        child = os.fork()
        if child == 0:
            die_with_parent(me)
            bound_memory(memory_mb << 20)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            serve(handler, out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:  # the pipe is closed: no more requests
            return
        say(out, {"ended": child, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0})


def bound_memory(size: int) -> None:
    """Limit the address space to ``size`` bytes, or to the present hard limit if that is less."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def serve(handler: Callable[[dict[str, Any]], Any], out: int) -> None:
    """Answer requests until the pipe is closed."""
    say(out, {"ready": os.getpid()})
    buffer = b""
    while True:
        line, newline, rest = buffer.partition(b"\n")
        if not newline:
            piece = os.read(0, 1 << 16)
            if not piece:
                return
            buffer += piece
            continue
        buffer = rest
        order = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, order["cpu"])  # unhandled, SIGPROF ends the process
        try:
            reply = {"result": handler(order["request"])}
        except MemoryError:
            os._exit(77)
        except Exception as error:  # the libraries may raise anything on what they cannot read
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(out, {"id": order["id"], **reply})


def say(out: int, message: dict[str, Any]) -> None:
    """Write one line, after a line break that ends any line that a killed process left half written."""
    os.write(out, b"\n" + json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
