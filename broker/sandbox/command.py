"""Builds the command line of bubblewrap: what of this machine a sandbox sees, and as which user its programs run.

As root, bubblewrap needs no user namespace, and the runner changes to a fresh user id at each start, because the limit
on processes does not apply to root. As any other user, bubblewrap makes a user namespace. In both cases programs see
read-only system directories and three small file systems in memory, but neither network nor environment variables.
"""

from __future__ import annotations

import marshal
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from broker.sandbox.limits import Limits, SandboxError

WORK = "/box"
RUNNER = "/runner.pyc"
WRITABLE = (WORK, "/tmp", "/dev/shm")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
SETTINGS = ("alternatives", "ld.so.cache", "localtime", "java-*")
"""The entries of /etc that compilers and runtimes need."""
SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/local/go/bin"
PRELOAD = (
    "ast", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "threading", "time", "typing",
)  # fmt: skip
"""Modules that the runner may import before it forks: they belong to Python, and importing them does nothing else."""
FIRST_UID, SLOTS = 0x70000000, 64
SYS_ADMIN, SETUID, SETGID = 21, 7, 6
INSTALL = "install bubblewrap (apt install bubblewrap; make setup does so as root)"


@dataclass(frozen=True, slots=True)
class Place:
    """What makes sandboxes on this machine: the paths of bubblewrap and Python.

    ``privileged``: each sandbox can have a user id of its own; otherwise it needs a user namespace.
    """

    bwrap: str
    python: str
    privileged: bool

    @property
    def cure(self) -> str:
        if self.privileged:
            return "The container or kernel forbids it: allow namespaces and mounts (docker: --privileged)"
        return "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or user.max_user_namespaces), or run as root"

    def fresh_uid(self, start: int) -> int:
        """A user id that no other live sandbox on this machine has (up to SLOTS per process); 0 if unprivileged, where
        user namespaces separate them."""
        return FIRST_UID + (os.getpid() % (1 << 22)) * SLOTS + start % SLOTS if self.privileged else 0

    def command(self, limits: Limits, readonly: Sequence[str] = ()) -> list[str]:
        """The command line without what differs between starts. The caller must still remount the root read-only."""
        line = [
            self.bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
            "--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL",
        ]  # fmt: skip
        if self.privileged:
            line += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            line += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        made: set[str] = set()
        for path in [*SYSTEM, *_settings(), *self._interpreter(), *readonly]:
            line += _shown(path, made)
        line += ["--proc", "/proc", "--dev", "/dev"]
        for path in WRITABLE:
            size = limits.disk_mb << 20 if path == WORK else min(16, limits.disk_mb) << 20
            line += ["--size", str(size), "--perms", "1777", "--tmpfs", path]
        return [*line, "--remount-ro", "/dev", "--chdir", WORK]

    def _interpreter(self) -> list[str]:
        """The paths of Python and its libraries, if they are outside /usr; nothing of a virtual environment."""
        home = Path(self.python).parent.parent
        return [] if home.is_relative_to("/usr") else [self.python, str(home / "lib"), str(home / "lib64")]


def _settings() -> list[str]:
    return [str(path) for pattern in SETTINGS for path in sorted(Path("/etc").glob(pattern))]


def _shown(path: str, made: set[str]) -> list[str]:
    """Arguments that make ``path`` visible read-only, in parent directories that every user may enter."""
    source = Path(path)
    if source.is_symlink() and path in SYSTEM:
        return ["--symlink", str(source.readlink()), path]
    if not source.exists():
        return []
    line = []
    for parent in reversed(source.parents[:-1]):
        if str(parent) not in made and not str(parent).startswith(("/usr", "/bin", "/lib", "/sbin")):
            made.add(str(parent))
            line += ["--perms", "0755", "--dir", str(parent)]
    return [*line, "--ro-bind", path, path]


@lru_cache(maxsize=1)
def place() -> Place:
    """This machine's Place. Raises SandboxError, which says what to install, if there is no bubblewrap."""
    bwrap = shutil.which("bwrap", path=os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin")
    if bwrap is None:
        raise SandboxError(f"there is no bwrap on this machine: {INSTALL}")
    base = Path(getattr(sys, "_base_executable", "") or sys.executable)
    return Place(bwrap, str(base.resolve()), os.geteuid() == 0 and _has(SYS_ADMIN, SETUID, SETGID))


def _has(*capabilities: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return all(int(line.split()[1], 16) >> c & 1 for c in capabilities)
    return False


@lru_cache(maxsize=1)
def runner() -> bytes:
    """``inside.py``, compiled once for all starts: a .pyc without a date (PEP 552), for the same Python."""
    path = Path(__file__).parent / "inside.py"
    code = compile(path.read_text(encoding="utf-8"), "runner", "exec", dont_inherit=True)
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
