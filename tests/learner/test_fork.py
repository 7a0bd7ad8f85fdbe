"""A new run that begins from a step of another one: the same weights, the same place in the data, a log of its own."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from ring import Ring, ring

from broker.errors import HeadraceError, RunFault
from broker.messages import Manifest, Prompt
from headrace.__main__ import main
from headrace.commands.trace import trace
from headrace.commands.verify import verify_on
from headrace.reading.summary import summarise
from headrace.running.rundir import reopen
from learner.fork import route_to
from learner.model.load import load_model
from learner.planning.recovery import read_tail
from learner.replay import replay
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import state_sha256

SHORT = ("stage.0.steps=2", "stage.1.steps=8", "stage.1.eval_every=0", "stage.2.questions=4")
EVERY = ("learner.checkpoint_every=2", "learner.keep_checkpoints=3")


def fork(old: Path, new: Path, at: int, *settings: str) -> int:
    return main(["fork", str(old), "--at", str(at), "--dir", str(new), *(p for s in settings for p in ("--set", s))])


def begun_with(directory: Path) -> str:
    (path,) = (directory / "checkpoints").glob("fork-*")
    return state_sha256(load_model(str(path)))


def forked(directory: Path) -> Ring:
    """The ring of a run that ``fork`` has made."""
    return Ring(directory, file=directory / "run.toml")


def bytes_below(directory: Path) -> dict[str, str]:
    """What a run's directory holds, but for its log, whose files change when a reader closes them."""
    found = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.parent.name != "log")
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.mark.long
def test_a_fork_goes_on_from_the_step_with_the_weights_and_the_data_of_the_old_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with ring(old, *SHORT, *EVERY) as made:
        made.run()
        topics = ("prompts", "trajectories", "rewards", "steps", "policy", "deadletters")
        (old / "artefacts").mkdir(exist_ok=True)
        (old / "artefacts" / "rl-prompts.rows.json").write_text("a choice of the stage")
        (old / "artefacts" / "after-heldout.rows.json").write_text("one of a later stage")
        before, records = bytes_below(old), [made.positions(topic) for topic in topics]
        assert (
            fork(old, new, 5, "learner.optimizer.lr=1e-2", "stage.1.steps=7", "learner.optimizer.weight_decay=0.5") == 0
        )
        assert bytes_below(old) == before, "the old run is only read"
        assert repr([made.positions(topic) for topic in topics]) == repr(records)
        assert [p.name for p in sorted((new / "artefacts").iterdir())] == ["rl-prompts.rows.json"]
        assert (new / "checkpoints" / "stage-0-base").is_dir()
        replay(reopen(old), 3, 5, tmp_path / "replayed")
        (again,) = (tmp_path / "replayed").glob("replay-*")
        assert begun_with(new) == state_sha256(load_model(str(again)))
        manifest = next(m for m in made.records("steps", Manifest) if m.kind == "step" and m.step == 5)
        numbers = {p.group_id: p.number for p in made.records("prompts", Prompt)}
        under_way = {numbers[group_id] for group_id in manifest.state.outstanding}
        asked_before = {n for i, n in numbers.items() if not i.startswith("heldout")} - under_way
    goes_on = forked(new)
    try:
        assert goes_on.run()
        audit = goes_on.verify()
        assert (audit.steps, audit.outstanding, audit.problems) == (3, 0, []), (
            "steps 6 to 8: seven of the stage, from the fifth on"
        )
        assert audit.forked_from == f"small at step 5 ({old})"
        assert [m.step for m in goes_on.steps()] == [6, 7, 8]
        asked = [p.number for p in goes_on.records("prompts", Prompt) if p.purpose == "train"]
        first = manifest.state.cursor["prompts"]
        assert under_way <= set(asked), "what was under way is asked anew"
        assert sorted(set(asked) - under_way) == list(range(first, first + len(asked) - len(under_way)))
        assert not set(asked) & {n for n in asked_before if n < first}, "and nothing that had its end there"
        run = goes_on.run_of
        assert summarise(goes_on._log, run, audit, 1.0)["forked_from"] == {
            "run": "small",
            "step": 5,
            "directory": str(old),
        }
        assert trace(goes_on._log, run.topics, 6)["forked_from"]["step"] == 5
        with pytest.raises(RunFault, match="not of this run, which was forked from small at step 5"):
            trace(goes_on._log, run.topics, 4)
        assert not verify_on(goes_on._log, run.topics).problems
        sealed = verify_on(goes_on._log, run.topics)
        assert sealed.forked_from and not sealed.problems, "an audit that begins at a seal says it too"
    finally:
        goes_on.close()
    said = capsys.readouterr().out
    assert "forked from step 5 of 'small': stage 1, step 4 of it" in said and f"headrace run {new}/run.toml" in said


@pytest.mark.long
def test_a_fork_without_changes_trains_as_the_old_run_did_when_it_replays_the_same_records(tmp_path: Path) -> None:
    """The optimizer's state comes along: a replay in the fork of its own steps gives its weights."""
    old, new = tmp_path / "old", tmp_path / "new"
    with ring(old, *SHORT, *EVERY) as made:
        made.run()
    assert fork(old, new, 6) == 0
    goes_on = forked(new)
    try:
        goes_on.watch = lambda: None
        assert goes_on.run()
        replay(reopen(new), 7, goes_on.steps()[-1].step, tmp_path / "again")
        (again,) = (tmp_path / "again").glob("replay-*")
        assert state_sha256(load_model(str(again))) == goes_on.newest_sha256()
    finally:
        goes_on.close()


@pytest.mark.long
@pytest.mark.parametrize("version", [6, 7, 9])
def test_a_fork_that_is_killed_is_redone_and_asks_everything_that_was_due(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with ring(old, *SHORT, *EVERY) as made:
        made.run()
    assert fork(old, new, 5, "learner.checkpoint_every=1000", "learner.groups_per_step=1") == 0
    goes_on = forked(new)
    try:
        owed = goes_on.records("steps", Manifest)[0].state.missing["prompts"]
        assert len(owed) > 3, "more than the credits of the smaller steps allow at once"
        goes_on.kill_at(version)
        goes_on.killed()
        assert goes_on.run()
        audit = goes_on.verify()
        assert (audit.steps, audit.outstanding, audit.problems) == (4, 0, [])
        asked = [p.number for p in goes_on.records("prompts", Prompt) if p.purpose == "train"]
        assert set(asked) <= set(owed) if len(asked) <= len(owed) else set(owed) <= set(asked)
        assert len(asked) == len(set(asked))
    finally:
        goes_on.close()


@pytest.mark.long
def test_a_fork_of_a_run_that_goes_on_and_of_a_fork(tmp_path: Path) -> None:
    old, new, third = tmp_path / "old", tmp_path / "new", tmp_path / "third"
    with ring(old, *SHORT, *EVERY) as made:
        made.when(
            lambda: made.learner is not None and made.learner.progress.version >= 4,
            lambda: status.append(fork(old, new, 3)),
        )
        status: list[int] = []
        assert made.run() and status == [0]
        assert not made.verify().problems
    goes_on = forked(new)
    try:
        assert goes_on.run() and not goes_on.verify().problems
    finally:
        goes_on.close()
    assert fork(new, third, 3) == 0, "where the fork itself began"
    assert begun_with(third) == begun_with(new)
    shutil.rmtree(third)
    assert fork(new, third, 5) == 0
    with pytest.raises(HeadraceError, match="lost the checkpoint"):
        shutil.rmtree(third / "checkpoints")
        forked(third).run()
    assert fork(new, tmp_path / "fourth", 2) == 3, "an older step is the first run's"


@pytest.mark.long
def test_a_fork_at_any_step_begins_where_the_old_run_was(tmp_path: Path) -> None:
    old = tmp_path / "old"
    with ring(old, *SHORT, "learner.checkpoint_every=3", "learner.keep_checkpoints=9") as made:
        made.run()
        last = made.steps()[-1].step
        shas = {}
        found = Checkpoints(old / "checkpoints").all()
        for step in range(last + 1):
            before = [p.steps_offset for _, p in found if p.version < step]
            tail = read_tail(made._log, made.run_of.topics, before[-1] if before else 0, step)
            route = route_to(made.run_of, tail, found, step)
            shas[step] = (route.checkpoint.name if route.checkpoint else "", [m.step for m, _ in route.manifests])
    assert shas[0] == ("", [])
    assert shas[1] == ("step-00000001-0-00000000", []), "the supervised stage and its end"
    assert shas[4] == ("step-00000004-1-00000003", [])
    assert shas[6] == ("step-00000004-1-00000003", [5, 6])
    assert shas[last] == ("step-00000007-1-00000006", [8, 9]), "the end of the stage is left open"


@pytest.mark.long
def test_what_cannot_be_forked_is_said_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with ring(old, *SHORT, *EVERY) as made:
        made.run()
    for status, at, settings, words in (
        (3, 99, (), "has come to step 9; there is no step 99 yet"),
        (2, -1, (), "--at -1"),
        (2, 5, ("run.model=elsewhere",), "[run] model = 'elsewhere'"),
        (2, 5, ("stage.1.name=other",), "[[stage]] 1 name = 'other': it was 'rl'"),
        (2, 5, ("learner.optimizer.muon=20",), "do not fit the state"),
        (2, 5, ("learner.optimzer.lr=1",), "did you mean"),
    ):
        assert fork(old, new, at, *settings) == status
        assert words in capsys.readouterr().err
        assert not new.exists()
    new.mkdir()
    (new / "mine").write_text("kept")
    assert fork(old, new, 5) == 2
    assert "is not empty" in capsys.readouterr().err and (new / "mine").exists()


@pytest.mark.long
def test_a_fork_that_was_refused_leaves_nothing_on_a_shared_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shared = f"broker.url=sqlite://{tmp_path}/shared"
    with ring(old, *SHORT, *EVERY) as made:
        made.run()
    assert fork(old, new, 5, shared, "learner.optimizer.muon=20") == 2
    assert "do not fit the state" in capsys.readouterr().err
    with monkeypatch.context() as full:

        def no_space(path: Path, offset: int) -> None:
            raise OSError("no space")

        full.setattr("learner.fork._place", no_space)
        assert fork(old, new, 5, shared) == 3
    assert fork(old, new, 5, shared) == 0, capsys.readouterr().err
    assert fork(old, tmp_path / "other", 5, shared, "run.name=new") == 3
    assert "already holds records of a run named 'new'" in capsys.readouterr().err
    goes_on = forked(new)
    try:
        assert goes_on.run(), "what the refused ones left, and the one of the same name, has not harmed it"
        assert not goes_on.verify().problems
    finally:
        goes_on.close()
