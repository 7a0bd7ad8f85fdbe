"""A whole run of version 0.1.0 (supervised, evaluated, trained by reinforcement) is read, audited, drawn and replayed by every later version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from ringtools import answer_of, old_run

from broker.messages import StepResult, decode, encode
from headrace.reading.records import scan
from headrace.running.rundir import reopen

OLD = Path(__file__).resolve().parent / "fixtures" / "v1"
VECTORS = Path(__file__).resolve().parent / "protocol" / "v1"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return old_run(tmp_path)


def golden(name: str) -> Any:
    return json.loads((OLD / "golden" / name).read_text())


def contains(new: Any, recorded: Any, where: str = "") -> None:
    """Everything that was ``recorded`` is there, unchanged; there may be more."""
    if isinstance(recorded, Mapping):
        for key, value in recorded.items():
            assert key in new, f"{where}.{key} is gone"
            contains(new[key], value, f"{where}.{key}")
    elif isinstance(recorded, list):
        assert len(new) == len(recorded), where
        for index, (a, b) in enumerate(zip(new, recorded, strict=True)):
            contains(a, b, f"{where}[{index}]")
    elif isinstance(recorded, float):
        assert new == pytest.approx(recorded, abs=1e-6), where
    else:
        assert new == recorded, where


def test_it_is_audited_and_traced_as_it_was_then(old: Path) -> None:
    contains(json.loads(answer_of("verify", str(old), "--json").stdout), golden("verify.json"))
    contains(json.loads(answer_of("trace", str(old), "4", "--json").stdout), golden("trace-4.json"))


def test_it_is_drawn_and_exported(old: Path) -> None:
    done = answer_of("timeline", str(old), "--steps", "2-7")
    assert done.returncode == 0, done.stderr
    made = json.loads((old / "timeline.json").read_text())
    names = sorted(e["name"] for e in made["traceEvents"])
    assert {e["name"] for e in golden("timeline.json")["traceEvents"]} <= set(names)
    done = answer_of("export", str(old), "--to", "tensorboard")
    assert done.returncode == 0 and "12 points" in done.stdout, done.stderr


def test_its_report_says_the_same(old: Path) -> None:
    done = answer_of("report", str(old))
    assert done.returncode == 0, done.stderr
    recorded = {k: v for k, v in golden("summary.json").items() if k not in ("versions", "wall_seconds")}
    contains(json.loads((old / "summary.json").read_text()), recorded)
    assert (old / "report.html").stat().st_size > 10_000


def test_replay_gives_the_recorded_metrics_and_weights(old: Path, tmp_path: Path) -> None:
    from learner.model.load import load_model
    from learner.replay import replay
    from learner.training.trainer import state_sha256

    run = reopen(old)
    given: list[StepResult] = []
    sha256 = replay(run, 2, 7, tmp_path / "again", on_step=given.append)
    assert sha256 == state_sha256(load_model(str(old / "checkpoints" / "step-00000007-3-00000006")))
    log = run.open_log()
    recorded = {m.step: m for _, m in scan(log, run.topics.steps) if isinstance(m, StepResult) and m.stage == 2}
    log.close()
    assert [r.step for r in given] == sorted(recorded) == list(range(2, 8))
    for result in given:
        contains(result.metrics, {k: v for k, v in recorded[result.step].metrics.items() if not measured(k)})


def measured(metric: str) -> bool:
    """Whether a metric is of the machine that took the step, not of the step."""
    return metric.endswith(("_bytes", "_seconds")) or metric.startswith(("memory", "published", "outstanding"))


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.msgpack")), ids=lambda path: path.stem)
def test_a_vector_of_version_1_is_read_for_ever(path: Path) -> None:
    data = path.read_bytes()
    message = decode(data)
    again = msgpack.unpackb(encode(message))
    assert again == msgpack.unpackb(data), "and is written as it was, as long as nothing newer is in it"
