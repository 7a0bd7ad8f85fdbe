"""``Sandbox``: what other packages use. A frozen description; every ``run`` or ``open`` starts a fresh sandbox."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from broker.sandbox.limits import Limits, Result
from broker.sandbox.session import Session


@dataclass(frozen=True)
class Sandbox:
    """Limits, and what programs see of this machine besides the system directories.

    ``readonly`` are further paths that programs may read; ``packages`` are directories of Python packages for the warm
    interpreter. Programs can read all of it, so name no directory that contains a secret.
    """

    limits: Limits = field(default_factory=Limits)
    readonly: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def open(self, preload: Collection[str] = ()) -> Session:
        """Start a sandbox for several runs. Raises SandboxError if this machine cannot.

        ``preload``: modules that its Python programs will import, so that this is done only once; names that are not in
        ``command.PRELOAD`` are ignored.
        """
        return Session(self.limits, self.readonly, self.packages, preload)

    def run(self, command: Sequence[str], files: Mapping[str, bytes] | None = None, stdin: bytes = b"") -> Result:
        """Run one command in a fresh sandbox with ``files`` (name -> content) in its directory. Raises SandboxError."""
        with self.open() as session:
            if files:
                session.write(files)
            return session.run(command, stdin)
