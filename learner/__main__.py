"""The learner daemon: ``python -m learner FILE``. Exit status 0 finished, 2 bad input, 3 a fault (one line says which)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from broker.errors import HeadraceError, RunFileError
from broker.run import Run, arguments
from monitoring.daemon import Stop, die_with_parent

STOPPED = 130


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments("learner", __doc__ or "").parse_args(argv)
    die_with_parent()
    stop = Stop().install()
    try:
        run = Run.open(options.file, options.overrides, options.directory)
        from learner.config import LearnerConfig

        config = LearnerConfig(run.file)
        if not config.stages:
            raise RunFileError("the run file has no [[stage]]")
        return serve(run, config, stop, options.name)
    except RunFileError as error:
        print(f"learner: {error}", file=sys.stderr)
        return 2
    except HeadraceError as error:
        print(f"fault: {error}", file=sys.stderr, flush=True)
        return 3


def serve(run: Run, config: object, stop: Stop, name: str) -> int:
    """Run all stages with metrics and registration around them."""
    from prometheus_client import CollectorRegistry

    from learner.config import LearnerConfig
    from learner.ring import Learner
    from learner.stages import run_stages
    from learner.telemetry import Telemetry
    from monitoring.daemon import registered
    from monitoring.exporter import Exporter
    from monitoring.logs import setup_logging

    assert isinstance(config, LearnerConfig)
    setup_logging("learner", name, run.table.name, run.directory)
    registry = CollectorRegistry()
    with ExitStack() as stack:
        exporter = Exporter(registry)
        stack.callback(exporter.close)
        stack.enter_context(registered(run.directory, name, "learner", exporter.address))
        learner = Learner(run, config, stop, Telemetry(registry), stack, name)
        finished = run_stages(learner)
    logging.getLogger("learner").info("finished" if finished else "stopped; the same command resumes")
    return 0 if finished else STOPPED


if __name__ == "__main__":
    sys.exit(main())
