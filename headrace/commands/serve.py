"""``headrace serve RUN``: serve an OpenAI-compatible endpoint in front of the actors of a live run, and train on what
agents do there.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from actors.agents import Agents
from actors.config import environment_tables
from broker import sessions
from broker.errors import RunFault, RunFileError
from broker.messages import SessionEvent
from broker.run import Run, announced
from headrace.commands.arguments import run_directory
from headrace.reading.records import scan
from headrace.running.rundir import find_run
from headrace.serving.app import Door
from headrace.serving.desk import Desk
from headrace.serving.fates import ended_before, follow
from headrace.serving.journal import Journal
from headrace.serving.sessions import Book
from monitoring.daemon import Stop
from monitoring.logs import setup_logging
from rewarders.config import rewarder_tables

log_ = logging.getLogger("serve")
NAME = "serve-0"
LOOK_SECONDS = 0.2
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    sub.add_argument("--host", default="127.0.0.1", help="beyond this machine only with --key-from (default 127.0.0.1)")
    sub.add_argument("--port", type=int, default=8800, help="0: any that is free (default 8800)")
    sub.add_argument(
        "--key-from", default="", metavar="NAME", help="environment variable with the key that agents must show"
    )
    sub.add_argument(
        "--patience", type=float, default=300.0, metavar="SECONDS", help="that a request waits for a sample or an actor"
    )
    sub.add_argument(
        "--lenient", action="store_true", help="leave aside a temperature or top_p that is not the trainer's"
    )


def main(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Raises RunFileError if the run cannot use such an endpoint, RunFault if the run is
    served already.
    """
    run = find_run(options.run)
    key = _key(options.host, options.key_from)
    stop = Stop().install()
    setup_logging("serve", NAME, run.table.name, run.directory)
    with ExitStack() as stack:
        stack.enter_context(_alone(run.directory))
        log = run.open_log(stop)
        stack.callback(log.close)
        log.create([run.topics.sessions_spec()])
        start = log.ends(run.topics.steps)
        settled = ended_before(log, run.topics, start)
        book = Book((m for _, m in scan(log, run.topics.sessions) if isinstance(m, SessionEvent)), settled)
        journal = Journal(log, run.topics)
        desk = desk_of(run, book, journal, options.patience, options.lenient)
        door = Door(desk, run.table.name, secrets.token_urlsafe(24), key)
        stack.enter_context(announced(run, NAME, "serve", CollectorRegistry()))

        async def serve() -> None:
            async with opened(run, door, desk, journal, start, options.host, options.port) as url:
                print(
                    f"{url}/v1 is an OpenAI endpoint for agents of run {run.table.name!r}, which is the model's name",
                    flush=True,
                )
                while not stop:
                    await asyncio.sleep(LOOK_SECONDS)

        asyncio.run(serve())
    return 0


def desk_of(run: Run, book: Book, journal: Journal, patience: float, lenient: bool) -> Desk:
    """Build the desk of a run. Raises RunFileError if the run has no environment for agents."""
    kinds = {n: t.options for n, t in environment_tables(run.file).items() if t.use == sessions.AGENTS}
    if not kinds:
        raise RunFileError(
            f'no environment of this run has use = "{sessions.AGENTS}": add [environments.agents] with it, and environment = "agents" to the '
            "data whose tasks agents play (docs/agents.md)"
        )
    made = {name: Agents(**options) for name, options in kinds.items()}
    outside = frozenset(name for name, table in rewarder_tables(run.file).items() if table.external)
    return Desk(
        book, journal, {n: a.parser for n, a in made.items()}, {n: a.idle for n, a in made.items()}, outside, patience, lenient
    )  # fmt: skip


@asynccontextmanager
async def opened(
    run: Run, door: Door, desk: Desk, journal: Journal, start: Mapping[int, int], host: str, port: int
) -> AsyncIterator[str]:
    """Serve while the block runs; yields the URL. ``start`` is where the ``steps`` topic goes on behind what the desk's book knows. Raises
    RunFault if the port cannot be bound."""
    journal.start()
    runner = web.AppRunner(door.app(), shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    tasks: list[asyncio.Task[None]] = []
    log = run.open_log()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise RunFault(
                f"--port {port} of {host} is not available: {error.strerror or error}; use another, or 0 for any"
            ) from error
        address = runner.addresses[0]
        url = f"http://{'127.0.0.1' if address[0] == '0.0.0.0' else address[0]}:{address[1]}"
        door.announce(run.directory, url if host in LOOPBACK else f"http://{socket.gethostname()}:{address[1]}")
        tasks += [
            asyncio.ensure_future(desk.end_idle()),
            asyncio.ensure_future(follow(log, run.topics, start, desk.book.ended(), desk.actors.ended)),
        ]
        yield url
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        await journal.close()
        log.close()


def _key(host: str, variable: str) -> str:
    """The key that agents must show, empty if none. Raises RunFileError if ``host`` is not the loopback and there is no
    key.
    """
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise RunFileError(f"--key-from {variable!r}: there is no such environment variable, or it is empty")
    if host not in LOOPBACK and not key:
        raise RunFileError(
            f"--host {host}: beyond this machine the door needs a key; set one in a variable and name it with --key-from"
        )
    return key


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the run's serving lock while the block runs. Raises RunFault if another process holds it."""
    with (directory / "serve.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFault(f"{directory} has its door already (headrace serve); stop that one first") from None
        yield
