"""Checkpoints: one atomic directory each, with the whole state of the executor; transformers loads it as it is.

No pickle: tensors are in safetensors files, everything else is JSON. The ranks of a pool write one file each (format 2), in which a tensor
sharded by rows is stored in pieces named ``PATH@FIRST_ROW``; any number of ranks can read them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from broker.errors import CheckpointError
from learner.training.tensorfiles import TENSORS, Layout, Stored, stored_tensors

STATE = "headrace.json"
ASIDE = ".old"  # the end of the name of a checkpoint that is being replaced


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training has come: ``version`` is the policy version, ``closed`` whether the stage ended with it.

    ``steps_offset`` is the offset in the ``steps`` topic behind the newest record that this state includes.
    """

    version: int = 0
    stage: int = 0
    stage_step: int = 0
    closed: bool = False
    steps_offset: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


def flatten(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """``tree`` with its tensors taken out into ``tensors`` and named in their place; the rest must be JSON."""
    if isinstance(tree, torch.Tensor):
        tensors[path] = tree.detach()
        return {"__tensor__": path}
    if isinstance(tree, Mapping):
        return {"__map__": [[_key(k), flatten(v, tensors, f"{path}/{k}")] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "__tuple__" if isinstance(tree, tuple) else "__list__"
        return {kind: [flatten(v, tensors, f"{path}/{i}") for i, v in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CheckpointError(f"{path or 'state'} is a {type(tree).__name__}, which a checkpoint cannot hold")


def unflatten(tree: Any, tensors: Mapping[str, Any]) -> Any:
    """The inverse of ``flatten``."""
    if not isinstance(tree, dict):
        return tree
    kind, value = next(iter(tree.items()))
    if kind == "__tensor__":
        return tensors[value]
    if kind == "__map__":
        return {k: unflatten(v, tensors) for k, v in value}
    items = [unflatten(v, tensors) for v in value]
    return tuple(items) if kind == "__tuple__" else items


def _key(key: Any) -> str | int:
    if isinstance(key, str | int):
        return key
    raise CheckpointError(f"key {key!r} of a checkpoint must be text or an integer")


class Checkpoints:
    """The checkpoints of a run. Named ones (the results of supervised stages) are kept for ever; of the others,
    the newest ``keep``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        progress: Progress,
        state: Mapping[str, Any],
        save_model: Callable[[Path], None],
        keep: int = 2,
        name: str = "",
    ) -> Path:
        """Write beside, fsync, rename. ``state`` is a tree of tensors and JSON; ``save_model`` writes the model's own files."""
        final, beside = self.begin(progress, name)
        save_model(beside)
        tensors: dict[str, torch.Tensor] = {}
        tree = flatten(dict(state), tensors)
        save_file({path: t.cpu().contiguous().clone() for path, t in tensors.items()}, beside / TENSORS)
        return self.finish(progress, tree, final, beside, keep)

    def begin(self, progress: Progress, name: str = "") -> tuple[Path, Path]:
        """The name of a new checkpoint, and the empty directory beside it that it is written into."""
        final = self.directory / (name or f"step-{progress.version:08d}-{progress.stage}-{progress.stage_step:08d}")
        beside = self.directory / f".{final.name}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        return final, beside

    def finish(
        self, progress: Progress, tree: Any, final: Path, beside: Path, keep: int, layout: Layout | None = None
    ) -> Path:
        """All tensors are written: the state ``tree`` makes the directory a checkpoint, fsynced and renamed."""
        header = {
            "format": 2 if layout else 1,
            "created": time.time(),
            "version": progress.version,
            "stage": progress.stage,
            "stage_step": progress.stage_step,
            "closed": progress.closed,
            "steps_offset": progress.steps_offset,
            "extra": dict(progress.extra),
            "state": tree,
            **({"shards": layout.ranks, "shapes": layout.shapes} if layout else {}),
        }
        (beside / STATE).write_text(json.dumps(header))
        for path in [*beside.rglob("*"), beside]:
            sync(path)
        if final.exists():  # the same state, saved before a crash that came before it was of use
            aside = self.directory / f".{final.name}{ASIDE}"
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)  # removed in place, it would look whole when half of it is gone
        beside.replace(final)
        sync(self.directory)
        self._prune(keep)
        return final

    def put_back(self) -> None:
        """Restore what a crash left moved aside while it was being replaced. Only for a learner that is not saving."""
        for path in self.directory.glob(f".*{ASIDE}"):
            final = self.directory / path.name.removeprefix(".").removesuffix(ASIDE)
            if not final.exists():
                path.rename(final)

    def _prune(self, keep: int) -> None:
        for path in self.directory.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in sorted(self.directory.glob("step-*"))[:-keep]:
            going = path.rename(self.directory / f".{path.name}.old")  # who finds a checkpoint finds all of it
            shutil.rmtree(going, ignore_errors=True)

    def all(self) -> list[tuple[Path, Progress]]:
        """Every whole checkpoint, the one that has come furthest last. A learner may remove some meanwhile."""
        found = []
        for path in self.directory.iterdir():
            if path.name.startswith(".") or not (path / STATE).exists():
                continue
            try:
                found.append((path, read_progress(path)))
            except CheckpointError:
                if path.exists():
                    raise
        return sorted(found, key=lambda item: (item[1].steps_offset, item[1].stage, item[1].closed, item[1].stage_step))

    def newest(self) -> tuple[Path, Progress] | None:
        found = self.all()
        return found[-1] if found else None


def read_progress(path: Path) -> Progress:
    """Raises CheckpointError if there is no checkpoint at ``path``."""
    header = _header(path)
    return Progress(
        header["version"],
        header["stage"],
        header["stage_step"],
        header["closed"],
        header["steps_offset"],
        header["extra"],
    )


def read_state(path: Path) -> dict[str, Any]:
    """The state tree of the checkpoint at ``path``. Raises CheckpointError."""
    return dict(resolved(open_state(path), lambda stored: stored.rows()))


def open_state(path: Path) -> dict[str, Any]:
    """The state tree of the checkpoint at ``path`` with its tensors not yet read. Raises CheckpointError."""
    header = _header(path)
    layout = Layout(header.get("shards", 0), header.get("shapes", {}))
    try:
        return dict(unflatten(header["state"], stored_tensors(path, layout)))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def resolved(tree: Any, read: Callable[[Stored], Any]) -> Any:
    """``tree`` with ``read`` of each of its stored tensors."""
    if isinstance(tree, Stored):
        return read(tree)
    if isinstance(tree, dict):
        return {key: resolved(value, read) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(resolved(value, read) for value in tree)
    return tree


def _header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / STATE).read_text())
        if header["format"] not in (1, 2):
            raise CheckpointError(
                f"checkpoint {path} has format {header['format']}; this version reads formats 1 and 2"
            )
        return dict(header)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"no readable checkpoint at {path}: {error}") from error


def sync(path: Path) -> None:
    """Make a file or directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
