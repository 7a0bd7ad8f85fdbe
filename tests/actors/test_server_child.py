"""A launched server's whole process group ends with its actor, however early and however it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from patience import until

SERVER = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']).pid, flush=True); time.sleep(3600)"
ACTOR = (
    "import os, subprocess, sys, time; "
    "server = subprocess.Popen([sys.executable, '-m', 'actors.sglang.child', str(os.getpid()), sys.executable, '-c', sys.argv[1]], "
    "start_new_session=True); print(server.pid, flush=True); time.sleep(3600)"
)


@pytest.mark.parametrize("killed", ["actor", "server"])
def test_nothing_is_left_of_a_server(killed: str) -> None:
    actor = subprocess.Popen([sys.executable, "-c", ACTOR, SERVER], stdout=subprocess.PIPE, text=True)
    assert actor.stdout is not None
    server = psutil.Process(int(actor.stdout.readline()))
    detokenizer = psutil.Process(int(actor.stdout.readline()))  # it asks nobody to end it
    try:
        os.kill(actor.pid if killed == "actor" else server.pid, signal.SIGKILL)
        until(lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in (server, detokenizer)))
    finally:
        actor.kill()
        actor.wait()
        actor.stdout.close()
