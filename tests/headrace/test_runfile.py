"""A run file's mistakes: one line with table, key, value and the nearest right one; exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from ringtools import SMALL, answer_of

from broker.errors import RunFileError
from broker.runfile import RunFile
from headrace.running.runfile import check

ROOT = Path(__file__).resolve().parents[2]


IMPORTED = {"real": ["run.model=tiny_model"]}
"""Recipes whose own model is imported first (`make setup-real`), and a model that is there."""


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_the_recipes_are_right(recipe: Path) -> None:
    check(RunFile.read(recipe, IMPORTED.get(recipe.stem, ())))


MISTAKES = [
    ("learner.lrr=1", r"\[learner\] unknown key 'lrr'"),
    ("learner.group_sizes=3", r"\[learner\] unknown key 'group_sizes'; did you mean 'group_size'\?"),
    ("learner.group_size=none", r"\[learner\] group_size = 'none'"),
    ("learner.group_size=0", r"\[learner\] group_size = 0: .*greater than or equal to 1"),
    ("learner.optimizer.lrate=1.0", r"\[learner\] unknown key 'optimizer.lrate'"),
    ("learner.objective=ppo", r"\[learner\] objective.name = 'ppo'"),
    (
        "learner.objective={name='grpo',trust=0.1}",
        r"\[learner\] objective = .*: objective 'grpo' does not read 'trust'",
    ),
    ("learner.objective={name='grpo',hihg=0.1}", r"objective 'grpo' does not read 'hihg'; did you mean 'high'\?"),
    ("learner.objective.use=mine.py:Mine", r"learner.objective use = 'mine.py:Mine': there is no mine.py"),
    ("learner.sampling.top_p=.9", r"\[\[stage\]\] rl learner sampling.top_p = 0.9: training needs top_p = 1"),
    ("learner.sampling.stop=['']", r"\[learner\] sampling.stop.0 = '': string should have at least 1 character"),
    ("learner.optimizer.lr=inf", r"\[learner\] optimizer.lr = inf: input should be a finite number"),
    ("run.rewards.vowels=nan", r"\[run\] rewards.vowels = nan: input should be a finite number"),
    ("data.prompts.rewards={vowels=-inf}", r"\[data.prompts\] rewards.vowels = -inf: input should be a finite number"),
    ("rewarders.vowels.timeout=inf", r"\[rewarders.vowels\] timeout = inf: input should be a finite number"),
    ("learner.minibatches=64", r"\[learner\] minibatches = 64 of groups_per_step = .*lower minibatches"),
    ("actors.slots=-1", r"\[actors\] slots = -1"),
    ("actors.engine=vllm", r"\[actors\] engine = 'vllm'"),
    ("rewarders.vowels.timeout=0", r"\[rewarders.vowels\] timeout = 0"),
    ("rewarders.more.workers=1", r"\[rewarders.more\] needs either use"),
    (
        "rewarders.actor.use=vowels.py:Vowels",
        r"\[rewarders.actor\] has the name of another daemon, actor-0: call the table otherwise",
    ),
    ("rewarders.learner.use=vowels.py:Vowels", r"\[rewarders.learner\] has the name of another daemon, learner-0"),
    ("rewarders.a/b.use=vowels.py:Vowels", r"\[rewarders\] 'a/b' is no name for a daemon's files: use letters, digits"),
    ("rewarders.-x.use=vowels.py:Vowels", r"\[rewarders\] '-x' is no name"),
    ("run.rewards={vowel=1.0}", r"\[run\] rewards names 'vowel'.*did you mean 'vowels'\?"),
    ("run.name=../x", r"\[run\] name = '../x'"),
    ("broker.url=redis://x", r"\[broker\] url = 'redis://x': unknown scheme 'redis'"),
    ("stage.1.kind=lr", r"\[\[stage\]\] 1 kind = 'lr'; did you mean 'rl'\?"),
    ("stage.1.data=prompt", r"data = 'prompt' is not in \[data\], nor an earlier stage; did you mean 'prompts'\?"),
    ("stage.1.step=5", r"\[\[stage\]\] 1 unknown key 'step'; did you mean 'steps'\?"),
    ("stage.1.learner={max_lags=1}", r"unknown key 'max_lags'; did you mean 'max_lag'"),
    ("stage.7.steps=5", r"stage '7' is not one of 0..2"),
    ("lerner.lr=1", r"unknown table \[lerner\]; did you mean 'learner'\?"),
    ("learner", r"use table.key=value"),
    ("stage.0.data=[]", r"data.* names no source"),
    ('stage.0.data=["corpus", "corpus"]', r"data.* names a source twice"),
    ("stage.0.data={corpus=-1.0}", r"data.* has a weight that is not above 0"),
    ("stage.0.optimizer.betas=[0.9, 1.0]", r"betas"),
    ("learner.optimizer.lr=1e38", r"lr"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[o for o, _ in MISTAKES])
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        check(RunFile.read(SMALL, [override]))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="does not exist"):
        RunFile.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\n")
    with pytest.raises(RunFileError, match="cannot be read"):
        RunFile.read(tmp_path / "bad.toml")
    (tmp_path / "odd.toml").write_text("[rum]\nname = 'x'\n")
    with pytest.raises(RunFileError, match=r"unknown table \[rum\]; did you mean 'run'"):
        RunFile.read(tmp_path / "odd.toml")


@pytest.mark.long
def test_bad_input_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    done = answer_of("run", str(SMALL), "--set", "learner.group_sizes=3", "--dir", str(tmp_path / "run"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean 'group_size'?" in done.stderr
    assert not (tmp_path / "run").exists(), "nothing is made before the file is right"
    assert answer_of("verify", str(tmp_path)).returncode == 2
    assert answer_of("plan", str(SMALL)).returncode == 0
    assert "headrace 0" in answer_of("--version").stdout
