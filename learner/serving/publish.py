"""Passes each new policy to the publisher without blocking training; records published versions in the ``policy`` topic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from broker import plugins
from broker.control.server import ControlServer
from broker.control.wire import is_loopback
from broker.errors import DecodeError, RunFileError
from broker.log import Log, Producer, Record
from broker.messages import PolicyVersion, decode, encode
from broker.patience import PatientProducer
from broker.run import Run
from broker.weights.publisher import PushStats, WeightPublisher
from broker.weights.sink import TensorSpec
from learner.model.load import save_shape
from learner.planning.join import read_all
from learner.tables import LearnerTable
from learner.telemetry import Telemetry
from learner.training.state import LearnerState
from monitoring.daemon import Stop


class Publishing:
    """The learner's end of the weight road. ``published`` is the newest version available to receivers.

    ``publish`` has no effect before ``open``, which is called once the state holds a model.
    """

    def __init__(
        self, run: Run, state: LearnerState, owner: str, telemetry: Telemetry, stop: Stop, control: ControlServer
    ) -> None:
        self._run, self._state, self._owner, self._telemetry = run, state, owner, telemetry
        self._told = PushStats()
        self._log = run.open_log(stop)  # used on the publisher's thread
        self._announcements = PatientProducer(self._log.producer(), stop, telemetry.log_away)
        self.published = 0
        self._newest = -1
        self._model: Any = None
        self._specs: tuple[TensorSpec, ...] = ()
        self.control = control
        self._publisher: WeightPublisher | None = None
        telemetry.metrics.receivers.set_function(lambda: len(self.control.receivers()))

    def open(self) -> None:
        table, state = self._state.config.learner, self._state
        template = self._run.directory / "weights" / "template"
        save_shape(state.model, state.model_path, template)
        self._model, self._specs = state.model, state.specs()
        self._publisher = WeightPublisher(
            self.control,
            self._run.directory / "weights",
            template=template,
            lane=table.lane,
            timeout=table.push_timeout,
            bucket_bytes=state.bucket_bytes,
            backend=backend_of(table, state.device),
            device=state.device,
            road=self._road(table.road),
            host=urlsplit(self.control.endpoint).hostname or "127.0.0.1",
            on_published=self._announce,
            sparse=is_sparse(table, urlsplit(self.control.endpoint).hostname or ""),
        )
        self._publisher.warm(self._specs)

    def _road(self, name: str) -> Any:
        """``name`` itself for a built-in road, else a road made from the plug-in ``module:Class``. Raises RunFileError."""
        if ":" not in name:
            return name
        return plugins.build(name, {}, self._run.file.base, "[learner] road", control=self.control)

    def publish(self, version: int) -> None:
        """Snapshot the model as ``version``, and return without waiting for the push. No effect if it was the last one published."""
        if version != self._newest and self._publisher is not None:
            self._newest = version
            with self._telemetry.phase("publish"):
                if self._state.model is not self._model:
                    self._take_shape(self._publisher)
                self._publisher.publish(version, self._state.weights())
                self._state.save_adapters(version)

    def _take_shape(self, publisher: WeightPublisher) -> None:
        """Adapt the publisher to a replaced model, which may have another size."""
        self._model, specs = self._state.model, self._state.specs()
        if specs == self._specs:
            return
        self._specs = specs
        publisher.settle()
        save_shape(self._model, self._state.model_path, self._run.directory / "weights" / "template")
        publisher.reshape(specs)

    def _announce(self, version: int, path: Path, checksum: str) -> None:
        """Called on the publisher's thread once ``version`` is available."""
        record = PolicyVersion(version, str(path), checksum, self.control.endpoint, self._owner)
        self._announcements.send(self._run.topics.policy, self._run.table.name.encode(), encode(record))
        self._announcements.flush()
        self.published = version
        assert self._publisher is not None
        now, before = self._publisher.stats, self._told
        evicted = now.evicted - before.evicted
        receivers = [member.name for member in self.control.receivers()]
        self._telemetry.pushed(now.push_seconds - before.push_seconds, receivers, evicted, now.epochs - before.epochs)
        self._told = replace(now, evicted=now.evicted.copy())

    def settled(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the push under way; returns whether it has ended. Raises WeightPushError if it cannot."""
        return self._publisher is None or self._publisher.wait(seconds)

    def check(self) -> None:
        """Raises WeightPushError if nothing can be published any more."""
        if self._publisher is not None:
            self._publisher.check()

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        self._announcements.close()
        self._log.close()


def is_sparse(table: LearnerTable, host: str) -> bool:
    """Whether receivers get only changes: if the run file asks for it, or (``auto``) if lanes leave this machine. Never when
    colocated, as such engines keep no copy to apply changes to."""
    if table.colocated:
        return False
    return table.sparse == "always" or (table.sparse == "auto" and not is_loopback(f"tcp://{host}:0"))


def backend_of(table: LearnerTable, device: str) -> str:
    """The broadcast backend (``nccl`` or ``gloo``) of a learner on ``device``. Raises RunFileError for NCCL without a GPU."""
    on_gpu = device.startswith("cuda")
    if table.backend == "nccl" and not on_gpu:
        raise RunFileError(
            f'[learner] backend = "nccl" needs a GPU, and the learner is on {device!r}: use backend = "gloo"'
        )
    return table.backend if table.backend != "auto" else "nccl" if on_gpu and not table.colocated else "gloo"


def announce_control(run: Run, log: Log, producer: Producer, endpoint: str, owner: str) -> bool:
    """Tell the actors of an earlier learner this one's control ``endpoint``, by repeating the newest policy record with it. False if
    nothing was ever published."""
    topic = run.topics.policy
    reader = log.reader(topic)
    try:
        found = [message for record in read_all(reader, log.ends(topic)) if (message := _policy(record)) is not None]
    finally:
        reader.close()
    if not found:
        return False
    producer.send(topic, run.table.name.encode(), encode(replace(found[-1], control=endpoint, learner=owner)))
    producer.flush()
    return True


def _policy(record: Record) -> PolicyVersion | None:
    try:
        message = decode(record.value)
    except DecodeError:
        return None
    return message if isinstance(message, PolicyVersion) else None
