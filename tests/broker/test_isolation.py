"""A plug-in in a process of its own: whatever it does ends with its process tree, and the next call is answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import HANG, until
from ringtools import gone

from broker.errors import HeadraceError
from broker.faults import WHY_CHARACTERS, Failed, told
from broker.isolation import Isolated

ROOT = Path(__file__).resolve().parents[2]
PLUG = '''
"""Handlers that misbehave as they are told."""
import os, subprocess, sys, time

def nap(seconds):
    time.sleep(seconds)

def family(path, detached):
    """Two generations of children, the younger in a session of its own."""
    code = "import subprocess, os, time; p = subprocess.Popen(['sleep', '3600'], start_new_session=%r); open(%r, 'a').write(f'{os.getpid()} {p.pid} '); time.sleep(3600)" % (detached, path)
    subprocess.Popen([sys.executable, "-c", code], start_new_session=detached)
    while not os.path.exists(path) or not open(path).read().endswith(" "):
        time.sleep(0.01)

def do(order):
    what, *more = order
    if what == "echo": return more
    if what == "nap": nap(*more); return "rested"
    if what == "spin":
        while True: pass
    if what == "exit": os._exit(*more)
    if what == "quit": sys.exit("enough")
    if what == "signal": os.kill(os.getpid(), more[0])
    if what == "raise": raise ValueError(*more)
    if what == "surrogate": raise ValueError("half a " + chr(0xD800) + " character")
    if what == "connect": raise ConnectionRefusedError("nobody listens")
    if what == "memory": return len(bytearray(4 << 30))
    if what == "recurse": return do(order)
    if what == "print": print("x" * 100_000, flush=True); return "said"
    if what == "close": os.close(0), os.close(1), os.close(2); return "closed"
    if what == "object": return object()
    if what == "big": return "y" * more[0]
    if what == "family": family(*more); return "born"
    if what == "family and hang": family(*more); nap(300)
    if what == "family and exit": family(*more); os._exit(5)
    if what == "fork": os.fork(); return "once"
    if what == "read": return len(sys.stdin.read())
    if what == "pool":
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(1) as pool: return pool.apply(abs, (-3,))
    if what == "thread":
        import threading
        threading.Thread(target=time.sleep, args=(300,)).start(); return "started"

def factory(options):
    if options.get("start") == "hang": nap(300)
    if options.get("start") == "raise": raise KeyError("weights")
    if options.get("start") == "away": raise ConnectionRefusedError("no server")
    if options.get("start") == "exit": os._exit(9)
    do.about = {"made": options.get("start", "")}
    return do
'''


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Isolated]]:
    (tmp_path / "hostile_plug.py").write_text(PLUG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    made: list[Isolated] = []

    def make(start: str = "", **fields: Any) -> Isolated:
        made.append(Isolated("hostile_plug:factory", {"start": start}, **{"timeout": 1.0, **fields}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def answers(isolated: Isolated, *orders: list[Any]) -> list[Any]:
    return [answer for _, answer in isolated.call(orders)]


HOSTILE = [
    (["nap", 100], "timeout", "hostile_plug.py:6 in nap"),
    (["spin"], "timeout", "in do)"),
    (["exit", 3], "killed", "status 3"),
    (["signal", 9], "killed", "SIGKILL"),
    (["signal", 11], "killed", "SIGSEGV"),
    (["signal", 19], "timeout", "1 s"),
    (["quit"], "error", "SystemExit: enough"),
    (["raise", "no such thing"], "error", "ValueError: no such thing (hostile_plug.py:24 in do)"),
    (["surrogate"], "error", "half a ? character"),
    (["connect"], "outage", "nobody listens"),
    (["memory"], "killed", "MemoryError"),
    (["recurse"], "error", "RecursionError"),
    (["object"], "error", "can not serialize"),
    (["raise", "x" * 10_000], "error", "hostile_plug.py:24"),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("order", "kind", "why"), HOSTILE, ids=[f"{o[0]}-{k}" for o, k, _ in HOSTILE])
def test_a_failure_says_its_kind_and_line_and_those_behind_it_are_answered(
    plug: Callable[..., Isolated], order: list[Any], kind: str, why: str
) -> None:
    before, failed, behind = answers(plug(), ["echo", 1], order, ["echo", 2])
    assert (before, behind) == ([1], [2])
    assert isinstance(failed, Failed) and failed.kind == kind and why in str(failed), failed
    assert len(failed.why) <= WHY_CHARACTERS


ODD = [["print"], ["close"], ["thread"], ["fork"], ["read"], ["pool"], ["big", 3 << 20]]


@pytest.mark.parametrize("order", ODD, ids=lambda o: o[0])
def test_odd_behaviour_that_is_no_failure_disturbs_nothing(plug: Callable[..., Isolated], order: list[Any]) -> None:
    isolated = plug(timeout=20.0)
    first, second = answers(isolated, order, ["echo", 2])
    assert not isinstance(first, Failed) and second == [2]
    assert answers(isolated, ["echo", 3]) == [[3]] and isolated.restarts == 0


@pytest.mark.long
@pytest.mark.parametrize("detached", [False, True], ids=["children", "daemons"])
@pytest.mark.parametrize("how", ["stop", "hang", "exit"])
def test_a_judges_whole_process_tree_dies_with_it(
    plug: Callable[..., Isolated], tmp_path: Path, how: str, detached: bool
) -> None:
    isolated, path = plug(timeout=3.0 if how == "hang" else 60.0), str(tmp_path / "pids")
    order = {"stop": "family", "hang": "family and hang", "exit": "family and exit"}[how]
    (answer,) = answers(isolated, [order, path, detached])
    if how == "stop":
        assert answer == "born"
        isolated.stop()
    else:
        assert isinstance(answer, Failed) and answer.kind == {"hang": "timeout", "exit": "killed"}[how]
    pids = [int(pid) for pid in Path(path).read_text().split()]
    assert len(pids) == 2
    until(lambda: all(map(gone, pids)), "the end of all")


def test_a_parent_that_is_killed_leaves_nobody(plug: Callable[..., Isolated], tmp_path: Path) -> None:
    """Also where a thread that has long ended started the judge."""
    plug()
    path = tmp_path / "pids"
    code = f"""
import threading, time
from broker.isolation import Isolated
isolated = Isolated("hostile_plug:factory", {{}}, timeout=100.0)
thread = threading.Thread(target=lambda: list(isolated.call([["family", {str(path)!r}, True]])))
thread.start(), thread.join()
print("ready", flush=True)
time.sleep(3600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    below = [p.pid for p in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(below) >= 4
    until(lambda: all(map(gone, below)), "the end of all")


@pytest.mark.parametrize("which", ["keeper", "judge"])
def test_a_judge_that_somebody_kills_is_started_again(plug: Callable[..., Isolated], which: str) -> None:
    isolated = plug()
    assert answers(isolated, ["echo", 1]) == [[1]]
    assert isolated._process is not None
    os.kill(isolated._process.pid if which == "keeper" else isolated._pid, signal.SIGKILL)
    until(lambda: all(map(gone, [isolated._process.pid, isolated._pid])), "the end of all")
    found = [answer for answer in answers(isolated, ["echo", 2], ["echo", 3]) if not isinstance(answer, Failed)]
    assert found[-1] == [3] and isolated.restarts == 1


@pytest.mark.long
def test_a_stopped_keeper_is_ended_all_the_same(plug: Callable[..., Isolated], tmp_path: Path) -> None:
    isolated, path = plug(timeout=60.0), str(tmp_path / "pids")
    assert answers(isolated, ["family", path, True]) == ["born"]
    assert isolated._process is not None
    os.kill(isolated._process.pid, signal.SIGSTOP)
    isolated.stop()
    until(lambda: all(map(gone, [int(pid) for pid in Path(path).read_text().split()])), "the end of all")


@pytest.mark.long
def test_a_start_that_hangs_is_found_within_its_time_and_says_where(plug: Callable[..., Isolated]) -> None:
    """The nap is long; the time must suffice for Python itself to start."""
    with pytest.raises(HeadraceError, match=r"has not started: not ready within 4 s \(hostile_plug.py:6 in nap\)"):
        plug("hang", start_timeout=4.0).start()


@pytest.mark.parametrize(
    ("start", "why"), [("raise", "weights.*hostile_plug.py"), ("exit", "does not start.*status 9")]
)
def test_a_start_that_fails_says_why(plug: Callable[..., Isolated], start: str, why: str) -> None:
    with pytest.raises(HeadraceError, match=why) as caught:
        plug(start).start()
    assert not isinstance(caught.value, Failed)


def test_a_start_may_find_what_it_needs_away(plug: Callable[..., Isolated]) -> None:
    with pytest.raises(Failed, match="no server") as caught:
        plug("away").start()
    assert caught.value.kind == "outage"


def test_a_closed_judge_is_not_started_again(plug: Callable[..., Isolated]) -> None:
    isolated = plug()
    assert answers(isolated, ["echo", 1]) == [[1]] and isolated.about == {"made": ""}
    isolated.close()
    (answer,) = answers(isolated, ["echo", 2])
    assert isinstance(answer, Failed)


def open_stacks() -> int:
    """How many files in memory, as a child writes its stack to, this process holds open."""
    named = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("stack" in name for name in named)


@pytest.mark.parametrize("closers", [1, 3])
def test_a_child_may_be_closed_while_another_thread_waits_for_its_answer(
    plug: Callable[..., Isolated], closers: int
) -> None:
    before, isolated, found = open_stacks(), plug(timeout=60.0), list[Any]()
    isolated.start()
    assert open_stacks() == before + 1
    asking = threading.Thread(target=lambda: found.extend(answers(isolated, ["spin"], ["echo", 1])))
    ending = [threading.Thread(target=isolated.close) for _ in range(closers)]
    for thread in (asking, *ending):
        thread.start()
    for thread in (asking, *ending):
        thread.join(HANG)
        assert not thread.is_alive()
    assert len(found) == 2 and all(isinstance(answer, Failed) for answer in found)
    assert open_stacks() == before


def test_a_caller_that_wants_no_more_leaves_the_child_ready_for_others(plug: Callable[..., Isolated]) -> None:
    isolated = plug(timeout=10.0)
    with closing(isolated.call([["echo", i] for i in range(20)])) as found:
        assert next(found) == (0, [0])
    assert answers(isolated, ["echo", "next"]) == [["next"]] and isolated.restarts == 0


@pytest.mark.long
def test_what_lies_behind_a_slow_payload_is_offered_to_others(plug: Callable[..., Isolated]) -> None:
    isolated, offered = plug(timeout=20.0), list[range]()

    def relieve(behind: range, seconds: float) -> bool:
        offered.append(behind)
        return len(offered) == 2

    orders = [["echo", 0], ["nap", 1.5], ["echo", 2], ["echo", 3]]
    assert [place for place, _ in isolated.call(orders, relieve)] == [0, 1]
    assert offered == [range(2, 4)] * 2
    assert answers(isolated, ["echo", 4]) == [[4]]


@pytest.mark.long
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=12), st.integers(0, 2**32))
def test_in_whatever_order_failures_come_each_payload_has_its_own_answer(
    shared: Isolated, kinds: list[int], seed: int
) -> None:
    orders = [[["echo", seed + i], ["raise", str(i)], ["exit", 1], ["print"]][kind] for i, kind in enumerate(kinds)]
    found = list(shared.call(orders))
    assert [place for place, _ in found] == list(range(len(orders)))
    for kind, (place, answer) in zip(kinds, found, strict=True):
        match kind:
            case 0:
                assert answer == [seed + place]
            case 1:
                assert answer.kind == "error" and f"ValueError: {place} (" in answer.why
            case 2:
                assert answer.kind == "killed"
            case _:
                assert answer == "said"


@pytest.fixture
def shared(plug: Callable[..., Isolated]) -> Isolated:
    return plug(timeout=20.0)


@pytest.mark.long
@given(st.text(max_size=2000) | st.text(st.characters(categories=["Cs"]), min_size=1, max_size=20))
def test_any_error_can_be_told_in_one_record(words: str) -> None:
    said = told(ValueError(words))
    assert len(said) <= WHY_CHARACTERS and said.encode("utf-8")
