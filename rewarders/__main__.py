"""The rewarder daemon: ``python -m rewarders FILE --rewarder NAME``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from broker.errors import HeadraceError, RunFileError
from broker.run import Run, arguments
from monitoring.daemon import Stop, die_with_parent, registered
from rewarders.config import RewarderTable, rewarder_table

log_ = logging.getLogger("rewarder")


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments("rewarder", __doc__ or "")
    parser.add_argument("--rewarder", required=True, metavar="NAME", help="which [rewarders.NAME] to serve")
    options = parser.parse_args(argv)
    die_with_parent()
    stop = Stop().install()
    name = options.name if options.name != "rewarder-0" else f"{options.rewarder}-0"
    try:
        run = Run.open(options.file, options.overrides, options.directory)
        table = rewarder_table(run.file, options.rewarder)
        if table.external:
            raise RunFileError(f"[rewarders.{options.rewarder}] is external: it is served by a program of yours")
        serve(run, options.rewarder, table, stop, name)
    except RunFileError as error:
        print(f"rewarder: {error}", file=sys.stderr)
        return 2
    except HeadraceError as error:
        print(f"fault: {error}", file=sys.stderr, flush=True)
        return 3
    return 0


def serve(run: Run, rewarder: str, table: RewarderTable, stop: Stop, name: str) -> None:
    """Judge until ``stop``."""
    from prometheus_client import CollectorRegistry

    from monitoring.exporter import Exporter
    from monitoring.logs import setup_logging
    from monitoring.metrics import BrokerMetrics, RewarderMetrics, SystemMetrics
    from rewarders.worker import RewarderWorker

    setup_logging("rewarder", name, run.table.name, run.directory)
    registry = CollectorRegistry()
    with ExitStack() as stack:
        exporter = Exporter(registry)
        stack.callback(exporter.close)
        stack.enter_context(registered(run.directory, name, "rewarder", exporter.address))
        log = run.open_log()
        stack.callback(log.close)
        metrics = RewarderMetrics(registry, rewarder)
        system = SystemMetrics(registry, "rewarder")
        worker = RewarderWorker(
            name, rewarder, log, run.topics, table, run.file.base, metrics, BrokerMetrics(registry), system
        )
        stack.callback(worker.close)
        log_.info("serving %s", table.use)
        worker.run(stop)


if __name__ == "__main__":
    sys.exit(main())
