"""``Sandbox``: what the other parts use. A frozen description; every ``run`` or ``open`` starts a fresh one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from broker.sandbox.limits import Limits, Result
from broker.sandbox.session import Session


@dataclass(frozen=True)
class Sandbox:
    """Bounds, and what of this machine is shown beside the system's directories.

    ``readonly`` are further paths that programs may read; ``packages`` are directories of Python packages for the warm interpreter. Whatever is shown can be read
    by the program: show no directory that holds a secret.
    """

    limits: Limits = field(default_factory=Limits)
    readonly: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def open(self, preload: Collection[str] = ()) -> Session:
        """A started sandbox for several runs. Raises SandboxError if this machine does not give one.

        ``preload``: what its Python programs are going to import, so that it is done once; names that are no modules of Python itself are passed over.
        """
        return Session(self.limits, self.readonly, self.packages, preload)

    def run(self, command: Sequence[str], files: Mapping[str, bytes] | None = None, stdin: bytes = b"") -> Result:
        """One command in a sandbox of its own, with ``files`` (name -> content) in its directory."""
        with self.open() as session:
            if files:
                session.write(files)
            return session.run(command, stdin)
