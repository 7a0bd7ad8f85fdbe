"""``CodeTests``: does a program pass the hidden tests? It runs in a sandbox; the expected results never enter it.

It tests programs that read and print text, functions that are called, and patches of a given program. Python programs
run in a warm interpreter; other languages are rows in a table of commands (``languages``).
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from broker.errors import MessageError
from broker.isolation import Failed
from broker.messages import Trajectory
from broker.sandbox import Gone, Limits, Result, Sandbox, SandboxError, Session
from broker.sandbox.command import SEARCH
from broker.sandbox.selftest import must_hold
from rewarders.code import hostile
from rewarders.code.checking import known_checker, same_text, same_value
from rewarders.code.extract import NoPatch, patched, program_of
from rewarders.code.languages import Language, language_of, language_table
from rewarders.code.prelude import imported, prelude_of
from rewarders.code.task import Case, Task, read_task
from rewarders.rewarder import Reward

MODES = ("all", "fraction")
_honest: list[bool] = []  # not empty once this process has checked that no cheat is rewarded


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one test. ``fault`` is empty if it passed; ``put_out`` is what the program printed or returned."""

    fault: str = ""
    cause: str = ""
    put_out: bytes = b""


@dataclass(frozen=True)
class CodeTests:
    """1 if the program of a response passes every hidden test of its prompt (``reward = "all"``), else 0; or the share
    of tests that it passes (``"fraction"``). Abstains if the prompt has no tests.

    Defaults for tasks that set none: ``language``; ``seconds`` of processor time and ``memory`` (MiB) for a test;
    ``checker`` and ``tolerance`` (see ``checking``). A task's own time limit is multiplied by ``slack``, because such
    limits are often meant for C++.

    ``total`` limits a submission in seconds on the clock: keep it below the worker's timeout. ``compile_seconds`` are
    processor time; ``output_kb`` (KiB) and ``disk_mb`` (MiB) limit output and files. Programs can read the ``readonly``
    paths and the ``packages`` (directories of Python packages). ``languages`` adds rows to the table.

    Raises SandboxError if the sandbox cannot be trusted, MessageError for tests that cannot be used, Failed if the
    machine was too busy to tell.
    """

    reward: str = "all"
    language: str = "python"
    seconds: float = 2.0
    memory: int = 256
    total: float = 8.0
    slack: float = 1.0
    checker: str = "lines"
    tolerance: float = 0.0
    compile_seconds: float = 10.0
    output_kb: int = 1024
    disk_mb: int = 64
    readonly: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    languages: Mapping[str, Any] = field(default_factory=dict)
    _table: dict[str, Language] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sound: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reward not in MODES:
            raise MessageError(f"reward is {self.reward!r}; it must be one of {MODES}")
        known_checker(self.checker)
        self._table.update(language_table(self.languages))
        language_of(self.language, self._table)

    def prepare(self) -> None:
        """Test the sandbox, and this judge with programs that try to cheat, once per process and before any sample.

        Raises SandboxError, which names the failed test.
        """
        must_hold()
        if _honest:
            return
        rewarded = [name for name, value in CodeTests().cheats().items() if value != (name == "control")]
        if rewarded:
            raise SandboxError(f"the judge of programs fails its self-test: {', '.join(rewarded)}")
        _honest.append(True)

    def cheats(self) -> dict[str, float]:
        """The rewards of the control and of each program that tries to cheat, by name."""
        python, secret = self._table["python"], hostile.MARK + secrets.token_hex(16)
        task = Task((Case([1], secret),), function=hostile.FUNCTION, checker="exact", tolerance=0.0)
        right = Task((Case([3], [4, {"half": 1.5}, "3", True, None]),), function=hostile.FUNCTION, checker="exact")
        with ThreadPoolExecutor(4) as pool:
            given = pool.map(lambda source: self._judge(source, python, task, True).value, hostile.CHEATS.values())
            control = self._judge(hostile.CONTROL, python, right, True).value
            return {"control": control, **dict(zip(hostile.CHEATS, given, strict=True))}

    def __call__(self, sample: Trajectory) -> Reward | None:
        task = read_task(sample)
        if task is None:
            return None
        self.prepare()
        language = self._language(task)
        others = [tag for row in self._table.values() if row is not language for tag in row.tags]
        try:
            if task.program is None:
                program = program_of(sample.text, language.tags, others)
            else:
                program = patched(task.program, sample.text, language.tags, others)
        except NoPatch as fault:
            return Reward(0.0, f"the patch does not apply: {fault}")
        if program is None:
            return Reward(0.0, "no program")
        try:
            return self._judge(program, language, task, final=False)
        except Gone:  # programs cannot end it from inside; once may be the machine's fault
            return self._judge(program, language, task, final=True)

    def _language(self, task: Task) -> Language:
        language = language_of(task.language or self.language, self._table)
        if task.function and language.run:
            raise MessageError(f"function {task.function!r}: only Python programs are called, not {task.language}")
        if language.needs and not language.needs.startswith("./") and not shutil.which(language.needs, path=SEARCH):
            raise MessageError(f"there is no {language.needs} on this machine for programs in {task.language}")
        known_checker(task.checker or self.checker)
        if language.control and language.source not in self._sound:
            case = Case("40 2", "42")
            told = self._judge(
                language.control, language, replace(task, cases=(case,), function="", checker="tokens"), True
            )
            if told.value != 1.0:
                raise SandboxError(
                    f"programs in {task.language or self.language} do not run in the sandbox: {told.why}"
                )
            self._sound.add(language.source)
        return language

    def _judge(self, program: str, language: Language, task: Task, final: bool) -> Reward:
        begun = time.monotonic()
        limits = self._limits(task.cases[0], language)
        prelude = prelude_of(program) if task.function else ""
        preload = (
            imported(f"import json\n{prelude}\n{program}" if task.function else program) if not language.run else ()
        )
        with Sandbox(limits, self.readonly, self.packages).open(preload) as session:
            session.write({language.source: program.encode("utf-8", "replace")})
            if language.compile:
                fault = self._compile(session, language)
                if fault is not None:
                    return fault
            return self._tests(session, language, replace(task, prelude=prelude), begun, final)

    def _tests(self, session: Session, language: Language, task: Task, begun: float, final: bool) -> Reward:
        passed, waited, first, given = 0, 0.0, None, hashlib.sha256()
        for place, case in enumerate(task.cases):
            left = self.total - (time.monotonic() - begun)
            if left <= 0:
                if waited > self.total / 2:
                    raise Failed("timeout", f"the machine is too busy: {waited:.1f} of {self.total:g} s were spent waiting for a processor")  # fmt: skip
                first = first or (place, Verdict(f"all tests together took more than {self.total:g} s", "timeout"))
                break
            limits = self._limits(case, language)
            limits = replace(limits, wall=min(limits.wall_seconds, left))
            try:
                result = self._run(session, language, task, case, limits)
            except Gone:
                if first is None:
                    raise
                break
            if result.status is None and result.cause == "killed" and not final:
                raise Gone(result.why)
            waited += result.delay
            verdict = self._verdict(result, task, case)
            given.update(verdict.put_out)
            if not verdict.fault:
                passed += 1
                continue
            first = first or (place, verdict)
            if self.reward == "all":
                break
        return self._reward(passed, len(task.cases), first, given.hexdigest()[:16])

    def _reward(self, passed: int, of: int, first: tuple[int, Verdict] | None, digest: str) -> Reward:
        if first is None:
            return Reward(1.0, f"all {of} tests passed", answer=digest)
        place, verdict = first
        value = passed / of if self.reward == "fraction" else 0.0
        why = f"{passed} of {of} tests passed; test {place + 1}: {verdict.fault}"
        return Reward(value, why[:500], answer=digest if self.reward == "fraction" else "", cause=verdict.cause)

    def _limits(self, case: Case, language: Language) -> Limits:
        seconds, memory = case.seconds * self.slack or self.seconds, case.memory_mb or self.memory
        return Limits(
            cpu=seconds, memory_mb=memory + language.extra_mb, disk_mb=max(self.disk_mb, language.disk_mb), output_kb=self.output_kb,
            processes=language.processes, address_space=language.address_space,
        )  # fmt: skip

    def _compile(self, session: Session, language: Language) -> Reward | None:
        limits = Limits(cpu=self.compile_seconds, memory_mb=1024, processes=language.processes, address_space=False)
        result = session.run(language.compile, limits=limits)
        if result.ok:
            return None
        said = result.why or (result.stderr or result.stdout).decode(errors="replace").strip()[:300]
        return Reward(0.0, f"it does not compile: {said}", cause=_cause(result))

    def _run(self, session: Session, language: Language, task: Task, case: Case, limits: Limits) -> Result:
        if task.function:
            return session.call(
                language.source, task.function, case.given, inplace=task.inplace, prelude=task.prelude, limits=limits
            )
        stdin = case.given.encode("utf-8", "replace")
        if 2 * len(stdin) > limits.disk_mb << 20:
            raise MessageError(f"an input has {len(stdin) >> 20} MiB: raise disk_mb to more than twice that")
        if language.run:
            return session.run(language.run, stdin, limits=limits)
        return session.python_file(language.source, stdin, limits=limits)

    def _verdict(self, result: Result, task: Task, case: Case) -> Verdict:
        put_out = result.value if task.function else result.stdout
        if result.cause:
            return Verdict(f"{result.cause}: {result.why}", _cause(result), put_out)
        if result.status != 0:
            said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return Verdict(f"exit status {result.status} {''.join(said)[:120]}".strip(), "", put_out)
        checker = task.checker or self.checker
        tolerance = self.tolerance if task.tolerance is None else task.tolerance
        try:
            if task.function:
                found: Any = json.loads(put_out)
                right = same_value(found, case.expected, checker, tolerance)
            else:
                found = put_out.decode("utf-8")
                right = same_text(found, case.expected, checker, tolerance)
        except (ValueError, RecursionError):
            return Verdict("it gives nothing that can be read", "", put_out)
        return Verdict("" if right else f"{str(found)[:60]!r} is not {str(case.expected)[:60]!r}", "", put_out)


def _cause(result: Result) -> str:
    """The cause as votes record it: what the program did to its judge."""
    return {"": "", "time": "timeout"}.get(result.cause, "killed")
