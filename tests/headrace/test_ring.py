"""Whole runs of the small ring: to the end, stopped and resumed, redone after a crash, replayed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from learner.ring import exclusive_steps
from ringtools import SMALL, by_role, end_run, freeze, headrace, sets, start_run, verify, wait_for
from runlog import messages, results_of, said, sha256_of, steps_of
from runmetrics import check_metrics

from broker.errors import DecodeError, HeldByAnother
from broker.messages import Manifest, Prompt, decode, encode
from broker.run import Run
from headrace.reading.verify import verify as verify_log
from headrace.running.rundir import reopen
from monitoring.daemon import Stop


@pytest.mark.timeout(300)
def test_a_run_from_random_weights_to_its_report(tmp_path: Path) -> None:
    """One run, looked at from all sides: it is the slowest thing to make."""
    run = start_run(tmp_path, "--set", "stage.1.steps=60", "--set", "stage.1.eval_every=30")
    try:
        lock = tmp_path / "supervisor.lock"
        wait_for("the run's lock", lambda: lock.exists() and lock.read_text() == str(run.pid), 60)
        second = headrace("run", str(SMALL), "--dir", str(tmp_path))
        assert second.returncode == 3 and f"pid {run.pid}" in second.stderr, "one supervisor a run"
        wait_for("some steps", lambda: steps_of(tmp_path) >= 8 or run.poll() is not None, 120)
        check_metrics(tmp_path)
        assert run.wait(150) == 0, said(tmp_path)
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
    assert "://" not in page.split("<h2>Run file")[0] and page.count("<figure") >= 15
    assert "The log is sound." in page and "Words in the majority script" in page and "share of vowels" in page
    assert len(list((tmp_path / "plots").glob("*.png"))) == 5

    lineage = json.loads(headrace("trace", str(tmp_path), "5", "--json").stdout)
    assert len(lineage["groups"]) == 4 and all(len(g["samples"]) == 4 for g in lineage["groups"])
    assert lineage["groups"][0]["samples"][0]["votes"][0]["why"] == "share of vowels"
    assert headrace("trace", str(tmp_path), "99").returncode == 3
    assert any(
        t["topic"] == "small.steps" for t in json.loads(headrace("broker", "topics", str(tmp_path), "--json").stdout)
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


@pytest.mark.timeout(300)
def test_ctrl_c_stops_a_kill_is_redone_and_poison_is_buried(tmp_path: Path) -> None:
    steps = 40
    options = ("--set", f"stage.1.steps={steps}", "--set", "learner.checkpoint_every=1000")
    run = start_run(tmp_path, *options)
    try:
        wait_for("the third step", lambda: steps_of(tmp_path) >= 3 or run.poll() is not None, 120)
        by_role(run, "learner")[0].kill()  # no checkpoint since the first stage: every step is redone from the log
        seen = steps_of(tmp_path)
        poison(tmp_path)
        wait_for("more steps", lambda: steps_of(tmp_path) >= seen + 3 or run.poll() is not None, 120)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(30) == 130, said(tmp_path)
        assert not by_role(run, "learner")
        assert "the same command resumes" in (tmp_path / "run.out").read_text()
        before = steps_of(tmp_path)
        assert before < steps
        run = start_run(tmp_path, *options)
        assert run.wait(150) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["problems"]) == (steps, 4 * steps, 0, [])
    assert audit["dead_letters"] == 3, "two poison trajectories and a poison prompt"
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    replayed = headrace("replay", str(tmp_path), "--steps", f"2-{steps + 1}", "--out", str(tmp_path / "replay"))
    assert replayed.stdout.strip() == sha256_of(last), "killed, redone, stopped, resumed: the same weights bit for bit"


@pytest.mark.timeout(300)
def test_a_stage_that_has_reached_its_aim_ends_and_what_was_planned_is_trained(tmp_path: Path) -> None:
    """The planner is ahead of the trainer when the evaluation comes in: its manifest is taken before the stage closes."""
    file, home = small_copy(tmp_path), tmp_path / "run"
    (tmp_path / "sure.py").write_text("class Sure:\n    def __call__(self, sample):\n        return 1\n")
    text = file.read_text().replace('eval_rewarder = "vowels"', 'eval_rewarder = "sure"\nuntil_pass_at_1 = 0.9')
    text = text.replace("vowels = 1.0", "vowels = 1.0, sure = 0.1")
    file.write_text(text + '\n[rewarders.sure]\nuse = "sure.py:Sure"\n')
    settings = ("stage.1.steps=100000", "stage.1.eval_every=4", "learner.checkpoint_every=2")
    run = start_run(home, *sets(*settings), file=file)
    try:
        assert run.wait(200) == 0, said(home)
    finally:
        end_run(run)
    audit = verify(home)
    assert 4 <= audit["steps"] < 100, audit
    assert audit["trained"] == 4 * audit["steps"] and audit["outstanding"] == 0
    assert audit["evaluated"] % 8 == 0 and audit["evaluated"] >= 8 + 16, "and the stage behind it was run"


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
    monkeypatch.setattr("learner.opening.TAKEOVER_SECONDS", 0.0)
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
    finding = json.loads(headrace("doctor", str(tmp_path / "run"), "--json").stdout)["findings"][0]
    assert finding["what"].startswith("the run was given up") and "no licence" in finding["evidence"]


def test_open_gives_the_run_as_it_was_started(tmp_path: Path) -> None:
    from headrace.running.rundir import record

    record(Run.open(SMALL, ["run.seed=9"], tmp_path))
    again = reopen(tmp_path)
    assert again.table.seed == 9 and again.file.resolve("vowels.py").is_file() and again.directory == tmp_path


def small_copy(directory: Path) -> Path:
    """The small ring's run file and rewarder in ``directory``, to be edited."""
    directory.mkdir(parents=True, exist_ok=True)
    text = SMALL.read_text().replace("../../recipes", str(SMALL.parents[2] / "recipes"))
    (directory / "small.toml").write_text(text)
    (directory / "vowels.py").write_text((SMALL.parent / "vowels.py").read_text())
    return directory / "small.toml"


def mixes(directory: Path) -> list[set[str]]:
    """The names in the mix of each training prompt, in the order in which they were fed."""
    found = [m for m in messages(directory, "prompts") if isinstance(m, Prompt) and m.purpose == "train"]
    return [set(m.rewards) for m in sorted(found, key=lambda m: m.number)]


@pytest.mark.timeout(300)
def test_a_rewarder_is_plugged_into_a_run_by_editing_its_file(tmp_path: Path) -> None:
    file, home = small_copy(tmp_path), tmp_path / "run"
    run = start_run(home, "--set", "stage.1.steps=40", file=file)
    try:
        wait_for("the second step", lambda: steps_of(home) >= 2 or run.poll() is not None, 120)
        voter = by_role(run, "rewarders")[0].pid
        freeze(voter, home)  # without votes no more than the credited groups are fed, however long the edits take
        text = file.read_text()
        file.write_text(text.replace("vowels = 1.0", "vowels = 1.0, nobody = 1.0"))
        wait_for("a refusal", lambda: "nothing changed" in (home / "run.out").read_text(), 30)
        (tmp_path / "brevity.py").write_text(
            "class Brevity:\n    def __call__(self, sample):\n        return 1.0 / (1 + len(sample.text))\n"
        )
        plugged = text.replace("vowels = 1.0", "vowels = 1.0, brevity = 0.5")
        file.write_text(plugged + '\n[rewarders.brevity]\nuse = "brevity.py:Brevity"\n')
        wait_for("the edit", lambda: "edited, for the groups that are fed" in (home / "run.out").read_text(), 30)
        os.kill(voter, signal.SIGCONT)
        assert run.wait(200) == 0, said(home)
    finally:
        end_run(run)
    audit = verify(home)
    assert (audit["trained"], audit["outstanding"], audit["dropped"]) == (160, 0, 0)
    fed = mixes(home)
    first = fed.index({"vowels", "brevity"})
    assert 8 <= first < len(fed)
    assert all(mix == {"vowels"} for mix in fed[:first]) and all(mix == {"vowels", "brevity"} for mix in fed[first:])
    lineage = json.loads(headrace("trace", str(home), "40", "--json").stdout)
    assert {v["rewarder"] for v in lineage["groups"][0]["samples"][0]["votes"]} == {"vowels", "brevity"}


@pytest.mark.timeout(300)
def test_daemons_that_are_started_by_hand_find_each_other_in_any_order(tmp_path: Path) -> None:
    file, home = small_copy(tmp_path), tmp_path / "run"
    options = ["--dir", str(home), "--set", "stage.1.steps=6", "--set", "stage.0.steps=1"]
    orders = [["rewarder", str(file), *options, "--rewarder", "vowels"], ["actor", str(file), *options],
              ["actor", str(file), *options, "--name", "actor-1"], ["learner", str(file), *options]]  # fmt: skip
    daemons = []
    try:
        for order in orders:
            with (tmp_path / f"{len(daemons)}.out").open("wb") as out:
                daemons.append(subprocess.Popen([sys.executable, "-m", "headrace", *order], stdout=out, stderr=out))
            time.sleep(1.0)
        assert daemons[-1].wait(200) == 0, (tmp_path / "3.out").read_text()[-2000:]
        for daemon in daemons[:-1]:
            daemon.terminate()
            assert daemon.wait(10) == 0, "SIGTERM drains"
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
    run = Run.open(file, options[3:4], home)
    log = run.open_log()
    audit = verify_log(log, run.topics)
    log.close()
    assert not audit.problems and (audit.steps, audit.trained) == (6, 24)


@pytest.mark.timeout(300)
def test_a_full_disk_stops_the_run_with_a_clear_line_and_it_resumes(tmp_path: Path) -> None:
    """The log may not grow beyond one megabyte a topic; with room again the same command goes on."""
    options = (
        "--set",
        "stage.1.steps=12",
        "--set",
        "learner.group_size=16",
        "--set",
        "learner.sampling.max_new_tokens=100",
    )
    small = ("--set", f"broker.url=sqlite://{tmp_path / 'log'}?max_mb=1")
    run = start_run(tmp_path, *options, *small)
    try:
        assert run.wait(200) == 3, said(tmp_path)
        last = (tmp_path / "run.out").read_text().splitlines()[-1]
        assert "no space for" in last and "free some" in last, last
        finding = json.loads(headrace("doctor", str(tmp_path), "--json").stdout)["findings"][0]
        assert finding["what"] == "the disk was full" and "headrace broker trim" in finding["fix"], finding
        run = start_run(tmp_path, *options)
        assert run.wait(150) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"]) == (12, 48, 0)
