"""Whole runs of the small ring: to the end, stopped and resumed, redone after a crash, replayed, refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from ringtools import SMALL, by_role, end_run, headrace, start_run, verify, wait_for

from broker.errors import DecodeError, HeldByAnother
from broker.messages import Manifest, StepResult, decode, encode
from broker.run import Run
from headrace.records import scan
from headrace.rundir import reopen
from learner.ring import exclusive_steps
from monitoring.daemon import Stop


def manifests(directory: Path) -> list[Manifest]:
    run = reopen(directory)
    log = run.open_log()
    found = [m for _, m in scan(log, run.topics.steps) if isinstance(m, Manifest)]
    log.close()
    return found


def steps_of(directory: Path) -> int:
    if not (directory / "run.toml").exists() or not (directory / "log" / "small.steps.sqlite").exists():
        return 0
    return sum(m.kind == "step" for m in manifests(directory))


@pytest.mark.timeout(300)
def test_a_run_from_random_weights_to_its_report(tmp_path: Path) -> None:
    """One run, looked at from all sides: it is the slowest thing to make."""
    run = start_run(tmp_path, "--set", "stage.1.steps=60", "--set", "stage.1.eval_every=30")
    try:
        wait_for("the second step", lambda: steps_of(tmp_path) >= 2 or run.poll() is not None, 120)
        second = headrace("run", str(SMALL), "--dir", str(tmp_path))
        assert second.returncode == 3 and f"pid {run.pid}" in second.stderr, "one supervisor a run"
        assert run.wait(150) == 0, (tmp_path / "run.out").read_text()[-3000:]
    finally:
        end_run(run)

    out = (tmp_path / "run.out").read_text()
    assert "base (sft) -> rl (rl) -> after (evaluate)" in out and "held-out after" in out
    audit = verify(tmp_path)
    assert (audit["trained"], audit["outstanding"], audit["dead_lettered"]) == (240, 0, 0)
    assert audit["evaluated"] == 8 + 8 + 16

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 60 and summary["groups"]["trained"] == 240 and summary["tokens"]["generated"] > 0
    assert summary["staleness"]["max"] <= 2 and summary["pass_at_1"]["questions"] == 16
    assert {"wait_data", "forward_backward", "optimizer", "publish"} <= summary["phases"].keys()
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.split("<h2>Run file")[0] and page.count("data:image/png") == 5
    assert len(list((tmp_path / "plots").glob("*.png"))) == 5

    lineage = json.loads(headrace("trace", str(tmp_path), "5", "--json").stdout)
    assert len(lineage["groups"]) == 4 and all(len(g["samples"]) == 4 for g in lineage["groups"])
    assert lineage["groups"][0]["samples"][0]["votes"][0]["why"] == "share of vowels"
    assert headrace("trace", str(tmp_path), "99").returncode == 3
    assert any(
        t["topic"] == "small.steps" for t in json.loads(headrace("broker", "--json", "topics", str(tmp_path)).stdout)
    )

    from transformers import AutoModelForCausalLM

    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    assert AutoModelForCausalLM.from_pretrained(last).config.vocab_size == 320
    results = {m.step: m for m in results_of(tmp_path)}
    assert len(results) >= 60 and all(r.metrics["mismatch"] < 1e-4 for r in results.values() if "mismatch" in r.metrics)

    first = headrace("replay", str(tmp_path), "--steps", "2-61", "--out", str(tmp_path / "replay"))
    again = headrace("replay", str(tmp_path), "--steps", "2-61", "--out", str(tmp_path / "again"))
    other = headrace(
        "replay", str(tmp_path), "--steps", "2-61", "--out", str(tmp_path / "other"), "--set", "learner.objective=grpo"
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout == sha256_of(last) + "\n", "replay gives what the run gave, bit for bit"
    assert other.stdout != first.stdout


def results_of(directory: Path) -> list[StepResult]:
    run = reopen(directory)
    log = run.open_log()
    found = [m for _, m in scan(log, run.topics.steps) if isinstance(m, StepResult) and m.stage == 1]
    log.close()
    return found


def sha256_of(checkpoint: Path) -> str:
    from learner.model import load_model
    from learner.trainer import state_sha256

    return state_sha256(load_model(str(checkpoint)))


@pytest.mark.timeout(300)
def test_ctrl_c_stops_a_kill_is_redone_and_poison_is_buried(tmp_path: Path) -> None:
    options = ("--set", "stage.1.steps=14", "--set", "learner.checkpoint_every=1000")
    run = start_run(tmp_path, *options)
    try:
        wait_for("the third step", lambda: steps_of(tmp_path) >= 3, 120)
        by_role(run, "learner")[0].kill()  # no checkpoint since the first stage: every step is redone from the log
        seen = steps_of(tmp_path)
        poison(tmp_path)
        wait_for("more steps", lambda: steps_of(tmp_path) >= seen + 3, 120)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(30) == 130, (tmp_path / "run.out").read_text()[-3000:]
        assert not by_role(run, "learner")
        assert "the same command resumes" in (tmp_path / "run.out").read_text()
        before = steps_of(tmp_path)
        assert before < 14
        run = start_run(tmp_path, *options)
        assert run.wait(150) == 0, (tmp_path / "run.out").read_text()[-3000:]
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["problems"]) == (14, 56, 0, [])
    assert audit["dead_letters"] == 3, "two poison trajectories and a poison prompt"
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    replayed = headrace("replay", str(tmp_path), "--steps", "2-15", "--out", str(tmp_path / "replay"))
    assert replayed.stdout.strip() == sha256_of(last), "killed, redone, stopped, resumed: the same weights bit for bit"


def poison(directory: Path) -> None:
    """What another client might write into the run's topics."""
    run = reopen(directory)
    log = run.open_log()
    producer = log.producer()
    producer.send(run.topics.prompts, b"nobody", b"\xc1 rubbish")
    producer.send(run.topics.trajectories, b"nobody", b"\xc1 rubbish")
    producer.send(run.topics.rewards, b"nobody", encode(Manifest(0, 0, "close")))
    producer.flush()
    producer.close()
    with pytest.raises(DecodeError):
        decode(b"\xc1 rubbish")
    log.close()


def test_a_second_learner_is_refused_and_told_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(SMALL, [], tmp_path)
    log = run.open_log()
    first = exclusive_steps(log, run, "the first learner", Stop())
    monkeypatch.setattr("learner.ring.TAKEOVER_SECONDS", 0.0)
    with pytest.raises(HeldByAnother, match="the first learner"):
        exclusive_steps(log, run, "the second learner", Stop())
    first.close()
    exclusive_steps(log, run, "the second learner", Stop()).close()
    log.close()


def test_a_crash_loop_stops_the_run_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("class Bad:\n    def __init__(self):\n        raise RuntimeError('no licence')\n")
    text = (
        SMALL.read_text()
        .replace("vowels.py:Vowels", "bad.py:Bad")
        .replace("../../recipes", str(SMALL.parents[2] / "recipes"))
    )
    (tmp_path / "run.toml").write_text(text)
    run = start_run(tmp_path / "run", "--set", "stage.0.steps=1", file=tmp_path / "run.toml")
    try:
        assert run.wait(110) == 3
    finally:
        end_run(run)
    assert "no licence" in (tmp_path / "run" / "run.out").read_text().splitlines()[-1]


def test_open_gives_the_run_as_it_was_started(tmp_path: Path) -> None:
    from headrace.rundir import record

    record(Run.open(SMALL, ["run.seed=9"], tmp_path))
    again = reopen(tmp_path)
    assert again.table.seed == 9 and again.file.resolve("vowels.py").is_file() and again.directory == tmp_path
