"""The receiver of weights: the interface between the weight road and an engine. Imports no torch."""

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
    """One broadcast group: the publisher is rank 0, this receiver's first rank is ``rank``, of ``world``. ``timeout`` is in seconds."""

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
    """One version to receive: its tensors in order, the size of the broadcast buckets in bytes, and the checksum.

    If ``sparse`` is not 0, that many bytes of changes since version ``base`` are sent instead (``broker.weights.sparse``); the checksum is
    still that of the full weights.
    """

    version: int
    specs: tuple[TensorSpec, ...]
    bucket_bytes: int
    checksum: str
    base: int = -1
    sparse: int = 0


class WeightSink(Protocol):
    """The receiving half of an engine. Called on the weight client's thread, never on the sampling thread.

    ``ranks`` is the number of broadcast ranks that it takes; those of a sharded engine are ``lane.rank`` and the following ones. Every
    method raises WeightPushError on failure; the engine then keeps its old weights, or stays paused if it cannot be sure that they are
    complete. A sink that keeps the bytes of its last push may set ``sparse = True``: it then also gets pushes of changes (``Push.sparse``).
    """

    ranks: int

    @property
    def ready(self) -> bool:
        """Whether it can take part in a broadcast now. One that cannot would keep all others waiting."""

    def join(self, lane: Lane) -> None:
        """Enter the broadcast group of a new epoch (leaving the old one). Blocks at most ``lane.timeout``."""

    def receive(self, push: Push) -> str:
        """Take part in one broadcast; returns the checksum of the weights once the engine samples from them.

        A receiver that has no access to the bytes returns ``KIND:CHECKSUM``, its own checksum; all receivers of a kind must agree.
        """

    def load(self, path: Path, version: int) -> None:
        """Take the weights of ``version`` from the Hugging Face directory ``path`` instead of a broadcast."""

    def leave(self) -> None:
        """Leave the broadcast group, if any."""

    def rest(self) -> None:
        """Stop sampling and release the device memory until ``wake``. No effect if it rests already."""

    def wake(self, version: int, patience: float) -> None:
        """Allocate the device memory again and resume: with the weights of ``version`` once they arrive, or after ``patience`` seconds
        with the ones held. Samples that were under way at ``rest`` continue as after a change of weights."""
