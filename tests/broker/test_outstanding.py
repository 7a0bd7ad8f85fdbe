"""Where groups without offsets begin, whose records a log holds, and how a run's records are removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ringtools import answer_of

from broker.errors import RunFault
from broker.log import Log
from broker.messages import Manifest, Message, PlannerState, PolicyVersion, encode
from broker.outstanding import newest_state, outstanding
from broker.ownership import refuse_records_of_another
from broker.run import Run


def run_of(directory: Path, log: Path, name: str = "mine") -> Run:
    path = directory / f"{name}.toml"
    path.write_text(f'[run]\nname = "{name}"\nmodel = "m"\n[broker]\nurl = "sqlite://{log}"\n')
    return Run.open(path, directory=directory / name)


def put(log: Log, topic: str, *messages: Message) -> None:
    producer = log.producer()
    for message in messages:
        producer.send(topic, b"k", encode(message))
    producer.flush()
    producer.close()


def test_a_group_without_offsets_begins_at_what_the_newest_manifest_leaves_outstanding(tmp_path: Path) -> None:
    run = run_of(tmp_path, tmp_path / "log")
    log = run.open_log()
    assert newest_state(log, run.topics.steps) == PlannerState()
    assert outstanding(log, run.topics)(run.topics.prompts) == {}
    states = [PlannerState(prompts={0: i}, trajectories={1: 10 * i}) for i in range(3)]
    put(log, run.topics.steps, *(Manifest(i, 0, "close", state=state) for i, state in enumerate(states)))
    producer = log.producer()
    for _ in range(200):  # results and evaluations come after manifests
        producer.send(run.topics.steps, b"k", b"something else")
    producer.flush()
    producer.close()
    first = outstanding(log, run.topics)
    assert first(run.topics.prompts) == {0: 2} and first(run.topics.trajectories) == {1: 20}
    assert first(run.topics.policy) == {}
    log.close()


def test_a_name_that_is_used_again_with_another_directory_is_refused(tmp_path: Path) -> None:
    first = run_of(tmp_path, tmp_path / "log")
    log = first.open_log()
    refuse_records_of_another(first, log)
    put(
        log,
        first.topics.policy,
        PolicyVersion(4, str(first.directory / "weights" / "v-00000004"), "c", "tcp://x:1", "l"),
    )
    refuse_records_of_another(first, log)
    (tmp_path / "elsewhere").mkdir()
    again = Run.open(tmp_path / "mine.toml", directory=tmp_path / "elsewhere" / "mine")
    with pytest.raises(RunFault, match=r"already holds a run named 'mine'.*headrace broker delete"):
        refuse_records_of_another(again, log)
    (again.directory / "checkpoints" / "step-4").mkdir(parents=True)
    refuse_records_of_another(again, log)  # a directory that was moved, with its checkpoints
    log.close()


def test_a_run_is_deleted_and_its_neighbour_with_a_like_name_is_not(tmp_path: Path) -> None:
    mine, other = run_of(tmp_path, tmp_path / "log"), run_of(tmp_path, tmp_path / "log", "mine.x")
    log = mine.open_log()
    log.create(other.topics.specs())
    for run in (mine, other):
        put(log, run.topics.policy, PolicyVersion(1, "p", "c", "tcp://x:1", "l"))
        consumer = log.consumer([run.topics.prompts], run.topics.group("actors"), "a")
        consumer.commit({(run.topics.prompts, 0): 0})
        consumer.close()
    told = answer_of("broker", "delete", str(tmp_path / "mine.toml"), "--json")
    assert told.returncode == 0, told.stderr
    assert all("--yes" in row["became"] for row in json.loads(told.stdout))
    assert log.ends(mine.topics.policy) == {0: 1}
    done = answer_of("broker", "delete", str(tmp_path / "mine.toml"), "--yes")
    assert done.returncode == 0, done.stderr
    log.close()
    left = other.open_log()
    assert set(left.topics()) == {spec.name for spec in other.topics.specs()} and set(left.groups()) == {
        "mine.x.actors"
    }
    left.close()
