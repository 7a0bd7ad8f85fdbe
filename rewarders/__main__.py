"""The rewarder daemon: ``python -m rewarders FILE --rewarder NAME``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from broker.daemon import run_daemon
from broker.errors import RunFileError
from broker.run import Run, announced, arguments
from monitoring.daemon import Stop
from rewarders.config import RewarderTable, rewarder_table

log_ = logging.getLogger("rewarder")


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("rewarder", __doc__ or "")
    parser.add_argument("--rewarder", required=True, metavar="NAME", help="which [rewarders.NAME] to serve")
    options = parser.parse_args(argv)
    name = options.name if options.name != "rewarder-0" else f"{options.rewarder}-0"

    def work(stop: Stop) -> int:
        run = Run.open(options.file, options.overrides, options.directory)
        table = rewarder_table(run.file, options.rewarder)
        if table.external:
            raise RunFileError(f"[rewarders.{options.rewarder}] is external: it is served by a program of yours")
        serve(run, options.rewarder, table, stop, name)
        return 0

    return run_daemon("rewarder", work)


def serve(run: Run, rewarder: str, table: RewarderTable, stop: Stop, name: str) -> None:
    """Judge until ``stop``."""
    from prometheus_client import CollectorRegistry

    from monitoring.logs import setup_logging
    from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
    from rewarders.readiness import await_ready
    from rewarders.worker import RewarderWorker

    setup_logging("rewarder", name, run.table.name, run.directory)
    registry = CollectorRegistry()
    with ExitStack() as stack:
        stack.enter_context(announced(run, name, "rewarder", registry))
        broker = BrokerMetrics(registry)
        log = run.open_log(stop, broker)
        stack.callback(log.close)
        metrics = RewarderMetrics(registry, rewarder)
        system = SystemMetrics(registry, "rewarder")
        if not await_ready(rewarder, table, run.file.base, metrics, stop):
            return
        worker = RewarderWorker(name, rewarder, log, run.topics, table, run.file.base, metrics, broker, system)
        stack.callback(worker.close)
        log_.info("serving %s", table.use)
        worker.run(stop)


if __name__ == "__main__":
    sys.exit(main())
