"""From a step to fresh samples, and how often the weights are in memory: ``python benchmarks/bench_weights.py MODEL [--rounds 5]``.

A learner's end, its publisher process, and an actor with the local engine that samples all the time, on gloo over the loopback. Seconds run
from the call that publishes to the end of the first sample, of four tokens, that the actor has drawn from the new version. Memory is what the three
hold by themselves or share (proportional set size, files not counted) beyond what they held before there were weights (imported, the tokenizer
loaded, a small model of the same kind run once), in sizes of the weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from actors.engine import Request
from actors.local.engine import LocalEngine
from broker.control.server import ControlServer
from broker.messages import Sampling
from broker.weights.client import WeightClient
from broker.weights.layout import places, specs_of
from broker.weights.publisher import WeightPublisher

LOOK_SECONDS = 0.05
COUNTED = ("Pss_Anon:", "Pss_Shmem:")


def held(pid: int) -> int:
    """Bytes of memory that a process holds, its part of what it shares included."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(COUNTED))


def settled(pid: int) -> int:
    """What a process holds once it has been imported whole: twice the same, a second apart."""
    last, now = -1, held(pid)
    while now != last or not now:
        time.sleep(1.0)
        last, now = now, held(pid)
    return now


def imported(model: str) -> Any:
    """What a process that works with ``model`` holds besides weights; to be kept while it is counted."""
    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers, config.vocab_size = 1, 64
    with torch.no_grad():
        AutoModelForCausalLM.from_config(config)(torch.zeros(1, 4, dtype=torch.long))
    return AutoTokenizer.from_pretrained(model)


def actor(model: str, endpoint: str) -> None:
    """Samples without end; says what it held before, and when the first sample of a version is there."""
    kept = imported(model)
    print("before", held(os.getpid()), flush=True)
    del kept
    engine = LocalEngine(model, slots=4, context=64)
    client = WeightClient("actor", engine.sinks[""])
    client.connect(endpoint)
    prompt, said = np.arange(5, 15, dtype=np.int32), -1
    while True:
        if engine.room() > 0:
            engine.submit(Request("g", (0,), prompt, Sampling(max_new_tokens=4)))
        for done in engine.poll(0.05):
            if done.versions[-1].version > said:
                said = done.versions[-1].version
                print("version", said, time.monotonic(), flush=True)


class Watch(threading.Thread):
    """The most that processes hold together while it looks."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.most, self.parts, self._over = pids, 0, dict.fromkeys(pids, 0), threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            now = {name: held(pid) for name, pid in self.pids.items()}
            self.most = max(self.most, sum(now.values()))
            self.parts = {name: max(self.parts[name], now[name]) for name in now}

    def end(self) -> None:
        self._over.set()
        self.join()


def main() -> None:
    if sys.argv[1] == "actor":
        actor(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = str(Path(options.model).resolve())
    _tokenizer = imported(model)
    before = {"learner": held(os.getpid())}
    control = ControlServer()
    command = [sys.executable, str(Path(__file__).resolve()), "actor", model, control.endpoint]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    before["actor"] = int(child.stdout.readline().split()[1])
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights = {name: p.detach().clone() for name, p in loaded.named_parameters()}  # of its own, as a learner's are
    del loaded
    size = places(specs_of(weights))[1]
    with tempfile.TemporaryDirectory() as home:
        publisher = WeightPublisher(control, Path(home), template=Path(model))
        publisher.warm(specs_of(weights))
        while not control.receivers() or not publisher.pid:
            time.sleep(0.05)
        before["publisher"] = settled(publisher.pid)
        rows: list[tuple[tuple[float, float, float], Watch]] = []
        try:
            for version in range(options.rounds + 1):  # the first one forms the lane, and makes room
                watch = Watch({"learner": os.getpid(), "publisher": publisher.pid, "actor": child.pid})
                watch.start()
                start = time.monotonic()
                publisher.publish(version, weights)
                blocked = time.monotonic() - start
                while not (line := child.stdout.readline()).startswith(f"version {version} "):
                    assert line, "the actor has ended"
                fresh = float(line.split()[2]) - start
                publisher.wait(120.0)
                watch.end()
                rows.append(((blocked, fresh, time.monotonic() - start), watch))
        finally:
            child.kill()
            child.wait()
            publisher.close()
            control.close()
    counted = rows[1:]
    print(f"{size / 1e6:.0f} MB of weights, {options.rounds} rounds: median (least) of seconds")
    for name, column in (("the caller is held up", 0), ("to fresh samples", 1), ("until it is on the disk", 2)):
        seconds = [row[0][column] for row in counted]
        print(f"| {name} | {median(seconds):.2f} ({min(seconds):.2f}) |")
    most = max((row[1] for row in counted), key=lambda watch: watch.most)
    total = (most.most - sum(before.values())) / size
    parts = ", ".join(f"{name} {(most.parts[name] - before[name]) / size:.2f}" for name in most.parts)
    print(f"| copies in memory, at most | {total:.2f} ({parts}) |")


if __name__ == "__main__":
    main()
