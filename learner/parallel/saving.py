"""A pool's checkpoint: every rank writes its part in the background; the directory takes its name once all are done.

The model lies in Hugging Face's own form, whole tensors in one file a rank; of the optimizer and the reference each rank
writes the rows that it holds. A step waits only for the copy into the memory of the CPU.
"""

from __future__ import annotations

import errno
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from broker.errors import CheckpointError
from learner.parallel.gather import buckets, gathered, named_tensors, owners
from learner.parallel.pool import Pool
from learner.training.checkpoint import flatten, sync
from learner.training.shards import first_row
from learner.training.tensorfiles import Layout, shard_file

log_ = logging.getLogger("learner")
OTHER = 10_000  # a failure to write that is no error of the operating system
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What this rank writes: files with their tensors, on the CPU; rank 0 also how all of it lies."""

    files: dict[str, dict[str, Tensor]]
    weights: dict[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    tree: Any = None


def take_part(pool: Pool, model: Any, state: Mapping[str, Any], bucket_bytes: int) -> Part:
    """Copy this rank's part of ``model`` and ``state`` (a tree of tensors and JSON) into memory; all ranks together."""
    files: dict[str, dict[str, Tensor]] = {}
    where: dict[str, str] = {}
    named = named_tensors(model)
    size = sum(t.numel() * t.element_size() for _, t in named)
    cut = buckets(named, min(bucket_bytes, -(-size // pool.world)))
    for bucket, owner in zip(cut, owners(cut, pool.world), strict=True):
        file = f"model-{owner + 1:05d}-of-{pool.world:05d}.safetensors"
        where |= {name: file for name, _ in bucket}
        for name, tensor in gathered(bucket, pool, owner):
            files.setdefault(file, {})[name] = copied(tensor)
    tensors: dict[str, Tensor] = {}
    tree = flatten(dict(state), tensors)
    shapes, mine = {}, {}
    for path, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            shapes[path] = list(tensor.shape)
            if len(local := tensor.to_local()):
                mine[f"{path}@{first_row(tensor.shape[0], pool.rank, pool.world)}"] = copied(local)
        elif pool.leads:
            mine[path] = copied(tensor)
    files[shard_file(pool.rank, pool.world)] = mine
    return Part(files, {"metadata": {"total_size": size}, "weight_map": where}, Layout(pool.world, shapes), tree)


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, whatever is done to ``tensor`` from now on."""
    return tensor.detach().to("cpu", copy=True).contiguous()


class Writer:
    """Writes one part at a time, on a thread of its own; ranks agree on the end of each over ``pool.writers``."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, part: Part, beside: Path, finish: Callable[[Part], None] | None = None) -> None:
        """Write ``part`` into ``beside``; rank 0 then does ``finish``, once all ranks have written. Raises what the write before
        this one failed with."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(part, beside, finish), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait for what is under way. Raises CheckpointError or OSError if a rank could not write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, part: Part, beside: Path, finish: Callable[[Part], None] | None) -> None:
        status = 0
        try:
            for name, tensors in part.files.items():
                save_file(tensors, beside / name, metadata={"format": "pt"})
                sync(beside / name)
        except Exception as error:  # every failure is told to all ranks: none of them may go on as if it were written
            log_.exception("rank %d could not write its part of %s", self._pool.rank, beside)
            status = (error.errno or OTHER) if isinstance(error, OSError) else OTHER
        try:
            worst = self._pool.writers.worst(status)
            if worst and self._pool.leads:
                self._error = _failure(worst, beside)
            elif finish is not None:
                (beside / INDEX).write_text(json.dumps(part.weights, indent=2))
                finish(part)
        except BaseException as error:  # raised where the next part is begun
            self._error = error


def _failure(status: int, beside: Path) -> Exception:
    if status in errno.errorcode:
        return OSError(status, "a rank of the pool could not write its part", str(beside))
    return CheckpointError(f"a rank of the pool could not write its part of {beside}; its log says why")
