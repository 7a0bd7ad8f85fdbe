"""Reads tensors of a checkpoint from its files: whole from one file, or in the pieces that the ranks of a pool wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from broker.errors import CheckpointError

TENSORS = "headrace.safetensors"


@dataclass(frozen=True, slots=True)
class Layout:
    """How many ranks wrote a checkpoint (0: one process, without pieces), and the shape of each tensor that lies in pieces."""

    ranks: int = 0
    shapes: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``first`` to ``last`` of a tensor: the tensor ``key`` of ``file``."""

    first: int
    last: int
    file: Any
    key: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is not yet read."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def rows(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows ``first`` to ``last`` of the tensor, by default all of it; read from the disk now."""
        if not self.shape:
            return self.pieces[0].file.get_tensor(self.pieces[0].key)
        last = self.shape[0] if last is None else last
        parts = [
            piece.file.get_slice(piece.key)[max(first, piece.first) - piece.first : min(last, piece.last) - piece.first]
            for piece in self.pieces
            if piece.first < last and first < piece.last
        ]
        if not parts:
            return self.pieces[0].file.get_slice(self.pieces[0].key)[:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write contiguous tensors of the CPU, without holding the interpreter. Raises OSError, also for what safetensors says of the disk."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise disk_error(error, path) or error from error


def disk_error(error: Exception, path: Path) -> OSError | None:
    """What the operating system has said, where ``error`` only quotes it."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else None


def shard_file(rank: int, ranks: int) -> str:
    """The file that ``rank`` of a pool writes its state into."""
    return f"headrace-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def stored_tensors(directory: Path, layout: Layout) -> dict[str, Stored]:
    """The tensors of a checkpoint's state by path. Raises CheckpointError if pieces are missing, OSError if a file is."""
    names = [shard_file(rank, layout.ranks) for rank in range(layout.ranks)] or [TENSORS]
    found: dict[str, list[Piece]] = {path: [] for path in layout.shapes}
    shapes: dict[str, tuple[int, ...]] = {path: tuple(shape) for path, shape in layout.shapes.items()}
    for name in names:
        file = safe_open(directory / name, framework="pt")
        for key in file.keys():  # noqa: SIM118
            path, sign, first = key.rpartition("@")
            shape = tuple(file.get_slice(key).get_shape())
            if not sign or path not in layout.shapes:
                path, first = key, "0"
                shapes[path] = shape
            start = int(first)
            found.setdefault(path, []).append(Piece(start, start + shape[0] if shape else start, file, key))
    stored = {path: Stored(shapes[path], tuple(sorted(found[path], key=lambda p: p.first))) for path in found}
    for path in layout.shapes:
        rows, at = shapes[path][0], 0
        for piece in stored[path].pieces:
            at = piece.last if piece.first == at else -1
        if at != rows:
            raise CheckpointError(f"checkpoint {directory} is damaged: the pieces of {path} are not its {rows} rows")
    return stored
