"""The run files of the recipe and its page: accepted by the checks before a run, also where neither weights nor data are on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG

from broker.runfile import RunFile
from headrace.preflight.checks import CHECKS
from headrace.preflight.findings import Finding
from headrace.preflight.subject import Subject
from headrace.running.runfile import check

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


def looked(file: Path) -> list[Finding]:
    subject = Subject(check(RunFile.read(file)), thorough=False)
    return [f for look in CHECKS for f in look(subject) if f.level != "note"]


@pytest.mark.long
def test_the_recipe_in_miniature_has_no_errors_and_no_warnings() -> None:
    said = looked(RECIPES / "tiny_r1.toml")
    assert not said, [str(f) for f in said]


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param("r1", marks=pytest.mark.slow), "r1_distill"])
def test_the_published_values_are_accepted_and_what_is_not_here_is_told(name: str) -> None:
    file = RECIPES / f"{name}.toml"
    done = subprocess.run(
        [sys.executable, "-m", "headrace.preflight", str(file)], capture_output=True, text=True, timeout=HANG, cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "nowhere", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    findings = [found for line in done.stdout.splitlines() for found in json.loads(line)["findings"]]
    assert not [f for f in findings if f["level"] == "error"], findings
    told = {f["where"]: f for f in findings if "is not on this machine" in f["what"]}
    model = check(RunFile.read(file)).run.model
    assert told.pop(f"[run] model = {model!r}")["cure"].startswith("fetch it where the run starts")
    assert {"[data.aime]", "[data.math500]"} < set(told)
    wheres = [f["where"] for f in findings if "is not on this machine" in f["what"]]
    assert len(wheres) == len(set(wheres)), "each is told once"


@pytest.mark.long
def test_the_stages_of_the_page_are_a_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    whole = (RECIPES / "tiny_r1.toml").read_text(encoding="utf-8")
    head, base = whole.partition("[[stage]]")[0], whole[whole.index("[[stage]]") :].split("\n\n")[0]
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    text = (
        "\n".join([head, base, *blocks])
        .replace('"tiny_', f'"{RECIPES}/tiny_')
        .replace(f'name = "{RECIPES}/', 'name = "')
    )
    (tmp_path / "page.toml").write_text(text, encoding="utf-8")
    said = looked(tmp_path / "page.toml")
    assert not said, [str(f) for f in said]
    kinds = {stage.kind for stage in check(RunFile.read(tmp_path / "page.toml")).learner.stages}
    assert kinds == {"sft", "rl", "reject", "rewrite", "train_reward", "distill", "evaluate"}


@pytest.mark.long
def test_a_student_that_engines_could_not_take_over_is_refused_before_the_run(tmp_path: Path) -> None:
    whole = (RECIPES / "tiny_r1.toml").read_text(encoding="utf-8")
    config = json.loads((RECIPES / "tiny_student_m" / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    text = whole.replace('"tiny_student_m"', f'"{tmp_path}/other"').replace('"tiny_model"', f'"{RECIPES}/tiny_model"')
    text = text.replace('"tiny_student_s"', f'"{RECIPES}/tiny_student_s"')
    (tmp_path / "run.toml").write_text(text)
    (said,) = [f for f in looked(tmp_path / "run.toml") if f.level == "error"]
    assert "medium-base" in said.where and "rms_norm_eps = 1e-05 differs" in said.what
    served = text.replace(f'"{tmp_path}/other"', f'"{RECIPES}/tiny_student_m"').replace(
        'engine = "local"', 'engine = "sglang"\nlaunch = true'
    )
    (tmp_path / "run.toml").write_text(served)
    where = [f.where for f in looked(tmp_path / "run.toml") if "of another size" in f.what]
    assert len(where) == 2 and all("-base" in w for w in where)
