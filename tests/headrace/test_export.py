"""``headrace export``: what a dashboard's own reader finds is what the log says, however often and however it was written."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from handmade import Handmade
from patience import HANG, until

from broker.messages import StepResult
from headrace.__main__ import main
from headrace.reading.redaction import tables_without_secrets

Curve = dict[int, float]  # value by step
Curves = dict[str, Curve]


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Handmade]:
    """Two steps, the second one redone; supervised steps before them; evaluations on the way."""
    made = Handmade(tmp_path / "log")
    made.run(tmp_path)
    for step in (10, 20):
        made.write(made.topics.steps, StepResult(0, 0, step, {"loss": 1.0 / step}, {"data": 0.25}, 1.0))
    made.whole()
    made.result(2, {"tokens_trained": 8.0, "entropy": math.nan, "ess_ratio": -math.inf, "huge": 1e300}, seconds=0.75)
    made.evaluation("held:1", 0.5)
    yield made
    made.close()


ROOTS = ("train", "phase_seconds", "sft", "eval")
EXPECTED: Curves = {
    "sft/stage_0/train/loss": {10: 0.1, 20: 0.05},
    "sft/stage_0/phase_seconds/data": {10: 0.25, 20: 0.25},
    "train/tokens_trained": {2: 8.0, 3: 12.0},
    "train/entropy": {2: math.nan},
    "train/ess_ratio": {2: -math.inf},
    "train/huge": {2: 1e300},
    "train/staleness_mean": {3: 0.5},
    "train/staleness_max": {3: 1.0},
    "phase_seconds/optimizer": {2: 0.75, 3: 0.5},
} | {
    f"eval/{name}/{what}": {1: 3.0 if what == "response_tokens" else value}
    for name, value in (("before", 0.25), ("after", 0.75), ("held", 0.5))
    for what in ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "cons_at_k", "response_tokens")
}


def tensorboard(directory: Path) -> tuple[Curves, dict[str, str]]:
    """The curves and texts that TensorBoard finds; no step of a curve may come twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    points = [(tag, s.step, s.value) for tag in reader.Tags()["scalars"] for s in reader.Scalars(tag)]
    tensors = {tag: reader.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in reader.Tags()["tensors"]}
    return gathered(points), {name.removesuffix("/text_summary"): text for name, text in tensors.items()}


def gathered(points: list[tuple[str, int, float]]) -> Curves:
    curves: Curves = {}
    for tag, step, value in points:
        assert step not in curves.setdefault(tag, {}), f"{tag} has step {step} twice"
        curves[tag][step] = value
    return curves


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes; every checksum is looked at."""
    assert data[:7] == b":W&B\xe1\xbe\x00"
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a header is never split: the rest of the block is empty
            at += 32768 - at % 32768
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + 7 : at + 7 + length]
        assert zlib.crc32(piece, zlib.crc32(bytes([kind]))) == checksum
        at, record = at + 7 + length, record + piece
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield record
            record = b""


def wandb(directory: Path) -> tuple[Curves, dict[str, str]]:
    """The curves and texts of the one offline run below ``directory``, decoded with W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    points, texts = [], {}
    for data in wandb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        points += [(k, row["step"], v) for k, v in row.items() if "step" in row and k.partition("/")[0] in ROOTS]
        texts |= {k: v for k, v in row.items() if k.startswith("text/")}
        texts |= {f"[{item.key}]": item.value_json for item in record.run.config.update}
    return gathered(points), texts


READERS: dict[str, Callable[[Path], tuple[Curves, dict[str, str]]]] = {"tensorboard": tensorboard, "wandb": wandb}
KINDS = pytest.mark.parametrize("kind", READERS)


def same(found: Curves, expected: Curves, kind: str) -> None:
    """Every value of every curve, as exactly as the format can hold it."""
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name].keys() == curve.keys(), name
        for step, value in curve.items():
            with np.errstate(over="ignore"):
                wanted = float(np.float32(value)) if kind == "tensorboard" else value
            assert found[name][step] == wanted or (math.isnan(wanted) and math.isnan(found[name][step])), (name, step)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.long
@KINDS
def test_every_value_is_read_back_and_a_second_export_is_the_same(hand: Handmade, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "export" / kind
    config = (tmp_path / "run.toml").read_text() + "# kafka://h:1?sasl_plain_password=secret&x=1\n"
    (tmp_path / "run.toml").write_text(config)
    for _ in range(2):
        assert main(["export", str(tmp_path), "--to", kind]) == 0
        curves, texts = READERS[kind](out)
        same(curves, EXPECTED, kind)
        lines = [line.removeprefix("    ") for line in texts["text/config"].splitlines()]
        assert lines == config.replace("secret", "***").splitlines()
        assert [p.name for p in (tmp_path / "export").iterdir() if not p.name.endswith(".lock")] == [kind]
    if kind == "wandb":
        assert json.loads(texts["[run]"]) == {"name": "small", "model": "m", "seed": 5}


@contextmanager
def follower(run: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A follower that has written all that was there; ended by SIGTERM, it says nothing more and its status is 0."""
    command = [sys.executable, "-m", "headrace", "export", str(run), "--to", kind, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and "and what comes" in process.stdout.readline()
            yield process
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=HANG)
            assert (process.returncode, out, err) == (0, "", "")
        finally:
            process.kill()


@pytest.mark.long
@KINDS
def test_a_follower_writes_what_comes_and_ends_cleanly(hand: Handmade, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "export" / kind
    with follower(tmp_path, kind):
        hand.result(4, {"tokens_trained": 16.0})
        if kind == "tensorboard":  # W&B's own service keeps what it is given for a quarter of a minute
            until(lambda: tensorboard(out)[0].get("train/tokens_trained", {}).get(4) == 16.0, "the new step")
            assert main(["export", str(tmp_path), "--to", kind]) == 3, "two exports at one place"
        hand.result(4, {"tokens_trained": 20.0})  # a redo
    expected = {**EXPECTED, "train/tokens_trained": {2: 8.0, 3: 12.0, 4: 20.0}}
    expected["phase_seconds/optimizer"] = {2: 0.75, 3: 0.5, 4: 0.5}
    same(READERS[kind](out)[0], expected, kind)
    with follower(tmp_path, kind):
        pass
    same(READERS[kind](out)[0], expected, kind)


def test_nothing_that_is_not_an_export_is_removed(
    hand: Handmade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert main(["export", str(tmp_path), "--to", "tensorboard", "--out", str(mine)]) == 0, "an empty one may be used"
    same(tensorboard(mine)[0], EXPECTED, "tensorboard")
    (mine / ".headrace-export").unlink()
    capsys.readouterr()
    for arguments in ([], ["--follow"]):
        assert main(["export", str(tmp_path), "--to", "tensorboard", "--out", str(mine), *arguments]) == 2
        assert f"--out {mine} holds what is no export's" in capsys.readouterr().err
    same(tensorboard(mine)[0], EXPECTED, "tensorboard")


@KINDS
def test_a_missing_package_is_named_and_nothing_is_lost(hand: Handmade, tmp_path: Path, kind: str) -> None:
    (tmp_path / "export" / kind).mkdir(parents=True)
    (tmp_path / "export" / kind / ".headrace-export").touch()
    code = (
        f"import sys; sys.modules[{kind!r}] = None\n"
        f"from headrace.__main__ import main\nsys.exit(main(['export', {str(tmp_path)!r}, '--to', {kind!r}, '--follow']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 2
    assert done.stderr == (
        f"headrace: --to {kind} needs {kind}, which is not installed: pip install 'headrace[exporters]'\n"
    )
    assert (tmp_path / "export" / kind / ".headrace-export").exists()


def test_a_run_without_steps_gives_empty_curves(tmp_path: Path) -> None:
    made = Handmade(tmp_path / "log")
    made.run(tmp_path)
    assert main(["export", str(tmp_path), "--to", "tensorboard"]) == 0
    curves, texts = tensorboard(tmp_path / "export" / "tensorboard")
    assert curves == {} and 'name = "small"' in texts["text/config"]
    made.close()


def test_passwords_of_any_form_stay_at_home() -> None:
    tables = {
        "broker": {"url": "kafka://me:hunter2@h:1?sasl_plain_password=hunter3&x=1"},
        "rewarders": {"judge": {"api_secret": 42, "hosts": ["http://u:hunter4@h"], "budget": 7}},
    }
    assert tables_without_secrets(tables) == {
        "broker": {"url": "kafka://me:***@h:1?sasl_plain_password=***&x=1"},
        "rewarders": {"judge": {"api_secret": "***", "hosts": ["http://u:***@h"], "budget": 7}},
    }


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
(PLUG_IN,) = re.findall(r"^```python file=lines.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_an_exporter_from_a_file_beside_the_run_file(
    hand: Handmade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.py").write_text(PLUG_IN)
    command = ["export", str(tmp_path), "--to", "lines.py:Lines"]
    assert main([*command, "--with", "ending=txt"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "export" / "lines" / "small.txt").read_text().splitlines()]
    assert {row["step"] for row in rows if "train/tokens_trained" in row} == {2, 3}
    capsys.readouterr()
    for wrong, word in {
        ("--with", "endnig=x"): "unknown option 'endnig' of lines.py:Lines; did you mean 'ending'?",
        ("--with", "ending"): "--with 'ending': use NAME=VALUE",
        ("--to", "lines.py:Line"): "did you mean 'Lines'?",
        ("--to", "lnes.py:Lines"): "did you mean 'lines.py'?",
        ("--to", "lines.py:json"): "lines.py:json",
        ("--to", "tensorbord"): "did you mean 'tensorboard'?",
    }.items():
        assert main([*command, *wrong]) == 2
        assert word in capsys.readouterr().err, wrong


@pytest.mark.long
def test_a_follower_goes_on_where_an_export_was_closed(hand: Handmade, tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text(PLUG_IN)
    out = tmp_path / "export" / "lines" / "small.jsonl"
    kind = "lines.py:Lines"
    assert main(["export", str(tmp_path), "--to", kind]) == 0
    before = out.read_text()
    with follower(tmp_path, kind):
        hand.result(4, {"tokens_trained": 16.0})
    assert out.read_text().startswith(before) and len(out.read_text().splitlines()) == len(before.splitlines()) + 1
    with follower(tmp_path, kind):
        hand.result(5, {"tokens_trained": 18.0})
        hand.result(4, {"tokens_trained": 20.0})  # a redo of what was written: all is written anew
        hand.result(6, {"tokens_trained": 22.0})
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    trained = {row["step"]: row["train/tokens_trained"] for row in rows if "train/tokens_trained" in row}
    assert trained == {2: 8.0, 3: 12.0, 4: 20.0, 5: 18.0, 6: 22.0}
    assert sum("train/tokens_trained" in row for row in rows) == 5, "no step twice"
    (tmp_path / "export" / "lines" / ".headrace-export").write_text("")  # as a kill leaves it
    with follower(tmp_path, kind):
        pass
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(map(str, again)) == sorted(map(str, rows)), "nothing twice"
