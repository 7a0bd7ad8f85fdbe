"""Opens the engine that ``[actors] engine`` names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack

from actors.config import ActorsTable
from actors.engine import Engine
from actors.newest import NewestPolicy
from actors.pinned import pinned
from broker.run import Run
from monitoring.daemon import Stop, registered


def open_engine(
    table: ActorsTable, newest: NewestPolicy, run: Run, name: str, stop: Stop, stack: ExitStack
) -> Engine | None:
    """An engine that ``stack`` ends; None if ``stop`` came first. Raises EngineError."""
    seed = seed_of(f"{run.table.seed}/{name}/{os.getpid()}")
    engine: Engine | None
    if table.engine == "local":
        with pinned(newest.path, run.directory / "pinned" / name) as model:
            engine = local_engine(table, str(model), seed)
    else:
        engine = sglang_engine(table, newest, run, name, seed, stop, stack)
    if engine is not None:
        stack.callback(engine.close)
    return engine


def local_engine(table: ActorsTable, path: str, seed: int) -> Engine:
    import torch

    from actors.local.engine import LocalEngine

    return LocalEngine(
        path,
        slots=table.slots,
        context=table.context_length,
        mode=table.update,
        dtype=getattr(torch, table.dtype),
        device=table.device,
        seed=seed,
    )


def sglang_engine(
    table: ActorsTable, newest: NewestPolicy, run: Run, name: str, seed: int, stop: Stop, stack: ExitStack
) -> Engine | None:
    """An engine on the servers of the run file, or on one that is started here and ends with this actor."""
    from actors.sglang.engine import SglangEngine
    from actors.sglang.keeper import Keeper
    from actors.sglang.server import Server

    urls = list(table.servers)
    why_ended: Callable[[], str] = str
    if table.launch:
        saver = ("--enable-memory-saver",) if run.colocated and table.device != "cpu" else ()
        server = Server(
            run.directory / "sglang" / name, lambda: str(newest.path), device=table.device, dtype=table.dtype, slots=table.slots, adaptive=table.adaptive,
            context=table.context_length, seed=seed, arguments=(*saver, *table.server_args),
        )  # fmt: skip
        keeper = Keeper(server, stop.set)
        stack.callback(keeper.stop)
        if not keeper.begin(lambda: bool(stop)):
            return None
        stack.enter_context(registered(run.directory, f"{name}.server", "sglang", server.url))
        urls, why_ended = [server.url], keeper.why
    else:
        for number, url in enumerate(urls):
            stack.enter_context(registered(run.directory, f"{name}.server-{number}", "sglang", url))
    with pinned(newest.path, run.directory / "pinned" / name) as model:
        return SglangEngine(
            str(model), urls, slots=table.slots, context=table.context_length, mode=table.update,
            newest=lambda: newest.weights, why_ended=why_ended,
        )  # fmt: skip


def seed_of(text: str) -> int:
    """A 63-bit seed: a restarted actor must not draw the samples of its former life again."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
