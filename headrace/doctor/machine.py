"""Whether this machine can run headrace, each check with what to do about it.

Looks at the machine, not at a run; imports torch to ask it what it sees.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DISK_GB, SHARED_MB = 1.0, 256.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: ``fix`` says what to do where it is not ``ok``."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def python() -> Check:
    return Check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")


def system() -> Check:
    return Check("system", sys.platform == "linux", platform.platform(), "daemons need Linux (PR_SET_PDEATHSIG)")


def packages() -> Check:
    from headrace.reading.summary import versions

    found = versions()
    absent = [name for name, version in found.items() if version == "absent"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("packages", not absent, text, f"install {', '.join(absent)}: make setup")


def torch() -> Check:
    try:
        import torch as loaded
    except (ImportError, OSError) as error:
        return Check("torch", False, f"cannot be loaded: {error}", "make setup")
    gpus = [loaded.cuda.get_device_name(i) for i in range(loaded.cuda.device_count())]
    gloo = loaded.distributed.is_available() and loaded.distributed.is_gloo_available()
    seen = f"{', '.join(gpus) or 'no GPU'}; gloo {'there' if gloo else 'absent'}; {loaded.get_num_threads()} threads"
    return Check("torch", gloo, seen, "weights travel over torch.distributed: install a build with gloo")


def memory() -> Check:
    free = shutil.disk_usage("/dev/shm").free / 1e6 if Path("/dev/shm").is_dir() else 0.0
    fix = f"the publisher's snapshots lie there: give it {SHARED_MB:.0f} MB (docker: --shm-size)"
    return Check("shared memory", free >= SHARED_MB, f"{free:,.0f} MB free in /dev/shm, {os.cpu_count()} cores", fix)


def disk() -> Check:
    free = shutil.disk_usage(".").free / 1e9
    return Check("disk", free >= DISK_GB, f"{free:,.1f} GB free in {Path.cwd()}", f"free at least {DISK_GB:g} GB")


def log() -> Check:
    """The embedded log needs file locks, and SQLite with write-ahead logging, on this directory's file system."""
    try:
        with tempfile.TemporaryDirectory(prefix=".headrace-", dir=".") as directory:
            with (Path(directory) / "lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            db = sqlite3.connect(Path(directory) / "log.sqlite")
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            db.close()
    except (OSError, sqlite3.Error) as error:
        return Check("log", False, f"{Path.cwd()}: {error}", "use --dir on a local file system that can be written")
    return Check("log", mode == "wal", f"SQLite {sqlite3.sqlite_version}, journal {mode}", "use a local file system")


def ports() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 2.0):
            return Check("ports", True, "loopback answers")
    except OSError as error:
        return Check("ports", False, f"127.0.0.1: {error}", "daemons talk over loopback: bring lo up")


def sandbox() -> Check:
    """Only for rewarders that run a model's code: hostile programs are tried, which takes some seconds."""
    from broker.sandbox import SandboxError
    from broker.sandbox.command import place
    from broker.sandbox.selftest import self_test

    try:
        place()
    except SandboxError as error:
        return Check("sandbox", True, f"{error} (only rewards of code need it)")
    try:
        held = self_test()
    except SandboxError as error:
        return Check("sandbox", False, str(error), "give no rewards of code on this machine before that is mended")
    broken = [f"{h.name}: {h.why}" for h in held if h.why]
    text = "; ".join([f"{len(held) - len(broken)} of {len(held)} programs of the self-test held", *broken])
    return Check("sandbox", not broken, text, "give no rewards of code on this machine before that is mended")


def kafka() -> Check:
    """Only for runs on Kafka's log: that the broker can be fetched and run here."""
    found = [name for name in ("java", "mvn") if shutil.which(name)]
    text = f"{', '.join(found) or 'neither Java nor Maven'} (only `headrace kafka` needs them)"
    return Check("kafka", True, text)


CHECKS: tuple[Callable[[], Check], ...] = (python, system, packages, torch, memory, disk, log, ports, sandbox, kafka)
