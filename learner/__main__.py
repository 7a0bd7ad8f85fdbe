"""The learner daemon: ``python -m learner FILE``. Exit status 0 finished, 2 bad input, 3 a fault (one line says which)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from broker.daemon import run_daemon
from broker.errors import RunFileError
from broker.run import Run, announced, arguments
from learner.config import LearnerConfig
from monitoring.daemon import Stop

STOPPED = 130


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments("learner", __doc__ or "").parse_args(argv)

    def work(stop: Stop) -> int:
        run = Run.open(options.file, options.overrides, options.directory)
        config = LearnerConfig(run.file)
        if not config.stages:
            raise RunFileError("the run file has no [[stage]]")
        return serve(run, config, stop, options.name)

    return run_daemon("learner", work)


def serve(run: Run, config: LearnerConfig, stop: Stop, name: str) -> int:
    """Run all stages with metrics and registration around them."""
    from prometheus_client import CollectorRegistry
    from transformers.utils import logging as transformers_logging

    from learner.ring import Learner
    from learner.stages import run_stages
    from learner.telemetry import Telemetry
    from monitoring.logs import setup_logging

    setup_logging("learner", name, run.table.name, run.directory)
    transformers_logging.disable_progress_bar()  # a line for every file of a checkpoint
    registry = CollectorRegistry()
    with ExitStack() as stack:
        stack.enter_context(announced(run, name, "learner", registry))
        learner = Learner(run, config, stop, Telemetry(registry), stack, name)
        finished = run_stages(learner)
    logging.getLogger("learner").info("finished" if finished else "stopped; the same command resumes")
    return 0 if finished else STOPPED


if __name__ == "__main__":
    sys.exit(main())
