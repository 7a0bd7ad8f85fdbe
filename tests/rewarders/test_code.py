"""CodeTests on programs that are right, wrong, odd and hostile, and what is read from data sets and responses."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from test_math import sample

from broker.errors import HeadraceError, MessageError
from broker.sandbox import SandboxError
from broker.sandbox import session as session_module
from broker.sandbox.command import SEARCH, Place
from monitoring.daemon import Stop
from monitoring.metrics import RewarderMetrics
from rewarders.code import CodeTests, hostile
from rewarders.code.checking import same_text, same_value
from rewarders.code.extract import NoPatch, blocks, patched, program_of
from rewarders.code.languages import LANGUAGES, language_table
from rewarders.code.prelude import imported, prelude_of
from rewarders.code.task import Case, Task, read_task
from rewarders.config import RewarderTable
from rewarders.readiness import await_ready
from rewarders.registry import load_rewarder
from rewarders.rewarder import Reward

pytestmark = pytest.mark.long

SUMS = [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (40, 2), (-5, 5), (10**12, 1))]
ADD = "print(sum(map(int, input().split())))"


def fenced(program: str, tag: str = "python", thought: str = "It is easy.") -> str:
    return f"<think>{thought}</think>\nHere it is:\n```{tag}\n{program}\n```\nDone."


@pytest.fixture(scope="module")
def judge() -> CodeTests:
    judge = CodeTests(seconds=3.0, total=60.0)
    judge.prepare()
    return judge


def told(judge: CodeTests, text: str, **metadata: Any) -> Reward:
    reward = judge(sample(text, None, metadata=metadata))
    assert reward is not None
    return reward


def test_a_program_that_passes_all_tests_is_rewarded(judge: CodeTests) -> None:
    reward = told(judge, fenced(ADD), tests=SUMS)
    assert (reward.value, reward.why, reward.cause) == (1.0, "all 4 tests passed", "") and reward.answer


def test_programs_that_behave_alike_have_one_answer(judge: CodeTests) -> None:
    other = "a, b = map(int, input().split())\nprint(a + b)"
    assert told(judge, fenced(ADD), tests=SUMS).answer == told(judge, fenced(other), tests=SUMS).answer
    assert told(judge, fenced("print(3)"), tests=SUMS).answer == ""


@pytest.mark.parametrize(
    ("program", "why", "cause"),
    [
        ("print(3)", "1 of 4 tests passed; test 2: '3\\n' is not '42\\n'", ""),
        ("print(", "SyntaxError", ""),
        ("raise ValueError('no')", "exit status 1 ValueError: no", ""),
        (ADD + "\nraise SystemExit(1)", "exit status 1", ""),
        ("while True: pass", "time: 0.5 s of processor time", "timeout"),
        ("import os; os.abort()", "killed: signal 6", "killed"),
        ("import sys\nsys.stdout.buffer.write(b'\\xff')", "nothing that can be read", ""),
        ("print(1, 2, 3, 42, 0, 1000000000001)", "0 of 4", ""),
        ("", "no program", ""),
    ],
)
def test_a_program_that_fails_gets_nothing_and_is_told_why(program: str, why: str, cause: str) -> None:
    reward = told(CodeTests(seconds=0.5, total=60.0), fenced(program), tests=SUMS)
    assert reward.value == 0.0 and why in reward.why and reward.cause == cause, reward


def test_a_fraction_counts_the_tests_that_passed() -> None:
    reward = told(CodeTests("fraction", total=60.0), fenced("a, b = map(int, input().split())\nprint(a + b if a > 0 else 'x')"), tests=SUMS)  # fmt: skip
    assert reward.value == 0.75 and reward.why.startswith("3 of 4 tests passed; test 3") and reward.answer


def test_functions_are_called_with_json(judge: CodeTests) -> None:
    two_sum = "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        seen = {}\n        for i, n in enumerate(nums):\n            if target - n in seen:\n                return [seen[target - n], i]\n            seen[n] = i"  # fmt: skip
    tests = [{"input": [[2, 7, 11], 9], "output": [0, 1]}, {"input": {"nums": [3, 3], "target": 6}, "output": [0, 1]}]
    for name in ("twoSum", "Solution.twoSum"):
        assert told(judge, fenced(two_sum), tests=tests, function=name).value == 1.0
    assert told(judge, fenced("def twoSum(nums, target): return (0, 1)"), tests=tests, function="twoSum").value == 1.0
    assert told(judge, fenced("def twoSum(nums, target): return [0, True]"), tests=tests, function="twoSum").value == 0.0  # fmt: skip
    assert told(judge, fenced("def other(): pass"), tests=tests, function="twoSum").value == 0.0
    flip = [{"input": [[1, 2, 3]], "output": [3, 2, 1]}]
    assert told(judge, fenced("def flip(x): x.reverse()"), tests=flip, function="flip", inplace=0).value == 1.0


def test_no_cheat_is_rewarded_and_the_control_is(judge: CodeTests) -> None:
    given = judge.cheats()
    assert given.pop("control") == 1.0 and len(given) >= 12
    assert set(given.values()) == {0.0}, given


def test_the_hunter_finds_what_is_there(judge: CodeTests) -> None:
    """The cheat that searches memory must be able to: here what is expected is among the arguments."""
    secret = hostile.MARK + "a" * 32
    for program in (hostile.HUNT, hostile.FILES.replace('return "nothing"', "return n")):
        assert told(judge, fenced(program), tests=[{"input": [secret], "output": secret}], function="solve").value == 1.0  # fmt: skip


def test_a_judge_that_rewards_a_cheat_refuses_to_judge(monkeypatch: pytest.MonkeyPatch, judge: CodeTests) -> None:
    monkeypatch.setattr("rewarders.code._honest", [])
    monkeypatch.setitem(hostile.CHEATS, "is told", "def solve(n): return n")
    monkeypatch.setattr("rewarders.code.same_value", lambda found, *_: found == 1 or type(found) is list)
    with pytest.raises(SandboxError, match="is told"):
        CodeTests()(sample(fenced(ADD), None, metadata={"tests": SUMS}))


@pytest.mark.slow
@pytest.mark.parametrize("language", [n for n, row in LANGUAGES.items() if row.control])
def test_other_languages_compile_once_and_run_for_each_test(language: str) -> None:
    row = LANGUAGES[language]
    judge = CodeTests(language=language, seconds=10.0, total=100.0, compile_seconds=60.0)
    if shutil.which(row.needs, path=SEARCH) is None:
        with pytest.raises(MessageError, match=f"there is no {row.needs} on this machine"):
            told(judge, fenced(row.control, row.tags[0]), tests=SUMS[:3])
        return
    assert told(judge, fenced(row.control, row.tags[0]), tests=SUMS[:3]).value == 1.0
    broken = told(judge, fenced("this is no program {{{", row.tags[0]), tests=SUMS[:3])
    assert broken.value == 0.0
    if row.compile:
        assert "does not compile" in broken.why


def test_a_language_of_ones_own_is_a_row(judge: CodeTests) -> None:
    own = CodeTests(language="shell", languages={"shell": {"source": "a.sh", "run": ["sh", "a.sh"], "tags": ["sh"]}})
    assert told(own, fenced("read a b; echo $((a + b))", "sh"), tests=SUMS).value == 1.0
    with pytest.raises(MessageError, match="did you mean 'source'"):
        language_table({"shell": {"sorce": "a.sh"}})


def test_faulty_programs_are_repaired_by_file_diff_or_blocks(judge: CodeTests) -> None:
    faulty = "a, b = map(int, input().split())\nprint(a - b)\n"
    diff = (
        "--- a/main.py\n+++ b/main.py\n@@ -1,2 +1,2 @@\n a, b = map(int, input().split())\n-print(a - b)\n+print(a + b)"
    )
    swap = "<<<<<<< SEARCH\nprint(a - b)\n=======\nprint(a + b)\n>>>>>>> REPLACE"
    for text in (fenced(ADD), fenced(diff, "diff"), fenced(swap, ""), f"<think>x</think>{swap}"):
        assert told(judge, text, tests=SUMS, program=faulty).value == 1.0, text
    gone = told(judge, fenced(swap.replace("a - b", "a * b"), ""), tests=SUMS, program=faulty)
    assert gone.value == 0.0 and "the patch does not apply" in gone.why


def test_limits_of_the_task_hold_and_slack_widens_them() -> None:
    slow = "import time\nt = time.process_time()\nwhile time.process_time() - t < 0.6: pass\n" + ADD
    assert told(CodeTests(total=60.0), fenced(slow), tests=SUMS[:1], time_limit=0.2).cause == "timeout"
    assert told(CodeTests(total=60.0, slack=10.0), fenced(slow), tests=SUMS[:1], time_limit=0.2).value == 1.0
    big = "x = bytearray(300 << 20)\n" + ADD
    assert told(CodeTests(total=60.0), fenced(big), tests=SUMS[:1], memory_limit=64).value == 0.0
    assert told(CodeTests(total=60.0), fenced(big), tests=SUMS[:1], memory_limit=600).value == 1.0


def test_a_submission_ends_within_its_total() -> None:
    reward = told(CodeTests(seconds=5.0, total=1.5), fenced("import time\ntime.sleep(1)\n" + ADD), tests=SUMS)
    assert reward.value == 0.0 and reward.cause == "timeout"


def test_samples_without_tests_are_abstained_on_and_tests_of_no_use_are_errors(judge: CodeTests) -> None:
    assert judge(sample(fenced(ADD), "4")) is None and judge(sample(fenced(ADD), None)) is None
    assert judge(sample(fenced(ADD), '{"a": 1}')) is None
    for tests in ([{"in": 1}], [{"input": 5, "output": "x"}], "nonsense", {"inputs": ["a"], "outputs": []}):
        with pytest.raises(MessageError):
            told(judge, fenced(ADD), tests=tests)
    with pytest.raises(MessageError, match=r"no language 'pythn'.*python"):
        told(judge, fenced(ADD), tests=SUMS, language="pythn")
    with pytest.raises(MessageError, match=r"checker is 'token'.*tokens"):
        told(judge, fenced(ADD), tests=SUMS, checker="token")
    with pytest.raises(MessageError, match="only Python programs are called"):
        told(judge, fenced(ADD), tests=[{"input": [1], "output": 1}], function="f", language="cpp")


def test_tests_are_read_as_data_sets_write_them() -> None:
    one = Task((Case("1 2", "3"),))
    forms: list[dict[str, Any]] = [
        {"tests": [{"input": "1 2", "output": "3"}]},
        {"test_cases": [{"input": "1 2", "output": "3", "type": "stdin_stdout"}]},
        {"inputs": ["1 2"], "outputs": ["3"]},
        {"tests": {"inputs": ["1 2"], "outputs": ["3"]}},
        {"tests": json.dumps([{"input": "1 2", "output": "3"}])},
    ]
    for form in forms:
        assert read_task(sample("", None, metadata=form)) == one
        assert read_task(sample("", json.dumps(form))) == one
    assert read_task(sample("", json.dumps(forms[0]["tests"]))) == one
    called = read_task(sample("", None, metadata={"inputs": ["[1]\n9", [[1], 9]], "outputs": [0, 0], "fn_name": "f"}))
    assert called == Task((Case([[1], 9], 0), Case([[1], 9], 0)), function="f")
    limits = read_task(
        sample("", None, metadata={"tests": [{"input": "a", "output": "b", "time_limit": 3}], "memory_limit": 9})
    )
    assert limits is not None and (limits.cases[0].seconds, limits.cases[0].memory_mb) == (3, 9)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\nthen\n```python\nb\n```", "b\n"),
        ("<think>```python\na\n```</think>none", None),
        ("<think>```python\na\n```", None),
        ("```python\na\n```\n```\noutput\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("```text\na\n```", "a\n"),
        ("```python\na", None),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("~~~py\na\n~~~", "a\n"),
        ("<answer>\nprint(1)\n</answer>", "\nprint(1)\n"),
        ("<answer>\n```python\nb\n```\n</answer>", "b\n"),
        ("print(1)", None),
        ("```python\n\n```", None),
        ("```python\n" + "x" * 300000 + "\n```", None),
    ],
)
def test_the_program_is_the_last_block_of_its_language_behind_the_thought(response: str, program: str | None) -> None:
    assert program_of(response, ("python", "py"), ("cpp",)) == program


def test_lines_that_are_nearly_fences_are_read_in_time() -> None:
    started = time.process_time()
    lines = ["~" * 2000 + "`", "~~~" + " " * 2000 + "`", "`" * 2000 + "~`", "~~~" + "x" * 2000 + "`"]
    assert list(blocks("\n".join(lines))) == []
    assert time.process_time() - started < 1.0
    both = "~~~ \tpython  x=1\nA\n~~~\n````{.py} a b\n1\n`````  "
    assert [block.tag for block in blocks(both)] == ["python", "py"]


def test_functions_find_the_names_that_they_mention_and_builtins_stay() -> None:
    program = (
        "def f(n):\n    return pow(3, n, 7), Counter('a'), gcd(4, 6), deque(), math.pi, List, random.random(), cache"
    )
    lines = prelude_of(program).splitlines()
    assert set(lines) == {
        "import math", "import random", "from collections import Counter", "from collections import deque", "from functools import cache",
        "from math import gcd", "from math import pi", "from typing import List",
    }  # fmt: skip
    assert imported("import os, sys.path\n  from a.b import c\nimport numpy as np\nx = 'import y'") == {
        "os",
        "sys",
        "a",
        "numpy",
    }


def test_patches_apply_exactly_or_not_at_all() -> None:
    program = "".join(f"line {n}\n" for n in range(20))
    diff = "@@ -3,3 +3,3 @@\n line 5\n-line 6\n+LINE 6\n line 7\n@@ -15,1 +15,2 @@\n line 15\n+more\n"
    assert patched(program, fenced(diff, "diff"), ("python",)) == program.replace("line 6\n", "LINE 6\n").replace("line 15\n", "line 15\nmore\n")  # fmt: skip
    for broken in (diff.replace("line 7", "line 8"), "no hunk at all"):
        with pytest.raises(NoPatch):
            patched(program, fenced(broken, "diff"), ("python",))
    twice = "<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE"
    for program, why in (("x\nx\n", "2 times"), ("z\n", "0 times")):
        with pytest.raises(NoPatch, match=why):
            patched(program, twice, ("python",))
    with pytest.raises(NoPatch, match="no end"):
        patched("x\n", "<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n<<<<<<< SEARCH\n", ("python",))
    assert patched("x", twice, ("python",)) == "y\n"
    assert patched("x", "nothing", ("python",)) is None


@pytest.mark.parametrize(
    ("found", "expected", "checker", "tolerance", "right"),
    [
        ("1 \n2\n\n", "1\n2", "lines", 0, True), ("1  2", "1 2", "lines", 0, False), ("1  2\n3", "1 2 3", "tokens", 0, True),
        ("1\n", "1", "exact", 0, False), ("2\n1", "1\n2", "unordered", 0, True), ("1\n1", "1", "unordered", 0, False), ("1", "1 2 3", "tokens", 0, False),
        ("1 2 3 4", "1 2 3", "tokens", 0, False), ("", "1", "tokens", 0, False), ("0.333333", "0.333334", "tokens", 1e-5, True),
        ("0.34", "0.333334", "tokens", 1e-5, False), ("nan", "1", "tokens", 1e9, False), ("inf", "1", "tokens", 1e9, False), ("1e400", "1", "tokens", 1e9, False),
        ("1000000.5 yes", "1000000 yes", "lines", 1e-6, True), ("1 no", "1 yes", "lines", 1e-6, False), ("1\n2", "1 2", "lines", 1e-6, False),
        ("PASS", "7", "tokens", 0, False),
    ],
)  # fmt: skip
def test_texts_are_compared_as_asked(found: str, expected: str, checker: str, tolerance: float, right: bool) -> None:
    assert same_text(found, expected, checker, tolerance) is right


@pytest.mark.parametrize(
    ("found", "expected", "checker", "tolerance", "right"),
    [
        (1, 1, "lines", 0, True), (True, 1, "lines", 0, False), (1, True, "lines", 1, False), (1.0, 1, "lines", 0, False), (1.0, 1, "lines", 1e-9, True),
        ([1, 2], [1, 2], "lines", 0, True), ([1], [1, 2, 3], "lines", 0, False), ([1, 2, 3, 4], [1, 2, 3], "lines", 0, False), ([2, 1], [1, 2], "unordered", 0, True),
        ([[2, 1]], [[1, 2]], "unordered", 0, False), ({"a": 1}, {"a": 1}, "lines", 0, True), ({"a": 1, "b": 2}, {"a": 1}, "lines", 0, False),
        ("1", 1, "lines", 0, False), (None, False, "lines", 0, False), ([], None, "lines", 0, False), (float("nan"), 1.0, "lines", 1e9, False),
        (10**400, 1.0, "lines", 1e-6, False), ([0.1 + 0.2], [0.3], "lines", 1e-9, True), (0, False, "unordered", 0, False),
    ],
)  # fmt: skip
def test_values_are_compared_by_exact_type_and_count(found: Any, expected: Any, checker: str, tolerance: float, right: bool) -> None:  # fmt: skip
    assert same_value(found, expected, checker, tolerance) is right


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=400), st.text(alphabet=" \n`~<>=@+-#:()[]{}'\"\\\0abcprintx19\ud800", max_size=200)))
def test_any_program_gets_a_verdict(judge: CodeTests, text: str) -> None:
    quick = CodeTests(seconds=0.5, total=20.0)
    for response in (text, fenced(text)):
        reward = quick(sample(response, None, metadata={"tests": SUMS[:1]}))
        assert reward is not None and reward.value in (0.0, 1.0)


@given(st.text(alphabet=" \n`~<>=@+-,13abSEARCHREPLACEdiff/thinkanswer", max_size=600), st.text(max_size=50))
def test_any_text_is_read_and_compared(text: str, program: str) -> None:
    list(blocks(text))
    program_of(text, ("python",), ("cpp",))
    for checker in ("exact", "lines", "tokens", "unordered"):
        assert same_text(text, text, checker, 0.1)
    try:
        assert isinstance(patched(program, text, ("python",)), str | None)
    except NoPatch as error:
        assert str(error)


def test_hostile_texts_are_read_in_time(judge: CodeTests) -> None:
    for text in ("```\n" * 50000, "`" * 500000, "<<<<<<< SEARCH\n" * 20000, "@@ -1 +1 @@\n" * 20000, "a " * 500000):
        assert told(judge, text, tests=SUMS, program="x = 1\n").value == 0.0


def test_options_are_checked_by_name() -> None:
    with pytest.raises(HeadraceError, match="did you mean 'checker'"):
        load_rewarder("rewarders.code:CodeTests", {"cheker": "tokens"}, Path())
    with pytest.raises(HeadraceError, match="reward is 'some'"):
        load_rewarder("rewarders.code:CodeTests", {"reward": "some"}, Path())


def test_a_rewarder_without_a_sandbox_refuses_and_says_why_until_there_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    (tmp_path / "shaky.py").write_text(
        "import os\nfrom broker.sandbox import SandboxError\nclass Shaky:\n    def __call__(self, sample): return 1.0\n"
        f"    def prepare(self):\n        if not os.path.exists({str(tmp_path / 'sound')!r}): raise SandboxError('it leaks')\n"
    )
    metrics, seen = RewarderMetrics(CollectorRegistry(), "code"), []

    class Watched(Stop):
        def wait(self, seconds: float) -> bool:
            seen.append((seconds, metrics.degraded._value.get()))
            (tmp_path / "sound").touch()
            return bool(self)

    table = RewarderTable(use="shaky.py:Shaky")
    assert await_ready("code", table, tmp_path, metrics, Watched(), again=7.0)
    assert seen == [(7.0, 1.0)] and metrics.degraded._value.get() == 0.0
    assert "rewarder code takes no samples: it leaks" in caplog.text
    (tmp_path / "sound").unlink()
    stop = Watched()
    stop.set()
    assert not await_ready("code", table, tmp_path, metrics, stop)


def test_the_judge_itself_refuses_where_the_sandbox_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sandbox.selftest._passed", False)
    monkeypatch.setattr(session_module, "place", lambda: Place("/bin/false", "/usr/bin/python3", True))
    with pytest.raises(SandboxError, match="does not start"):
        CodeTests()(sample(fenced(ADD), None, metadata={"tests": SUMS}))
