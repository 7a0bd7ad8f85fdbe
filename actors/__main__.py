"""The actor daemon: ``python -m actors FILE``."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from actors.config import ActorsTable
from actors.opening import KNOWN_SECONDS, LOOK_SECONDS, Opening
from broker.daemon import run_daemon
from broker.errors import EngineError, HeadraceError, RunFault, WeightPushError
from broker.messages import PolicyVersion
from broker.run import Run, announced, arguments
from monitoring.daemon import Stop, registered

log_ = logging.getLogger("actor")
NEWER_SECONDS = 5.0  # that a newer policy is waited for where the one that was found cannot be read


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments("actor", __doc__ or "").parse_args(argv)

    def work(stop: Stop) -> int:
        run = Run.open(options.file, options.overrides, options.directory)
        serve(run, run.file.table("actors", ActorsTable), stop, options.name)
        return 0

    return run_daemon("actor", work)


def serve(run: Run, table: ActorsTable, stop: Stop, name: str) -> None:
    """Wait for a first policy, then sample until ``stop``."""
    from prometheus_client import CollectorRegistry

    from actors.policy import PolicyFollower
    from monitoring.logs import setup_logging
    from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

    setup_logging("actor", name, run.table.name, run.directory)
    registry = CollectorRegistry()
    metrics, broker, system = ActorMetrics(registry), BrokerMetrics(registry), SystemMetrics(registry, "actor")
    with ExitStack() as stack:
        exporter = stack.enter_context(announced(run, name, "actor", registry))
        log = run.open_log(stop, broker)
        stack.callback(log.close)
        follower = PolicyFollower(log, run.topics)
        stack.callback(follower.close)
        warm_up(table)
        policy = None
        while policy is None:
            with system.idle("no_policy"):
                policy = follower.poll(0.2)
            if stop:
                return
        newest = [policy]  # ``follow`` puts newer ones there
        opening = None
        if run.colocated:
            opening = Opening(name, policy.control, run.control_keys())
            stack.callback(opening.close)
            opening.wait(stop, system.idle("turn"))
        engine = with_newest(follower, newest, lambda: open_engine(table, newest, run, name, stop, stack))
        if engine is None:
            return
        from actors.worker import ActorWorker
        from broker.weights.client import WeightClient
        from broker.weights.devices import gpu_of

        where = {"gpu": gpu_of(table.device)} if table.engine == "local" else {}

        def status() -> dict[str, Any]:
            return {"pid": os.getpid(), "version": engine.version, "metrics": exporter.address, **where}

        clients = []
        for suffix, sink in engine.sinks.items():
            client = WeightClient(name + suffix, sink, status, run.control_keys(), metrics.update_seconds.observe)
            stack.callback(client.close)
            with_newest(follower, newest, partial(load, client, newest))
            client.connect(newest[0].control)
            clients.append(client)
        if opening is not None:
            wait_joined(clients, stop)
            opening.close()
        threading.Thread(target=follow, args=(run, clients, newest, stop), name="policy", daemon=True).start()
        worker = ActorWorker(name, log, run.topics, engine, engine.tokenizer, table, metrics, broker, system)
        stack.callback(worker.close)
        log_.info("sampling from version %d", engine.version)
        worker.run(stop)
        for failure in (engine.failure, *(client.refused for client in clients)):
            if failure:
                raise RunFault(failure)


def wait_joined(clients: Sequence[Any], stop: Stop) -> None:
    """Wait until the learner knows all receivers, or is away."""
    deadline = time.monotonic() + KNOWN_SECONDS
    while not all(client.joined for client in clients) and time.monotonic() < deadline and not stop:
        stop.wait(LOOK_SECONDS)


def load(client: Any, newest: list[PolicyVersion]) -> None:
    client.load(Path(newest[0].path), newest[0].version)


def with_newest(follower: Any, newest: list[PolicyVersion], use: Callable[[], Any]) -> Any:
    """What ``use`` gives with the newest published policy: the files of an older one may be removed while they are read.

    Raises what ``use`` raises where the files are still there, or no newer ones come.
    """
    while True:
        newest[0] = follower.poll(0.0) or newest[0]
        try:
            return use()
        except (OSError, WeightPushError, EngineError) as error:
            gone = not Path(newest[0].path).exists()
            newer = follower.poll(NEWER_SECONDS) if gone else None
            if newer is None:
                raise
            log_.info("version %d is gone already: %s", newest[0].version, error)
            newest[0] = newer


def warm_up(table: ActorsTable) -> None:
    """Import what sampling needs while the first policy is still being made."""
    import torch
    import transformers

    torch.set_num_threads(table.threads)
    _ = transformers.AutoTokenizer


def open_engine(
    table: ActorsTable, newest: list[PolicyVersion], run: Run, name: str, stop: Stop, stack: ExitStack
) -> Any:
    """The engine that ``[actors] engine`` names; the stack ends it. None if ``stop`` came first. Raises EngineError."""
    seed = hash_seed(f"{run.table.seed}/{name}/{os.getpid()}")
    engine = local_engine(table, newest[0].path, seed) if table.engine == "local" else sglang_engine(
        table, newest, run, name, seed, stop, stack
    )  # fmt: skip
    if engine is not None:
        stack.callback(engine.close)
    return engine


def local_engine(table: ActorsTable, path: str, seed: int) -> Any:
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
    table: ActorsTable, newest: list[PolicyVersion], run: Run, name: str, seed: int, stop: Stop, stack: ExitStack
) -> Any:
    """An engine on the servers of the run file, or on one that is started here and ends with this actor."""
    from actors.sglang.engine import SglangEngine
    from actors.sglang.keeper import Keeper
    from actors.sglang.server import Server

    urls = list(table.servers)
    if table.launch:
        saver = ("--enable-memory-saver",) if run.colocated and table.device != "cpu" else ()
        server = Server(
            run.directory / "sglang" / name, lambda: newest[0].path, device=table.device, dtype=table.dtype, slots=table.slots,
            context=table.context_length, seed=seed, arguments=(*saver, *table.server_args),
        )  # fmt: skip
        keeper = Keeper(server, stop.set)
        stack.callback(keeper.stop)
        if not keeper.begin(lambda: bool(stop)):
            return None
        stack.enter_context(registered(run.directory, f"{name}.server", "sglang", server.url))
        urls = [server.url]
    else:
        for number, url in enumerate(urls):
            stack.enter_context(registered(run.directory, f"{name}.server-{number}", "sglang", url))
    engine = SglangEngine(
        newest[0].path, urls, slots=table.slots, context=table.context_length, mode=table.update,
        newest=lambda: (Path(newest[0].path), newest[0].version),
    )  # fmt: skip
    if table.launch:
        engine.why_failed = lambda: keeper.failure
    return engine


def hash_seed(text: str) -> int:
    """A 63-bit seed: a restarted actor must not draw the samples of its former life again."""
    import hashlib

    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def follow(run: Run, clients: Sequence[Any], newest: list[PolicyVersion], stop: Stop) -> None:
    """Keep the control clients at the address of the newest learner; end the daemon if the learner refuses it."""
    from actors.policy import PolicyFollower

    log = run.open_log(stop)
    follower = PolicyFollower(log, run.topics)
    while not stop:
        try:
            policy = follower.poll(1.0)
        except HeadraceError as error:
            log_.warning("following the policy: %s", error)
            stop.wait(1.0)
            continue
        if policy is not None:
            newest[0] = policy
            for client in clients:
                client.connect(policy.control)
        if any(client.refused for client in clients):
            stop.set()
    follower.close()
    log.close()


if __name__ == "__main__":
    sys.exit(main())
