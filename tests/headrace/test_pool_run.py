"""Whole runs of the small ring with a learner of two ranks: a rank is killed, the run is stopped and resumed, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from patience import HANG, until
from ringtools import SMALL, answer_of, by_role, end_run, gone, processes, start_run, verify
from runlog import results_of, said
from safetensors.torch import load_file

from learner.training.checkpoint import Checkpoints
from monitoring.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.slow]
STEPS = 16


def taken(directory: Path) -> list[int]:
    """The steps that the learner has taken, redone ones again."""
    return [result.step for result in results_of(directory)]


def ranks(run: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    """The processes of the pool by rank."""
    found = {}
    for process in by_role(run, "learner"):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if "RANK" in environment and process.status() != psutil.STATUS_ZOMBIE:
            found[int(environment["RANK"])] = process
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def test_a_rank_is_killed_the_run_is_stopped_and_nothing_is_lost(tmp_path: Path) -> None:
    options = ("--set", f"stage.1.steps={STEPS}", "--set", "learner.processes=2", "--set", "learner.checkpoint_every=4")
    run = start_run(tmp_path, *options)
    try:
        until(lambda: taken(tmp_path) or run.poll() is not None, "the first step")
        pool = ranks(run)
        assert pool.keys() == {0, 1}, said(tmp_path)
        heard = {c.laddr.ip for p in processes(run) for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}, "a pool on one machine listens on the loopback alone"
        opened = [file.path for file in pool[1].open_files() if "/log/" in file.path]
        assert not opened, "no rank but 0 opens the log"
        until(lambda: len(taken(tmp_path)) >= 6 or run.poll() is not None, "the sixth step")
        pool[1].kill()
        until(lambda: gone(pool[0].pid), "the end of the others, before the time-out of a collective")
        before = taken(tmp_path)
        kept = Checkpoints(tmp_path / "checkpoints").newest()
        assert kept is not None
        until(lambda: len(taken(tmp_path)) > len(before) or run.poll() is not None, "steps of a new pool")
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(HANG) == 130, said(tmp_path)
        assert not ranks(run)
        done = taken(tmp_path)
        assert done == [*before, *range(kept[1].version + 1, done[-1] + 1)], (
            "steps behind the checkpoint are redone, no others"
        )
        newest = Checkpoints(tmp_path / "checkpoints").newest()
        assert newest is not None and newest[1].version == done[-1], "it was stopped cleanly"
        run = start_run(tmp_path, *options)
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["problems"]) == (STEPS, 4 * STEPS, 0, [])
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    replayed = answer_of("replay", str(tmp_path), "--steps", f"2-{STEPS + 1}", "--out", str(tmp_path / "replay"))
    assert replayed.returncode == 0, replayed.stderr
    alone = weights(tmp_path / "replay" / f"replay-2-{STEPS + 1}")
    for name, tensor in weights(last).items():
        assert torch.allclose(alone[name], tensor, atol=1e-4), f"{name}: one process takes the same steps"


SUPERVISED = """
[run]
name = "small"
model = "{model}"
[data]
corpus = {{ use = "learner.data.sums:SumsCorpus" }}
[[stage]]
kind = "sft"
init = "random"
data = "corpus"
steps = 60
documents_per_step = 4
checkpoint_every = 5
"""


def start_node(directory: Path, number: int, port: int) -> subprocess.Popen[bytes]:
    """One of two torchruns that make one pool, as on two machines."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}",
        "--master-addr=127.0.0.1", f"--master-port={port}", "--max-restarts=2",
        "-m", "headrace", "learner", str(directory / "supervised.toml"), "--dir", str(directory),
    ]  # fmt: skip
    with (directory / "run.out").open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def test_two_nodes_by_hand_start_the_pool_again_where_its_newest_checkpoint_is(tmp_path: Path) -> None:
    """torchrun's agents serve the rendezvous, and their --max-restarts takes the supervisor's place."""
    (tmp_path / "supervised.toml").write_text(SUPERVISED.format(model=SMALL.parents[2] / "recipes" / "tiny_model"))
    port = free_ports(1)[0]
    nodes = [start_node(tmp_path, number, port) for number in range(2)]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    try:
        until(lambda: checkpoints.newest() or nodes[0].poll() is not None, "a checkpoint")
        ranks(nodes[1])[1].kill()
        assert [node.wait(HANG) for node in nodes] == [0, 0], said(tmp_path)
    finally:
        for node in nodes:
            end_run(node)
    text = (tmp_path / "run.out").read_text()
    assert text.count("resuming from checkpoint") == 1 and "finished" in text
    newest = checkpoints.newest()
    assert newest is not None and newest[1].closed
    assert len(list((tmp_path / "checkpoints").glob("stage-0-*/model-*.safetensors"))) == 2
    assert not verify(tmp_path)["problems"], "the directory is all that commands need"
