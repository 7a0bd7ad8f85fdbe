"""What only processes prove of a whole run: one golden run that is looked at from all sides, daemons by hand, a crash loop, a full disk.

What a learner does when it is killed, redone, poisoned, asked or set aside is proven on one thread in tests/learner/test_ring.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG, until
from ringtools import SMALL, answer_of, by_role, end_run, freeze, headrace, small_copy, start_run, verify
from runlog import messages, results_of, said, sha256_of, steps_of
from runmetrics import check_metrics

from broker.errors import HeldByAnother, LogFull
from broker.messages import Evaluation, Prompt
from broker.open import open_log
from broker.run import Run
from headrace.reading.verify import verify as verify_log
from headrace.running.rundir import reopen
from learner.opening import exclusive_steps
from monitoring.daemon import Stop

pytestmark = pytest.mark.processes
MORE = 12  # steps behind the stop


def test_a_run_is_watched_edited_asked_stopped_resumed_and_told(tmp_path: Path) -> None:
    """One run, looked at from all sides: it is the slowest thing to make."""
    file, home = small_copy(tmp_path), tmp_path / "run"
    options = ("--set", "learner.optimizer.schedule=constant", "--set", "stage.1.eval_every=6")
    run = start_run(home, *options, "--set", "stage.1.steps=100000", file=file)
    try:
        lock = home / "supervisor.lock"
        until(lambda: lock.exists() and lock.read_text() == str(run.pid), "the run's lock")
        second = headrace("run", str(file), "--dir", str(home))
        assert second.returncode == 3 and f"pid {run.pid}" in second.stderr, "one supervisor a run"
        until(lambda: steps_of(home) >= 8 or run.poll() is not None, "some steps")
        check_metrics(home)
        plug_in(run, file, home)
        asked = answer_of(
            "eval", str(home), "--rewarder", "vowels", "--questions", "6", "--k", "3", "--json", "--name", "now"
        )
        assert asked.returncode == 0, asked.stderr
        found = json.loads(asked.stdout)
        assert (found["questions"], found["k"], found["name"]) == (6, 3, "now")
        assert answer_of("eval", str(home), "--rewarder", "vowels", "--name", "now").returncode == 2, (
            "a name is given once"
        )
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(HANG) == 130, said(home)
        assert not by_role(run, "learner") and "the same command resumes" in (home / "run.out").read_text()
        steps = steps_of(home) + MORE
        run = start_run(home, *options, "--set", f"stage.1.steps={steps}", file=file)
        assert run.wait(HANG) == 0, said(home)
    finally:
        end_run(run)
    check_log(home, steps)
    check_told(home, steps)
    check_lineage(home, steps)
    check_checkpoint(home, steps, tmp_path)


def plug_in(run: subprocess.Popen[bytes], file: Path, home: Path) -> None:
    """Edit the run file while the run goes on: a mistake changes nothing, a rewarder is started and votes on what is fed from then on."""
    voter = by_role(run, "rewarders")[0].pid
    freeze(voter, home)  # without votes no more than the credited groups are fed, however long the edits take
    text = file.read_text()
    file.write_text(text.replace("vowels = 1.0", "vowels = 1.0, nobody = 1.0"))
    until(lambda: "nothing changed" in (home / "run.out").read_text(), "a refusal")
    source = "class Brevity:\n    def __call__(self, sample):\n        return 1.0 / (1 + len(sample.text))\n"
    file.with_name("brevity.py").write_text(source)
    plugged = text.replace("vowels = 1.0", "vowels = 1.0, brevity = 0.5")
    file.write_text(plugged + '\n[rewarders.brevity]\nuse = "brevity.py:Brevity"\n')
    until(lambda: "edited, for the groups that are fed" in (home / "run.out").read_text(), "the edit")
    os.kill(voter, signal.SIGCONT)


def check_log(home: Path, steps: int) -> None:
    audit = verify(home)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["dropped"]) == (steps, 4 * steps, 0, 0)
    made = [m for m in messages(home, "steps") if isinstance(m, Evaluation)]
    assert (audit["evaluated"], audit["dead_lettered"]) == (sum(m.questions for m in made), 0)
    assert {m.name for m in made} == {"now", "after", *(f"rl:{n}" for n in range(6, steps + 1, 6))}
    fed = [m for m in messages(home, "prompts") if isinstance(m, Prompt) and m.purpose == "train"]
    mixes = [set(m.rewards) for m in sorted(fed, key=lambda m: m.number)]
    first = mixes.index({"vowels", "brevity"})
    assert 8 <= first < len(mixes), "a rewarder that was plugged in votes from then on"
    assert all(m == {"vowels"} for m in mixes[:first]) and all(m == {"vowels", "brevity"} for m in mixes[first:])
    results = {m.step: m for m in results_of(home)}
    assert len(results) >= steps and all(
        r.metrics["mismatch"] < 1e-4 for r in results.values() if "mismatch" in r.metrics
    )


def check_told(home: Path, steps: int) -> None:
    out = (home / "run.out").read_text()
    assert "base (sft) -> rl (rl) -> after (evaluate)" in out and "held-out after" in out
    summary = json.loads((home / "summary.json").read_text())
    assert (
        summary["steps"] == steps and summary["groups"]["trained"] == 4 * steps and summary["tokens"]["generated"] > 0
    )
    assert summary["staleness"]["max"] <= 2 and summary["pass_at_1"]["questions"] == 16
    assert {"wait_data", "forward_backward", "optimizer", "publish"} <= summary["phases"].keys()
    page = (home / "report.html").read_text()
    assert "://" not in page.split("<h2>Run file")[0] and page.count("<figure") >= 15
    assert "The log is sound." in page and "Words in the majority script" in page and "share of vowels" in page
    assert len(list((home / "plots").glob("*.png"))) == 5


def check_lineage(home: Path, steps: int) -> None:
    lineage = json.loads(answer_of("trace", str(home), str(steps), "--json").stdout)
    assert len(lineage["groups"]) == 4 and all(len(g["samples"]) == 4 for g in lineage["groups"])
    votes = lineage["groups"][0]["samples"][0]["votes"]
    assert {v["rewarder"] for v in votes} == {"vowels", "brevity"}
    assert answer_of("trace", str(home), "99999").returncode == 3
    topics = json.loads(answer_of("broker", "topics", str(home), "--json").stdout)
    assert any(t["topic"] == "small.steps" for t in topics)


def check_checkpoint(home: Path, steps: int, directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    last = sorted((home / "checkpoints").glob("step-*"))[-1]
    assert AutoModelForCausalLM.from_pretrained(last).config.vocab_size == 320
    replayed = answer_of("replay", str(home), "--steps", f"2-{steps + 1}", "--out", str(directory / "replay"))
    assert replayed.stdout == sha256_of(last) + "\n", replayed.stderr or "replay gives what the run gave, bit for bit"


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
    (tmp_path / "bad.py").write_text(
        "class Bad:\n    def __init__(self):\n        raise RuntimeError('no licence')\n    def __call__(self, sample): ...\n"
    )
    file = small_copy(tmp_path)
    file.write_text(file.read_text().replace("vowels.py:Vowels", "bad.py:Bad"))
    run = start_run(tmp_path / "run", "--set", "stage.0.steps=1", file=file)
    try:
        assert run.wait(HANG) == 3
    finally:
        end_run(run)
    assert "no licence" in (tmp_path / "run" / "run.out").read_text().splitlines()[-1]
    finding = json.loads(answer_of("doctor", str(tmp_path / "run"), "--json").stdout)["findings"][0]
    assert finding["what"].startswith("the run was given up") and "no licence" in finding["evidence"]


def test_open_gives_the_run_as_it_was_started(tmp_path: Path) -> None:
    from headrace.running.rundir import record

    record(Run.open(SMALL, ["run.seed=9"], tmp_path))
    again = reopen(tmp_path)
    assert again.table.seed == 9 and again.file.resolve("vowels.py").is_file() and again.directory == tmp_path


@pytest.mark.slow
def test_daemons_that_are_started_by_hand_find_each_other_in_any_order(tmp_path: Path) -> None:
    file, home = small_copy(tmp_path), tmp_path / "run"
    options = ["--dir", str(home), "--set", "stage.1.steps=6", "--set", "stage.0.steps=1"]
    orders = [["rewarder", str(file), *options, "--rewarder", "vowels"], ["actor", str(file), *options],
              ["actor", str(file), *options, "--name", "actor-1"], ["learner", str(file), *options]]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for order in orders:
            if len(daemons) == len(orders) - 1:  # the others are there, and wait for it
                until(lambda: len(list((home / "daemons").glob("*.json"))) == 3, "the others")
            with (tmp_path / f"{len(daemons)}.out").open("wb") as out:
                daemons.append(subprocess.Popen([sys.executable, "-m", "headrace", *order], stdout=out, stderr=out))
        assert daemons[-1].wait(HANG) == 0, (tmp_path / "3.out").read_text()[-2000:]
        for daemon in daemons[:-1]:
            daemon.terminate()
            assert daemon.wait(HANG) == 0, "SIGTERM drains"
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
    run = Run.open(file, options[3:4], home)
    log = run.open_log()
    audit = verify_log(log, run.topics)
    log.close()
    assert not audit.problems and (audit.steps, audit.trained) == (6, 24)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_a_clear_line_and_the_doctor_names_it(tmp_path: Path) -> None:
    """The log may not grow beyond one megabyte a topic, and that of the votes is full before the run begins."""
    url = f"sqlite://{tmp_path / 'log'}?max_mb=1"
    run_of = Run.open(SMALL, [f"broker.url={url}"], tmp_path)
    log = open_log(url)
    log.create(run_of.topics.specs())
    producer = log.producer()
    with pytest.raises(LogFull):
        while True:
            producer.send(run_of.topics.rewards, b"nobody", bytes(8192))
            producer.flush()
    log.close()
    run = start_run(tmp_path, "--set", f"broker.url={url}", "--set", "stage.0.steps=1")
    try:
        assert run.wait(HANG) == 3, said(tmp_path)
    finally:
        end_run(run)
    last = (tmp_path / "run.out").read_text().splitlines()[-1]
    assert "no space for" in last and "free some" in last, last
    finding = json.loads(answer_of("doctor", str(tmp_path), "--json").stdout)["findings"][0]
    assert finding["what"] == "the disk was full" and "headrace broker trim" in finding["fix"], finding
