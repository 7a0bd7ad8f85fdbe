"""What receives weights at the far end: the seam between the weight road and an engine. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (``float32``, ``bfloat16``...) and shape of one parameter, in broadcast order."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """One broadcast group of a membership epoch: the publisher is rank 0, this receiver is ``rank`` of ``world`` (the first of its ranks)."""

    epoch: int
    group: str
    host: str
    port: int
    rank: int
    world: int
    backend: str
    timeout: float


@dataclass(frozen=True, slots=True)
class Push:
    """One set of weights on its way: version, the tensors in order, how they are cut into buckets, and the checksum.

    With ``sparse`` only the changes since version ``base`` come, in so many bytes (``broker.weights.sparse``); the checksum is that of the whole.
    """

    version: int
    specs: tuple[TensorSpec, ...]
    bucket_bytes: int
    checksum: str
    base: int = -1
    sparse: int = 0


class WeightSink(Protocol):
    """The receiving half of an engine. Called by the control client's thread, never by the sampling thread.

    ``ranks`` is how many ranks of the broadcast it takes: those of an engine that is sharded join one by one, from ``lane.rank``
    on. Every method raises WeightPushError if it fails; the engine then goes on with the weights it had, or stays paused
    where it cannot know them to be whole. One that keeps the bytes of its last push may say so by ``sparse = True``: it can then take the
    changes alone, wherever ``Push.sparse`` says that these come.
    """

    ranks: int

    @property
    def ready(self) -> bool:
        """Whether it can take part in a broadcast; the others are kept waiting by one that cannot."""

    def join(self, lane: Lane) -> None:
        """Enter the broadcast group of a new epoch (leaving the old one). Blocks at most ``lane.timeout``."""

    def receive(self, push: Push) -> str:
        """Take part in one broadcast; returns the checksum of what arrived once the engine samples from it.

        A receiver that cannot sum the bytes gives ``KIND:CHECKSUM`` of what it holds; all of one kind must then agree.
        """

    def load(self, path: Path, version: int) -> None:
        """Take the weights from a Hugging Face directory instead."""

    def leave(self) -> None:
        """Leave the broadcast group, if any."""

    def rest(self) -> None:
        """Stop sampling and give the device memory back, until ``wake``. Nothing if it rests already."""

    def wake(self, version: int, patience: float) -> None:
        """Take the device memory back and go on: with weights of ``version`` once they are there, or after ``patience`` seconds with
        those that are held. What was under way at ``rest`` goes on as after a change of weights."""
