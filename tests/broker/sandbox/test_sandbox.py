"""The sandbox on real programs: what it runs, what it bounds, what it holds, and that nothing is left of it."""

from __future__ import annotations

import os
import platform
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from patience import HANG, until
from ringtools import gone

from broker.sandbox import Gone, Limits, Sandbox, SandboxError, Session
from broker.sandbox.command import Place, place
from broker.sandbox.hostile import BREACH, DISK, HOSTILE, INODES, MEMORY, MEMORY_OF_MANY, NETWORK, SECRETS
from broker.sandbox.seccomp import MACHINES, REFUSED, seccomp_filter
from broker.sandbox.selftest import must_hold, self_test

ROOT = Path(__file__).resolve().parents[3]
QUICK = Limits(cpu=2.0, memory_mb=128, disk_mb=16, files=200, processes=16, output_kb=64)
STRANGER = 61234


@pytest.fixture
def session() -> Iterator[Session]:
    with Sandbox(QUICK).open() as session:
        yield session


def test_there_is_bubblewrap() -> None:
    assert place().bwrap, "the sentence of SandboxError says how to get it"


def test_a_program_reads_its_input_and_gives_output_errors_and_status(session: Session) -> None:
    session.write({"main.py": b"import sys\nprint(input()[::-1])\nprint('hm', file=sys.stderr)\nsys.exit(3)"})
    result = session.python_file("main.py", b"abc\n")
    assert (result.stdout, result.stderr, result.status, result.cause) == (b"cba\n", b"hm\n", 3, "")
    assert not result.ok and result.wall > 0 and result.peak_mb > 1


def test_a_command_runs_with_files_of_its_own() -> None:
    result = Sandbox(QUICK).run(["sh", "-c", "cat in/a.txt - > b.txt; cat b.txt"], {"in/a.txt": b"one\n"}, b"two\n")
    assert result.ok and result.stdout == b"one\ntwo\n"


def test_a_function_is_called_and_its_value_comes_out_raw(session: Session) -> None:
    session.write({"f.py": b"class Solution:\n    def up(self, xs: List[int]): return [x + 0.5 for x in xs]\ndef fill(a, b): a.append(b)\nprint('noise')"})  # fmt: skip
    assert session.call("f.py", "up", [[1, 2]], prelude="from typing import *").value == b"[1.5, 2.5]"
    assert session.call("f.py", "Solution.up", {"xs": [3]}, prelude="from typing import *").value == b"[3.5]"
    assert session.call("f.py", "fill", [[], 5], prelude="from typing import *", inplace=0).value == b"[5]"
    nothing = session.call("f.py", "absent", [], prelude="from typing import *")
    assert nothing.status == 1 and nothing.value == b"" and b"no attribute 'absent'" in nothing.stderr


def test_runs_of_a_session_share_files_and_no_processes(session: Session) -> None:
    session.write({"a.py": b"import os\nopen('left', 'w').write('x')\nif os.fork() == 0:\n    while True: pass"})
    assert session.python_file("a.py").ok
    listed = session.run(["sh", "-c", "ls; ls -d /proc/[0-9]* | wc -l"])
    assert b"left" in listed.stdout
    assert int(listed.stdout.split()[-1]) <= 4, "the runner and this command's own"


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "causes"),
    [
        ("while True: pass", {"time"}),
        ("import time\ntime.sleep(60)", {"time"}),
        ("import os\nos.kill(os.getpid(), 11)", {"killed"}),
        ("while True: print('x' * 9999)", {"output", "files", "time"}),
        ("open('/tmp/big', 'wb').truncate(1 << 40)", {"files"}),
    ],
)
def test_bounds_have_their_causes(program: str, causes: set[str]) -> None:
    limits = Limits(cpu=0.5, wall=1.5, memory_mb=96, disk_mb=4, output_kb=16)
    with Sandbox(limits).open() as session:
        session.write({"a.py": program.encode(), "b.py": b"print(1)"})
        result = session.python_file("a.py")
        assert result.cause in causes and not result.ok, result
        assert len(result.stdout) <= 16 << 10
        assert session.python_file("b.py").stdout in (b"1\n", b""), "the next run is another's"


def test_a_session_that_a_bound_has_ended_says_so() -> None:
    with Sandbox(Limits(memory_mb=64, address_space=False)).open() as session:
        session.write({"a.py": b"x = bytearray(b'x') * (900 << 20)\nimport time; time.sleep(60)"})
        result = session.python_file("a.py")
        assert (result.cause, result.status) == ("memory", None) and result.peak_mb > 64
        with pytest.raises(Gone, match="MiB of memory"):
            session.python_file("a.py")


def test_nothing_is_left_of_a_closed_sandbox() -> None:
    with Sandbox(QUICK).open() as session:
        session.write(
            {
                "a.py": b"import os\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass"
            }
        )
        running = threading.Thread(target=lambda: session.python_file("a.py"))
        running.start()
        running.join()
        init = session.init
        inside = [p.pid for p in psutil.Process(init).children(recursive=True)]
    for pid in [init, *inside]:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_a_sandbox_ends_with_whoever_started_it() -> None:
    code = "import sys, time\nfrom broker.sandbox import Sandbox\ns = Sandbox().open()\nprint(s.init, flush=True)\ntime.sleep(3600)"
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert starter.stdout is not None
    init = int(starter.stdout.readline())
    assert not gone(init)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    until(lambda: gone(init), "the end of the sandbox")


@pytest.mark.long
def test_every_hostile_program_is_held() -> None:
    held = self_test()
    assert len(held) >= 15 and [h for h in held if h.why] == []
    must_hold()


@pytest.mark.slow
def test_every_hostile_program_is_held_where_the_starter_is_nobody_special() -> None:
    if os.geteuid() != 0:
        assert not place().privileged, "the self-test above has been that one"
        return
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        "from broker.sandbox.command import place\nfrom broker.sandbox.selftest import self_test\n"
        "assert not place().privileged\nprint([(h.name, h.why) for h in self_test() if h.why])"
    )
    python = _python_for_anybody()
    done = subprocess.run(
        [python, "-B", "-c", code],
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr


def _python_for_anybody() -> str:
    """An interpreter that a stranger can start: this one, or the system's of the same version (the virtual environment's may lie in a home directory)."""
    for python in (os.path.realpath(sys.executable), f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        asked = [python, "-I", "-S", "-c", "import json"]
        try:
            if subprocess.run(asked, user=STRANGER, group=STRANGER, extra_groups=[], cwd="/").returncode == 0:
                return python
        except OSError:
            continue
    raise AssertionError("no Python here that another user may start: apt install python3")


@pytest.mark.parametrize("source", [NETWORK, SECRETS], ids=["network", "secrets"])
def test_outside_of_it_the_programs_do_get_through(source: str, tmp_path: Path) -> None:
    """The self-test proves something only if its programs bite where nothing holds them."""
    import socket

    (tmp_path / "secret").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(tmp_path / "secret"), str(server.getsockname()[1])]
        done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, timeout=HANG)
    assert BREACH in done.stdout


@pytest.mark.parametrize(
    ("source", "limits"),
    [
        (MEMORY, Limits(cpu=20, memory_mb=1000)),
        (MEMORY_OF_MANY, Limits(cpu=20, memory_mb=900)),
        (DISK, Limits(cpu=20, memory_mb=900, disk_mb=512)),
        (INODES, Limits(cpu=20, disk_mb=500, files=10_000_000)),
    ],
    ids=["memory", "memory of many", "disk", "inodes"],
)
@pytest.mark.slow
def test_within_wide_bounds_the_programs_do_get_through(source: str, limits: Limits) -> None:
    result = Sandbox(limits).run([place().python, "-I", "-S", "a.py"], {"a.py": source.encode()})
    assert BREACH in result.stdout, result


def test_without_the_filter_of_calls_the_programs_do_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    import broker.sandbox.session as module

    monkeypatch.setattr(module, "seccomp_filter", lambda: struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
    broken = {
        h.name for h in self_test([h for h in HOSTILE if "memory of no" in h.name or "interfaces" in h.name]) if h.why
    }
    assert broken == {"memory of no process", "interfaces of the kernel"}


def test_the_environment_and_arguments_of_the_starter_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "do-not-tell")
    code = b"import glob\nfor p in glob.glob('/proc/*/environ'):\n    try: print(open(p).read())\n    except OSError: pass\nimport os; print(os.environ)"
    result = Sandbox(QUICK).run(["python3", "a.py"], {"a.py": code})
    assert b"do-not-tell" not in result.stdout and b"/box" in result.stdout


def test_a_machine_without_bubblewrap_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    place.cache_clear()
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        Sandbox().open()
    monkeypatch.undo()
    place.cache_clear()


def test_a_bubblewrap_that_cannot_make_namespaces_is_a_fault_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sandbox.session.place", lambda: Place("/bin/false", sys.executable, True))
    with pytest.raises(SandboxError, match="does not start"):
        Sandbox().open()


def test_limits_must_be_above_zero() -> None:
    with pytest.raises(SandboxError, match="memory_mb is 0"):
        Limits(memory_mb=0)


def test_the_filter_fits_each_machine_and_no_other() -> None:
    for machine in MACHINES:
        program = seccomp_filter(machine)
        assert len(program) % 8 == 0 and len(program) // 8 < 4096
        for at in range(0, len(program), 8):
            code, yes, no, _ = struct.unpack("<HBBI", program[at : at + 8])
            assert at // 8 + max(yes, no) + 1 <= len(program) // 8, "no jump leaves the program"
            assert code in (0x20, 0x15, 0x35, 0x45, 0x06)
    with pytest.raises(SandboxError, match="riscv64"):
        seccomp_filter("riscv64")


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_the_filter_answers_as_it_should(machine: str) -> None:
    """A slow, obvious machine for the filter's own language."""
    program, m = seccomp_filter(machine), MACHINES[machine]
    refused, unknown = 0x50000 | 1, 0x50000 | 38

    def answer(number: int, first: int = 0, second: int = 0, audit: int = m.audit) -> int:
        return _interpret(program, struct.pack("<IIQQQ", number, audit, 0, first, second))

    for name, numbers in REFUSED.items():
        if numbers[m.column] >= 0:
            assert answer(numbers[m.column]) == refused, name
    assert answer(m.clone3) == unknown and answer(460) == unknown
    assert (
        answer(m.socket, 1) == 0x7FFF0000
        and answer(m.socket, 2) == 0x50000 | 97
        and answer(m.socket, 16) == 0x50000 | 97
    )
    assert answer(m.clone, 0x11) == 0x7FFF0000 and answer(m.clone, 0x10000011) == refused
    assert answer(m.prlimit, 0) == 0x7FFF0000 and answer(m.prlimit, 1) == refused
    assert answer(m.ioctl, 0, 0x5401) == 0x7FFF0000 and answer(m.ioctl, 0, 0x5412) == refused
    assert answer(0x40000000 + 1) == 0x80000000 and answer(0, audit=0x40000003) == 0x80000000


def _interpret(program: bytes, data: bytes) -> int:
    at, value = 0, 0
    while True:
        code, yes, no, k = struct.unpack("<HBBI", program[8 * at : 8 * at + 8])
        if code == 0x06:
            return k
        if code == 0x20:
            value = struct.unpack("<I", data[k : k + 4])[0]
            at += 1
        else:
            holds = value == k if code == 0x15 else value >= k if code == 0x35 else bool(value & k)
            at += 1 + (yes if holds else no)


def test_the_numbers_of_refused_calls_are_the_kernels() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if platform.machine() != "x86_64" or not header.exists():
        return  # the table was made from that header; where there is none there is nothing to compare it with
    numbers = {w[1].removeprefix("__NR_"): int(w[2]) for w in map(str.split, header.read_text().splitlines()) if len(w) == 3 and w[2].isdigit()}  # fmt: skip
    assert {name: pair[0] for name, pair in REFUSED.items()} == {name: numbers[name] for name in REFUSED}


def test_the_pages_own_example_works() -> None:
    page = (ROOT / "docs" / "sandbox.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, timeout=HANG)


def test_what_fails_before_the_runner_is_ready_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "fresh_uid", lambda self, start: 1 << 40)
    with pytest.raises(SandboxError, match=r"OverflowError|too large"):
        Sandbox().open()
