"""The actor daemon: ``python -m actors FILE``."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from actors.config import ActorsTable, environment_tables
from actors.newest import NewestPolicy
from actors.policy import PolicyFollower
from actors.shift import KNOWN_SECONDS, LOOK_SECONDS, ShiftGate
from broker.daemon import run_daemon
from broker.errors import HeadraceError, RunFault
from broker.messages import PolicyVersion
from broker.run import Run, announced, arguments
from monitoring.daemon import Stop
from monitoring.garbage import loading
from monitoring.logs import setup_logging
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

if TYPE_CHECKING:
    from actors.engine import Engine
    from broker.weights.client import WeightClient

log_ = logging.getLogger("actor")


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments("actor", __doc__ or "").parse_args(argv)

    def work(stop: Stop) -> int:
        run = Run.open(options.file, options.overrides, options.directory)
        serve(run, run.file.table("actors", ActorsTable), stop, options.name)
        return 0

    return run_daemon("actor", work)


def serve(run: Run, table: ActorsTable, stop: Stop, name: str) -> None:
    """Wait for a first policy, then sample until ``stop``. Raises RunFault if nothing can be sampled any more."""
    environments = environment_tables(run.file)
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
        policy = first_policy(follower, stop, system)
        if policy is None:
            return
        newest = NewestPolicy(policy)
        gate = wait_for_shift(run, name, policy, stop, system, stack) if run.colocated else None

        from actors.intake import Intake
        from actors.opening import open_engine
        from actors.rooms import Rooms
        from actors.worker import ActorWorker

        engine = newest.use(follower, lambda: open_engine(table, newest, run, name, stop, stack))
        if engine is None:
            return
        clients = connect(run, table, name, engine, newest, follower, exporter.address, metrics, stack)
        if gate is not None:
            wait_joined(clients, stop)
            gate.close()
        threading.Thread(target=follow, args=(run, clients, newest, stop), name="policy", daemon=True).start()
        rooms = Rooms(environments, run.file.base, run.directory, name)
        worker = ActorWorker(name, Intake(name, log, run.topics), engine, rooms, table, metrics, broker, system)
        stack.callback(worker.close)
        log_.info("sampling from version %d", engine.version)
        worker.run(stop)
        for failure in (engine.failure, *(client.refused or client.failure for client in clients)):
            if failure:
                raise RunFault(failure)


def first_policy(follower: PolicyFollower, stop: Stop, system: SystemMetrics) -> PolicyVersion | None:
    """The newest policy once there is one; None if ``stop`` came first."""
    while not stop:
        with system.idle("no_policy"):
            policy = follower.poll(0.2)
        if policy is not None:
            return None if stop else policy
    return None


def wait_for_shift(
    run: Run, name: str, policy: PolicyVersion, stop: Stop, system: SystemMetrics, stack: ExitStack
) -> ShiftGate:
    """On devices that are shared with the learner: return while it is not its shift, and hold the next one up until the gate is closed."""
    gate = ShiftGate(name, policy.control, run.control_keys())
    stack.callback(gate.close)
    gate.wait(stop, system.idle("shift"))
    return gate


def connect(
    run: Run, table: ActorsTable, name: str, engine: Engine, newest: NewestPolicy, follower: PolicyFollower, address: str,
    metrics: ActorMetrics, stack: ExitStack,
) -> list[WeightClient]:  # fmt: skip
    """Load the newest weights into every sink of the engine, and join each to the weight road."""
    from broker.weights.client import WeightClient
    from broker.weights.devices import gpu_of

    where = {"gpu": gpu_of(table.device)} if table.engine == "local" else {}

    def status() -> dict[str, Any]:
        return {"pid": os.getpid(), "version": engine.version, "metrics": address, **where}

    clients = []
    for suffix, sink in engine.sinks.items():
        client = WeightClient(name + suffix, sink, status, run.control_keys(), metrics.update_seconds.observe)
        stack.callback(client.close)
        newest.use(follower, partial(_load, client, newest))
        client.connect(newest.get().control)
        clients.append(client)
    return clients


def _load(client: WeightClient, newest: NewestPolicy) -> None:
    client.load(*newest.weights)


def wait_joined(clients: Sequence[WeightClient], stop: Stop) -> None:
    """Wait until the learner knows all receivers, or is away."""
    deadline = time.monotonic() + KNOWN_SECONDS
    while not all(client.joined for client in clients) and time.monotonic() < deadline and not stop:
        stop.wait(LOOK_SECONDS)


def warm_up(table: ActorsTable) -> None:
    """Import what sampling needs while the first policy is still being made."""
    with loading():
        import torch
        import transformers

        _ = transformers.AutoTokenizer
        if table.engine == "local":
            _ = transformers.AutoModelForCausalLM
    torch.set_num_threads(table.threads)


def follow(run: Run, clients: Sequence[WeightClient], newest: NewestPolicy, stop: Stop) -> None:
    """Keep the control clients at the address of the newest learner; end the daemon if the learner refuses it, or an engine fails."""
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
            newest.set(policy)
            for client in clients:
                client.connect(policy.control)
        if any(client.refused or client.failure for client in clients):
            stop.set()
    follower.close()
    log.close()


if __name__ == "__main__":
    sys.exit(main())
