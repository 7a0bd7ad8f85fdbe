"""What tests share: the tiny model with weights, made once; a Kafka broker, started once."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from suites import PROCESSES, TREES, asked_for, lane_of, long_tests, markers_of

from monitoring.garbage import end_unsearched

if TYPE_CHECKING:
    from broker.kafka.server import KafkaServer

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the network, and one asks for a data set that is nowhere

ROOT = Path(__file__).resolve().parent.parent
TAKE_TIME = (*TREES, "slow", "long", "kafka", "sglang", "gpu", "watch")
LONG = 10.0  # seconds
TINY = ROOT / "recipes" / "tiny_model"

# What collection loads stays: looking through it for cycles again and again, and once more at the end, takes seconds.
gc.disable()
end_unsearched()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Load no test file for a suite that it has no part in (``make test-kafka``): some files load for seconds."""
    if not collection_path.match("test_*.py"):
        return None
    return True if asked_for(str(config.option.markexpr)) - markers_of(collection_path) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each lane is one worker's: what its tests share is made once, and trees of processes run one at a time beside all else.

    xdist's own groups come to nothing with pytest 9.2: the marks go into an attribute that it does not read any more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane_of(ROOT / nodeid.partition("::")[0])

    return Lanes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest lanes begin first. Tests marked ``gpu`` need a device."""
    items.sort(key=lambda item: (lane_of(item.path) != PROCESSES, -long_tests(item.path)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        for item in marked:
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that take long, and whose markers do not say so: for whoever reads it, as no test depends on the machine's speed."""
    seconds: dict[str, float] = defaultdict(float)
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport) and not any(name in report.keywords for name in TAKE_TIME):
            seconds[report.nodeid] += report.duration
    for name, took in sorted(seconds.items(), key=lambda pair: -pair[1]):
        if took > LONG:
            terminalreporter.write_line(f"took {took:.0f} s without the marker long, slow or processes: {name}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with the tiny recipe's shape and tokenizer and random weights."""
    import torch

    from learner.model.load import load_model, save_model

    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny_model")
    model = load_model(str(TINY), init="random", seed=7)
    with torch.no_grad():  # the initial weights are so small that every distribution is nearly flat
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    save_model(model, str(TINY), directory)
    return directory


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A real broker, shared by the tests of one session."""
    from broker.kafka.server import KafkaServer

    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    yield server
    server.stop()
