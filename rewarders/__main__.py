"""The rewarder daemon: ``python -m rewarders FILE --rewarder NAME``.

``--until now`` exits once every sample present at the start has been judged. Combined with ``--from beginning`` it
judges the run's whole history again.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from broker.daemon import run_daemon
from broker.errors import HeadraceError, RunFileError
from broker.run import Run, announced, arguments
from monitoring.daemon import Stop
from rewarders.config import RewarderTable, in_run, rewarder_table

log_ = logging.getLogger("rewarder")


@dataclass(frozen=True, slots=True)
class Span:
    """Which samples to judge: with ``history`` all from the beginning, in a separate consumer group; with ``ends`` only
    those there now.
    """

    history: bool = False
    ends: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("rewarder", __doc__ or "")
    parser.add_argument("--rewarder", required=True, metavar="NAME", help="which [rewarders.NAME] to serve")
    parser.add_argument("--from", dest="start", choices=("live", "beginning"), default="live", help="judge history too")
    parser.add_argument("--until", choices=("stop", "now"), default="stop", help="end when all that is there is judged")
    options = parser.parse_args(argv)
    span = Span(options.start == "beginning", options.until == "now")
    usual = f"{options.rewarder}-history" if span.history else f"{options.rewarder}-0"
    name = options.name if options.name != "rewarder-0" else usual

    def work(stop: Stop) -> int:
        run = Run.open(options.file, options.overrides, options.directory)
        table = rewarder_table(run.file, options.rewarder)
        if table.external:
            raise RunFileError(f"[rewarders.{options.rewarder}] is external: it is served by a program of yours")
        serve(run, options.rewarder, in_run(table, run.directory), stop, name, span)
        return 0

    return run_daemon("rewarder", work)


def serve(run: Run, rewarder: str, table: RewarderTable, stop: Stop, name: str, span: Span = Span()) -> None:
    """Judge until ``stop``, or to the end of ``span``."""
    from prometheus_client import CollectorRegistry

    from monitoring.logs import setup_logging
    from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
    from rewarders.health import Health
    from rewarders.history import group_of, voted_on
    from rewarders.readiness import await_ready
    from rewarders.worker import RewarderWorker

    setup_logging("rewarder", name, run.table.name, run.directory)
    registry = CollectorRegistry()
    health = Health(rewarder)
    with ExitStack() as stack:
        pages = {"/rewarder": lambda: json.dumps(health.page())}
        stack.enter_context(announced(run, name, "rewarder", registry, pages))
        broker = BrokerMetrics(registry)
        log = run.open_log(stop, broker)
        stack.callback(log.close)
        metrics = RewarderMetrics(registry, rewarder)
        if not await_ready(rewarder, table, run.file.base, metrics, stop):
            return
        make = partial(
            RewarderWorker, name, rewarder, log, run.topics, table, run.file.base, metrics, broker,
            SystemMetrics(registry, "rewarder"), health,
        )  # fmt: skip
        ends = log.ends(run.topics.trajectories) if span.ends else None
        if span.history:
            worker = make(group=group_of(rewarder, table, run.file.base), voted=voted_on(log, run.topics, rewarder))
        else:
            worker = make()
        stack.callback(worker.close)
        log_.info("serving %s", table.use)
        try:
            worker.run(stop, ends)
        except HeadraceError as error:
            if not table.shadow:
                raise
            health.lost(str(error))  # a shadow is not part of the run, so its fault must not end the run
            metrics.outage.set(1)
            while not stop:
                stop.wait(60)


if __name__ == "__main__":
    sys.exit(main())
