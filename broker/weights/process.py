"""The publisher process: owns the learner's end of every broadcast group, so that killing it frees receivers that wait in one.

Orders come on stdin and answers go to stdout, as length-prefixed msgpack maps. The snapshots are in memory files whose
descriptors the learner passes on.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from broker.frames import read_frame, write_frame
from broker.weights.sink import Lane
from monitoring.daemon import die_with_parent
from monitoring.garbage import loading


class Publisher:
    """Carries out the orders of ``broker.weights.publisher``. ``buffers`` are descriptors of snapshots of ``size`` bytes."""

    def __init__(self, buffers: list[int], size: int, device: str) -> None:
        with loading():
            import torch

        torch.set_num_threads(1)
        self._device, self._locked = device, False
        maps = [mmap.mmap(fd, size) for fd in buffers]
        self._flat = [torch.frombuffer(m, dtype=torch.uint8) for m in maps]
        self._stores: dict[str, Any] = {}
        self._groups: list[tuple[Any, Lane]] = []
        self._changes: Any = None  # of the last comparison

    def handle(self, order: dict[str, Any]) -> dict[str, Any]:
        return dict(getattr(self, f"do_{order.pop('do')}")(**order))

    def do_stores(self, host: str, names: list[str], keep: list[str], timeout: float) -> dict[str, Any]:
        """Leave all lanes except ``keep``, and serve a rendezvous for each of ``names``; returns their ``ports``."""
        from broker.weights.group import serve_store

        self._groups = [(group, lane) for group, lane in self._groups if lane.group in keep]
        self._stores = {name: store for name, store in self._stores.items() if name in keep}
        self._stores.update({name: serve_store(host, timeout) for name in names})
        return {"ports": [self._stores[name].port for name in names]}

    def do_join(self, lanes: list[dict[str, Any]]) -> dict[str, Any]:
        """Enter new lanes as rank 0, all in parallel, as each waits for its own members."""
        from concurrent.futures import ThreadPoolExecutor

        from broker.weights.group import join
        from broker.weights.snapshot import lock

        if not self._locked and any(lane["backend"] == "nccl" for lane in lanes):
            self._locked = True
            for flat in self._flat:
                lock(flat)
        with ThreadPoolExecutor(len(lanes)) as pool:
            asked = [Lane(**lane) for lane in lanes]
            groups = pool.map(join, asked, [self._stores[lane.group] for lane in asked])
            self._groups += list(zip(groups, asked, strict=True))
        return {"joined": len(self._groups)}

    def do_compare(self, buffer: int, base: int, size: int, most: int) -> dict[str, Any]:
        """Encode the changes from buffer ``base`` to ``buffer``; returns their size, 0 if it exceeds ``most`` bytes."""
        from broker.weights.sparse import encode

        self._changes = encode(self._flat[base][:size], self._flat[buffer][:size], most)
        return {"bytes": 0 if self._changes is None else self._changes.numel()}

    def do_push(self, buffer: int, cuts: list[list[int]], sparse: bool = False) -> dict[str, Any]:
        """Broadcast one snapshot, or with ``sparse`` the last changes, on all lanes in parallel; ``cuts`` are byte ranges."""
        from concurrent.futures import ThreadPoolExecutor

        from broker.weights.group import broadcast

        flat = self._changes if sparse and self._changes is not None else self._flat[buffer]

        def push(group: Any, lane: Lane) -> None:
            for start, end in cuts:
                piece = flat[start:end]
                broadcast(group, piece.to(self._device) if lane.backend == "nccl" else piece, lane.timeout)

        with ThreadPoolExecutor(max(1, len(self._groups))) as pool:
            lanes = [pool.submit(push, *lane) for lane in self._groups]
        for pushed in lanes:
            pushed.result()
        return {"pushed": True}

    def do_save(
        self, buffer: int, specs: list[list[Any]], template: str, directory: str, version: int, keep: int
    ) -> dict[str, Any]:
        """Write one snapshot as a Hugging Face directory: into a temporary one, fsynced, then renamed. Keeps ``keep`` versions.

        Of one that fails, or whose process was killed, nothing stays: a full disk would stay full.
        """
        home = Path(directory)
        final, beside = home / f"v-{version:08d}", home / f".v-{version:08d}.{os.getpid()}"
        for left in home.glob(".v-*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            shutil.copytree(template, beside)
            self._write(buffer, specs, beside)
            remove(final)
            beside.replace(final)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        others = (
            path for path in home.glob("v-*") if path != final
        )  # order by time: after a rewind, old version numbers are used again
        for old in sorted(others, key=lambda path: path.stat().st_mtime_ns)[: 1 - keep or None]:
            remove(old)
        return {"path": str(final)}

    def _write(self, buffer: int, specs: list[list[Any]], directory: Path) -> None:
        """Add a snapshot's tensors to ``directory``, and fsync all of it."""
        from safetensors.torch import save_file

        from broker.weights.layout import views
        from broker.weights.sink import TensorSpec

        tensors = views([TensorSpec(n, d, tuple(s)) for n, d, s in specs], self._flat[buffer])
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        for path in [*directory.iterdir(), directory]:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def do_checksum(self, buffer: int, size: int) -> dict[str, Any]:
        from broker.weights.layout import checksum

        return {"checksum": checksum(self._flat[buffer][:size])}


def remove(version: Path) -> None:
    """Delete a version that others may be reading: who finds its directory finds all of it."""
    going = version.with_name(f".{version.name}.{os.getpid()}.old")
    with suppress(FileNotFoundError):
        version.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    size, *buffers = (int(a) for a in sys.argv[3:])
    publisher = Publisher(buffers, size, sys.argv[2])
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # output of libraries must not mix with the frames
    write_frame(out, {"ready": True})
    while (order := read_frame(sys.stdin.buffer)) is not None:
        try:
            answer = publisher.handle(order)
        except Exception as error:  # reported as the order's answer; the learner decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        write_frame(out, answer)
    os._exit(0)  # a group that never formed would block a normal exit


if __name__ == "__main__":
    main()
