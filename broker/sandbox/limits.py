"""What a sandboxed program may use, and what one run of it came to."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import HeadraceError

CAUSES = ("", "time", "memory", "output", "files", "processes", "killed")


class SandboxError(HeadraceError):
    """The sandbox itself cannot do its work; says nothing about the program in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run; ``disk_mb``, ``files`` and ``processes`` are those of the whole sandbox.

    ``cpu`` are seconds of processor time of a process, ``wall`` seconds on the clock (0: twice ``cpu`` and one more). ``memory_mb`` bounds the
    resident memory of all processes together, and, with ``address_space``, the address space of each: that answers at once where
    the watch looks every 50 ms, but runtimes that reserve much (Java, Go, Node) do not start under it.
    """

    cpu: float = 2.0
    wall: float = 0.0
    memory_mb: int = 256
    disk_mb: int = 64
    files: int = 2000
    processes: int = 32
    open_files: int = 64
    output_kb: int = 1024
    address_space: bool = True

    def __post_init__(self) -> None:
        for name in ("cpu", "memory_mb", "disk_mb", "files", "processes", "open_files", "output_kb"):
            if not getattr(self, name) > 0:
                raise SandboxError(f"limit {name} is {getattr(self, name)!r}; it must be above 0")

    @property
    def wall_seconds(self) -> float:
        return self.wall or 2 * self.cpu + 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """One run. ``status`` is the exit status, negative for a signal, None where the run was cut off with its sandbox.

    ``cause`` is empty if the program ended by itself, else the bound that it ran into, one of CAUSES (``killed``: a signal, or it ended its own runner). ``value``
    is what a called function returned, as JSON text. ``seconds`` of processor time, ``wall`` on the clock, ``delay`` of it in the queue for a
    processor, which is the machine's fault and not held against the program. All of it is what an untrusted
    program says, except ``cause`` and ``wall``.
    """

    stdout: bytes = b""
    stderr: bytes = b""
    value: bytes = b""
    status: int | None = None
    cause: str = ""
    why: str = ""
    seconds: float = 0.0
    wall: float = 0.0
    peak_mb: float = 0.0
    delay: float = 0.0

    @property
    def ok(self) -> bool:
        """It ended by itself, with status 0."""
        return self.cause == "" and self.status == 0
