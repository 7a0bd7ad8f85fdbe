"""The limits of a sandboxed program, and the result of one run."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import HeadraceError

CAUSES = ("", "time", "memory", "output", "files", "processes", "killed")


class SandboxError(HeadraceError):
    """The sandbox itself has failed; this says nothing about the program in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run; ``disk_mb``, ``files`` and ``processes`` are those of the whole sandbox. Raises SandboxError
    for 0 or less (except ``wall``).

    ``cpu``: seconds of processor time per process. ``wall``: seconds on the clock (0: twice ``cpu`` and one more); time
    spent waiting for a processor is added, at most ``wall`` again. ``memory_mb``: MiB of resident memory of all
    processes together; with ``address_space`` also of the address space of each, plus 64. That limit acts at once,
    while the watch looks every 50 ms, but runtimes that reserve much memory (Java, Go, Node) do not start under it.
    ``disk_mb``: MiB in the working directory; /tmp and /dev/shm have at most 16 each. ``output_kb``: KiB of standard
    output.
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
    """The result of one run. ``status`` is the exit status, negative for a signal; None if the run did not start or the
    sandbox ended with it.

    ``cause`` is empty if the program ended by itself, else the limit that it reached, one of CAUSES (``killed``: by a
    signal, or the runner ended). ``value`` is what a called function returned, as JSON text. ``seconds`` are processor
    time, ``wall`` on the clock; ``delay`` is the part of it spent waiting for a processor, which is the machine's fault
    and not the program's. ``peak_mb`` (MiB) is the most resident memory seen.

    ``wall``, and ``cause`` if the sandbox was ended for it, are measured outside. All else is reported from inside the
    sandbox and must not be trusted.
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
        """Whether the program ended by itself, with status 0."""
        return self.cause == "" and self.status == 0
