"""A publisher process that was forked before it is needed: it does the work of one that is started, and is needed by nobody."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from patience import HANG, until
from ringtools import gone

PREPARED = """
import os, signal, sys
from broker.weights import spare
from broker.weights.worker import PublisherProcess
spare.prepare()
pid = int(os.environ[spare.SPARE].split()[2])
"""
ORDERED = """
if sys.argv[1] == "killed":
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
file = os.memfd_create("snapshot")
os.truncate(file, 64)
made = PublisherProcess("cpu", 64, [file], 30.0, lambda: "", begin=spare.begin)
pids, sums = [pid], []
for _ in range(2):
    sums.append(made.order("checksum", buffer=0, size=64)["checksum"])
    pids.append(made.pid)
    command = open(f"/proc/{made.pid}/cmdline").read()
    assert "broker.weights.process" in command, command
    made.kill()
print(*pids, len(set(sums)))
"""


@pytest.mark.long
@pytest.mark.parametrize("fate", ["lives", "killed"])
def test_the_first_publisher_process_is_the_spare_if_it_lives_and_later_ones_are_new(fate: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + ORDERED, fate], capture_output=True, text=True, check=True, timeout=HANG
    )
    spare, first, second, sums = map(int, done.stdout.split())
    assert (first == spare) == (fate == "lives")
    assert second not in (spare, first) and sums == 1


def test_a_spare_ends_with_its_owner_and_is_no_childs_of_it() -> None:
    code = PREPARED + (
        "child = os.fork()\n"
        "if not child:\n    assert spare._woken([], []) is None\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print(pid, flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        spare = psutil.Process(int(owner.stdout.readline()))
        until(lambda: "broker.weights.spare" in spare.cmdline(), "the spare has its name")
        owner.kill()
    until(lambda: gone(spare.pid), "the spare has ended")
