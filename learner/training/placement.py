"""The seam between an algorithm and the ranks that it runs on: how work is dealt out, who leads, how sums are taken, where weights are.

``ALONE`` is the learner of one process; ``Pool`` shards the model over the ranks of a device mesh (FSDP2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from broker.weights.layout import specs_of
from broker.weights.sink import TensorSpec
from learner.config import LearnerConfig
from learner.model.policy import PolicyWeights
from learner.training.batch import PackedChunk
from learner.training.reference import reference_of
from learner.training.saving import Saver, WholeSaver
from learner.training.share import Share
from learner.training.tensorfiles import Stored


class Placement:
    """One process; what a pool does otherwise is in ``Pool``."""

    rank = 0
    world = 1
    device = ""
    """``cpu`` or ``cuda`` where the placement says so, else as the run file has it."""

    @property
    def leads(self) -> bool:
        """Whether this rank plans; the others follow its orders."""
        return self.rank == 0

    def settle(self, config: LearnerConfig) -> None:
        """Take up the run file. Raises RunFileError for what this placement cannot do."""

    # -- orders --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ordering(self, name: str, **fields: Any) -> Iterator[None]:
        """The block is done by all ranks: the others are ordered to call their ``name`` with ``fields``."""
        yield

    def deal(self, share: Share, device: torch.device | str, name: str, **fields: Any) -> Share:
        """Deal out a whole step under the order ``name``; returns this rank's part, on ``device``."""
        return share.to(device)

    def end(self) -> None:
        """The work is over: let the others go, if they are waiting for an order."""

    # -- the model -----------------------------------------------------------------------------------------------------

    def load_device(self, device: str) -> str:
        """Where a model is loaded to, before it is sharded."""
        return device

    def held(self, stored: Stored) -> Tensor:
        """A tensor of a checkpoint's optimizer as this rank holds it."""
        return stored.rows()

    def shard(self, model: Any) -> Any:
        """``model`` as this placement computes it."""
        return model

    def frozen(self, model: Any) -> Any:
        """A copy of ``model`` that is never trained."""
        return reference_of(model)

    def rounds(self, model: Any, chunks: Sequence[PackedChunk]) -> Iterable[PackedChunk]:
        """The chunks of a step; each is to be followed by its backward pass."""
        return chunks

    # -- what others take of it ----------------------------------------------------------------------------------------

    def specs(self, model: Any, kind: torch.dtype) -> tuple[TensorSpec, ...]:
        """What ``weights`` gives, in order."""
        return specs_of(PolicyWeights(model, kind, tied=False))

    def weights(self, model: Any, kind: torch.dtype, bucket_bytes: int) -> Iterator[tuple[str, Tensor]]:
        """The policy's whole parameters by name as engines get them, tied ones once, floating point as ``kind``; to be taken to the end."""
        yield from PolicyWeights(model, kind, tied=False).items()

    def saver(self) -> Saver:
        """What writes checkpoints."""
        return WholeSaver()

    # -- sums ----------------------------------------------------------------------------------------------------------

    def added(self, values: Tensor) -> Tensor:
        """The sum over the ranks of a tensor of one shape."""
        return values

    def totals(
        self, sums: Mapping[str, float], maxima: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and maxima over the ranks of numbers that all ranks have under the same names."""
        return dict(sums), dict(maxima)


ALONE = Placement()
