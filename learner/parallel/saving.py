"""A pool's checkpoint: every rank writes its part in the background; the directory gets its final name once all are done.

The model is written in Hugging Face's format, whole tensors in one file per rank. Of the optimizer and the reference model each
rank writes the rows that it holds. A step waits only for the copy into CPU memory.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from broker.errors import CheckpointError
from learner.model.load import save_shape
from learner.parallel.channel import Channel
from learner.parallel.gather import buckets, gathered, named_tensors, owners
from learner.training.checkpoint import Checkpoints, flatten, sync
from learner.training.saving import Beside, tree_of
from learner.training.shards import first_row
from learner.training.tensorfiles import Layout, shard_file

if TYPE_CHECKING:
    from learner.training.state import LearnerState

log_ = logging.getLogger("learner")
OTHER = 10_000  # status of a failed write that has no errno
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What this rank writes: tensors (on the CPU) by file and name. ``weights``, ``layout`` and ``tree`` are the index, for rank 0."""

    files: dict[str, dict[str, Tensor]]
    weights: dict[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    tree: Any = None


def take_part(mesh: DeviceMesh, model: Any, state: Mapping[str, Any], bucket_bytes: int) -> Part:
    """Copy this rank's part of ``model`` and ``state`` (a tree of tensors and JSON) to CPU memory. All ranks must call it together."""
    rank = mesh.get_local_rank()
    files: dict[str, dict[str, Tensor]] = {}
    where: dict[str, str] = {}
    named = named_tensors(model)
    size = sum(t.numel() * t.element_size() for _, t in named)
    cut = buckets(named, min(bucket_bytes, -(-size // mesh.size())))
    for bucket, owner in zip(cut, owners(cut, mesh.size()), strict=True):
        file = f"model-{owner + 1:05d}-of-{mesh.size():05d}.safetensors"
        where |= {name: file for name, _ in bucket}
        for name, tensor in gathered(bucket, mesh, owner):
            files.setdefault(file, {})[name] = copied(tensor)
    tensors: dict[str, Tensor] = {}
    tree = flatten(dict(state), tensors)
    shapes, mine = {}, {}
    for path, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            shapes[path] = list(tensor.shape)
            if len(local := tensor.to_local()):
                mine[f"{path}@{first_row(tensor.shape[0], rank, mesh.size())}"] = copied(local)
        elif not rank:
            mine[path] = copied(tensor)
    files[shard_file(rank, mesh.size())] = mine
    return Part(files, {"metadata": {"total_size": size}, "weight_map": where}, Layout(mesh.size(), shapes), tree)


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU that shares no memory with ``tensor``."""
    return tensor.detach().to("cpu", copy=True).contiguous()


class Writer:
    """Writes one part at a time, on a thread; over ``writers`` the ranks agree whether all of them succeeded."""

    def __init__(self, rank: int, writers: Channel) -> None:
        self._rank, self._writers = rank, writers
        self._beside = Beside()

    def begin(self, part: Part, beside: Path, finish: Callable[[Part], None] | None = None) -> None:
        """Start writing ``part`` into ``beside``; once all ranks have written, ``finish`` (given on rank 0) is called. Raises the failure
        of the previous write: CheckpointError or OSError if a rank could not write."""
        self._beside.begin(partial(self._write, part, beside, finish))

    def wait(self) -> None:
        """Wait for the write under way. Raises CheckpointError or OSError if a rank could not write."""
        self._beside.wait()

    def check(self) -> None:
        """Like ``wait``, but returns at once if a write is still under way."""
        self._beside.check()

    def _write(self, part: Part, beside: Path, finish: Callable[[Part], None] | None) -> None:
        status = 0
        try:
            for name, tensors in part.files.items():
                save_file(tensors, beside / name, metadata={"format": "pt"})
                sync(beside / name)
        except Exception as error:  # report every failure to all ranks: none may continue as if the checkpoint existed
            log_.exception("rank %d could not write its part of %s", self._rank, beside)
            status = (error.errno or OTHER) if isinstance(error, OSError) else OTHER
        worst = self._writers.worst(status)
        if worst and not self._rank:
            raise _failure(worst, beside)
        if finish is not None:
            (beside / INDEX).write_text(json.dumps(part.weights, indent=2))
            finish(part)


class PartSaver:
    """Writes a pool's checkpoints in the background, each rank its part. ``ordering`` makes the other ranks do the same."""

    def __init__(
        self, mesh: DeviceMesh, writers: Channel, ordering: Callable[..., AbstractContextManager[None]]
    ) -> None:
        self._mesh, self._ordering = mesh, ordering
        self._writer = Writer(mesh.get_local_rank(), writers)

    def save(
        self, state: LearnerState, checkpoints: Checkpoints, keep: int, name: str, extra: Mapping[str, Any]
    ) -> Path:
        self._writer.wait()
        progress, (final, beside) = state.progress, checkpoints.begin(state.progress, name)

        def finish(part: Part) -> None:
            save_shape(state.model, state.model_path, beside)
            checkpoints.finish(progress, part.tree, final, beside, keep, part.layout)

        self.write(state, beside, extra, finish)
        if name:
            self._writer.wait()
        return final

    def write(
        self,
        state: LearnerState,
        beside: Path,
        extra: Mapping[str, Any],
        finish: Callable[[Part], None] | None = None,
    ) -> None:
        with self._ordering("save", beside=str(beside)):
            part = take_part(self._mesh, state.model, tree_of(state, extra), state.bucket_bytes)
            self._writer.begin(part, beside, finish)

    def wait(self) -> None:
        self._writer.wait()

    def check(self) -> None:
        self._writer.check()


def _failure(status: int, beside: Path) -> Exception:
    if status in errno.errorcode:
        return OSError(status, "a rank of the pool could not write its part", str(beside))
    return CheckpointError(f"a rank of the pool could not write its part of {beside}; its log says why")
