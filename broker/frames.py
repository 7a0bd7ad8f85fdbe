"""Length-prefixed msgpack frames over pipes, for talking to a child process that may have to be killed."""

from __future__ import annotations

import struct
from typing import IO, Any, Protocol

import msgpack


def framed(message: Any) -> bytes:
    data: bytes = msgpack.packb(message)
    return struct.pack("<I", len(data)) + data


def write_frame(stream: Any, message: Any) -> None:
    stream.write(framed(message))
    stream.flush()


def read_frame(stream: Any) -> Any:
    """The next message, or None at the end of the stream."""
    head = _exactly(stream, 4)
    return msgpack.unpackb(_exactly(stream, struct.unpack("<I", head)[0])) if len(head) == 4 else None


def _exactly(stream: Any, size: int) -> bytes:
    """``size`` bytes, also from an unbuffered stream that gives them piece by piece; fewer at its end."""
    data = b""
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    return data


class Child(Protocol):
    """A child with pipes; ``subprocess.Popen`` is one."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def kill(self) -> None: ...

    def wait(self) -> int: ...


def kill(process: Child) -> None:
    """End a child at once and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
