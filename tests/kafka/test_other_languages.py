"""Rewarders outside Python, built from examples/, vote in a real run on a real broker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from patience import HANG
from ringtools import SMALL, answer_of, end_run, sets, start_run, verify
from runlog import said

from broker.kafka.server import KafkaServer

pytestmark = pytest.mark.kafka
EXAMPLES = SMALL.parents[2] / "examples"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, built in a copy."""
    home = tmp_path_factory.mktemp("examples")
    for name in ("go-rewarder", "js-rewarder"):
        shutil.copytree(EXAMPLES / name, home / name, ignore=shutil.ignore_patterns("node_modules"))
    for command, where in (
        (["go", "build", "-o", "rewarder", "."], "go-rewarder"),
        (["npm", "ci", "--no-audit", "--no-fund", "--silent"], "js-rewarder"),
    ):
        done = subprocess.run(command, cwd=home / where, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_go_and_javascript_vote_in_a_run(kafka: KafkaServer, built: Path, tmp_path: Path) -> None:
    text = SMALL.read_text().replace("../../recipes", str(SMALL.parents[2] / "recipes"))
    text = text.replace("vowels = 1.0", "vowels = 1.0, brevity = 0.5, letters = 0.25")
    text += "\n[rewarders.brevity]\nexternal = true\n[rewarders.letters]\nexternal = true\n"
    (tmp_path / "vowels.py").write_text((SMALL.parent / "vowels.py").read_text())
    (tmp_path / "run.toml").write_text(text)
    home = tmp_path / "run"
    settings = ["run.name=babel", f"broker.url={kafka.url}", "stage.1.steps=10"]
    options = sets(*settings)
    init = answer_of("broker", "init", str(tmp_path / "run.toml"), *options, "--json")
    assert init.returncode == 0 and len(json.loads(init.stdout)) == 6, init.stderr
    arguments = [kafka.address, "babel"]
    others = [
        start([str(built / "go-rewarder" / "rewarder"), *arguments, "brevity"], tmp_path / "go.out"),
        start(["node", str(built / "js-rewarder" / "rewarder.mjs"), *arguments, "letters"], tmp_path / "js.out"),
    ]
    run = start_run(home, *options, file=tmp_path / "run.toml")
    try:
        assert run.wait(HANG) == 0, said(home) + (tmp_path / "js.out").read_text()[-2000:]
    finally:
        end_run(run)
        for other in others:
            other.terminate()
            other.wait(HANG)
    audit = verify(home)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["dead_letters"]) == (10, 40, 0, 0)
    lineage = json.loads(answer_of("trace", str(home), "5", "--json").stdout)
    votes = {v["rewarder"]: v for v in lineage["groups"][0]["samples"][0]["votes"]}
    assert votes.keys() == {"vowels", "brevity", "letters"}
    assert votes["letters"]["outcome"] == "value" and "vowels" in votes["letters"]["why"]


def start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    with out.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=dict(os.environ))
