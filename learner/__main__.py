"""The learner daemon: ``python -m learner FILE``. Exit status 0 finished, 2 bad input, 3 a fault (one line says which).

Under torchrun it is a pool: rank 0 is this learner, the others follow its orders and open nothing but the model's files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from broker.daemon import run_daemon
from broker.errors import HeadraceError, RunFileError
from broker.run import Run, announced, arguments
from learner.config import LearnerConfig
from learner.parallel.place import Place, find_place, follow_agent
from monitoring.daemon import Stop
from monitoring.garbage import loading

STOPPED = 130
LOST_SECONDS = 5.0  # a rank that fails because it lost another one is ended by its watch thread within this time


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments("learner", __doc__ or "").parse_args(argv)
    follow_agent()

    def work(stop: Stop) -> int:
        place = find_place()
        if place is not None and place.rank:
            return serve_rank(place)
        run = Run.open(options.file, options.overrides, options.directory)
        config = LearnerConfig(run.file)
        if not config.stages:
            raise RunFileError("the run file has no [[stage]]")
        return serve(run, config, stop, options.name, place)

    try:
        status = run_daemon("learner", work)
    except Exception:
        if not find_place():
            raise
        logging.getLogger("learner").exception("the learner has failed")
        time.sleep(LOST_SECONDS)
        status = 1
    if find_place():  # a pool that broke would keep the interpreter waiting for the other ranks
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def serve_rank(place: Place) -> int:
    """Follow rank 0 of a pool to its end."""
    from transformers.utils import logging as transformers_logging

    from learner.parallel.follower import follow
    from learner.parallel.group import join

    transformers_logging.disable_progress_bar()
    follow(join(place))
    return 0


def serve(run: Run, config: LearnerConfig, stop: Stop, name: str, place: Place | None = None) -> int:
    """Run all stages with metrics and registration around them; with a ``place``, as rank 0 of a pool."""
    with loading():
        from prometheus_client import CollectorRegistry
        from transformers.utils import logging as transformers_logging

        from learner.opening import open_learner
        from learner.parallel.group import join
        from learner.stages.running import run_stages
        from learner.telemetry import Telemetry
        from learner.training.placement import ALONE
        from learner.training.state import chosen_device
        from monitoring.logs import setup_logging

    setup_logging("learner", name, run.table.name, run.directory)
    transformers_logging.disable_progress_bar()  # a line for every file of a checkpoint
    registry = CollectorRegistry()
    with ExitStack() as stack:
        stack.enter_context(announced(run, name, "learner", registry))
        placement = join(place, chosen_device(config.learner), config.learner.pool_timeout) if place else ALONE
        try:
            learner = open_learner(run, config, stop, Telemetry(registry), stack, name, placement)
            finished = run_stages(learner)
            learner.state.close()
        except HeadraceError:
            with contextlib.suppress(RuntimeError):  # a pool that broke ends by itself
                placement.end()
            raise
        placement.end()
    logging.getLogger("learner").info("finished" if finished else "stopped; the same command resumes")
    return 0 if finished else STOPPED


if __name__ == "__main__":
    sys.exit(main())
