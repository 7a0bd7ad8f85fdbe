"""How bubblewrap is called: which parts of this machine a sandbox sees, and as which user its programs run.

As root, bubblewrap needs no user namespace, and the runner drops to a user of its own for each start: limits on processes bind no root. As anybody
else it makes a user namespace. Both see system directories read-only, three small file systems in memory, and neither network nor environment.
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
"""What compilers and runtimes need of /etc."""
SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/local/go/bin"
PRELOAD = (
    "ast", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "threading", "time", "typing",
)  # fmt: skip
"""What the runner may be asked to import before it forks: modules of Python itself, which do nothing but that."""
FIRST_UID, SLOTS = 0x70000000, 64
SYS_ADMIN, SETUID, SETGID = 21, 7, 6
INSTALL = "install bubblewrap (apt install bubblewrap; make setup does so as root)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where sandboxes are made on this machine: bubblewrap and Python by path, and whether a user of their own is to be had."""

    bwrap: str
    python: str
    privileged: bool

    @property
    def cure(self) -> str:
        if self.privileged:
            return "The container or kernel forbids it: allow namespaces and mounts (docker: --privileged)"
        return "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or user.max_user_namespaces), or run as root"

    def fresh_uid(self, start: int) -> int:
        """A user id that no other living sandbox of this machine has; 0 where it is the user namespace that sets them apart."""
        return FIRST_UID + (os.getpid() % (1 << 22)) * SLOTS + start % SLOTS if self.privileged else 0

    def command(self, limits: Limits, readonly: Sequence[str] = ()) -> list[str]:
        """The command line up to what depends on the start; the root is still to be made read-only."""
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
        """Python itself with its libraries, where they lie outside the system's directories; nothing of a virtual environment."""
        home = Path(self.python).parent.parent
        return [] if home.is_relative_to("/usr") else [self.python, str(home / "lib"), str(home / "lib64")]


def _settings() -> list[str]:
    return [str(path) for pattern in SETTINGS for path in sorted(Path("/etc").glob(pattern))]


def _shown(path: str, made: set[str]) -> list[str]:
    """Arguments that show ``path`` read-only, with parents that anybody may pass through."""
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
    """Raises SandboxError, with what to install, if there is no bubblewrap."""
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
    """``inside.py``, compiled once for all starts: as a .pyc without a date (PEP 552) of this Python, which is the sandbox's."""
    path = Path(__file__).parent / "inside.py"
    code = compile(path.read_text(encoding="utf-8"), "runner", "exec", dont_inherit=True)
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
