"""Imports go down only, and what must start quickly loads no torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "monitoring": set(),
    "broker": {"monitoring"},
    "rewarders": {"broker", "monitoring"},
    "actors": {"broker", "monitoring"},
    "learner": {"broker", "monitoring"},
    "headrace": {"learner", "actors", "rewarders", "broker", "monitoring"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("floor", ALLOWED)
def test_imports_go_down_only(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        wrong = (imports(path) & ALLOWED.keys()) - ALLOWED[floor] - {floor}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


ROOMS = {
    "learner.planning": {"learner.training", "learner.serving", "learner.parallel", "learner.model"},
    "learner.losses": {"learner.planning", "learner.training", "learner.serving", "learner.parallel", "learner.model"},
    "learner.model": {"learner.planning", "learner.training", "learner.serving", "learner.parallel", "learner.losses"},
    "learner.training": {"learner.serving", "learner.parallel", "learner.stages"},
    "learner.serving": {"learner.parallel", "learner.stages"},
    "learner.data": {"learner.planning", "learner.training", "learner.serving", "learner.parallel", "learner.losses"},
    "headrace.reading": {"headrace.commands", "headrace.running", "headrace.doctor", "headrace.export"},
    "headrace.preflight": {"headrace.commands", "headrace.reading", "headrace.doctor", "headrace.export"},
    "headrace.simulation": {"headrace.commands", "headrace.preflight", "headrace.doctor", "headrace.export"},
    "headrace.serving": {"headrace.commands", "headrace.preflight", "headrace.running", "headrace.doctor"},
    "headrace.running": {"headrace.commands", "headrace.preflight", "headrace.doctor", "headrace.export"},
}
"""What the modules of a room may not import, at any depth of their own code."""


def named_by(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that import statements name, by their whole names; of ``from a import b`` also ``a.b``, which may be one."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imported(path: Path) -> set[str]:
    """The modules that a file imports, by their whole names; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    quiet: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            quiet.update(id(inner) for inner in ast.walk(node))
    return named_by(node for node in ast.walk(tree) if id(node) not in quiet)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_inside_a_floor_keep_their_order(room: str) -> None:
    files = list((ROOT / room.replace(".", "/")).rglob("*.py"))
    assert files
    for path in files:
        wrong = {m for m in imported(path) for other in ROOMS[room] if m == other or m.startswith(f"{other}.")}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_no_files_import_each_other_in_a_circle() -> None:
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p
        for floor in ALLOWED
        for p in (ROOT / floor).rglob("*.py")
    }
    graph = {name: imported(path) & names.keys() - {name} for name, path in names.items()}
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    left = dict(graph)
    while tops := {name for name in left if not any(name in needs for needs in left.values())}:
        left = {name: needs for name, needs in left.items() if name not in tops}
    assert not left, {name: sorted(needs & left.keys()) for name, needs in left.items()}


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    [
        "broker",
        "rewarders.__main__",
        "rewarders.worker",
        "rewarders.math",
        "headrace.__main__",
        "headrace.running.runfile",
        "headrace.commands.run",
    ],
)
def test_these_start_without_torch_and_sympy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'sympy', 'transformers', 'math_verify') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def modules(floor: str) -> list[str]:
    """Every module of a floor, by its dotted name."""
    return [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sorted((ROOT / floor).rglob("*.py"))]


@pytest.mark.long
def test_a_whole_floor_starts_without_torch() -> None:
    """Also what is imported late: a rewarder, the log and the command line never need torch."""
    wanted = [m for m in modules("rewarders") + modules("monitoring") if not m.endswith("__main__")]
    wanted += [m for m in modules("broker") if not m.startswith(("broker.weights.", "broker.kafka."))]
    wanted += [m for m in modules("headrace") if not m.endswith("__main__")]
    wanted += ["broker.weights.sink", "actors.__main__", "learner.__main__", "actors.config", "learner.config"]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {wanted}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


EXTRAS = {"kafka", "sglang", "lz4", "zstandard", "snappy"}
"""Packages that `make setup` does not install: the suites that need them install them."""


@functools.cache
def at_once(path: Path) -> set[str]:
    """The modules that a file imports when it is imported itself, by their whole names."""
    return named_by(ast.parse(path.read_text()).body)


@functools.cache
def ours(path: Path) -> list[tuple[str, Path]]:
    """Of the modules that a file imports at once: those that are files of ours, or helpers of the tests."""
    places = [
        (name, (home / name).with_suffix(".py")) for name in at_once(path) for home in (path.parent, ROOT / "tests")
    ]
    places += [(name, (ROOT / name.replace(".", "/")).with_suffix(".py")) for name in at_once(path)]
    return [(name, file) for name, file in places if file.exists()]


def extras_of(path: Path, seen: set[Path]) -> set[str]:
    """The extras that importing a file needs, also through files of ours and helpers of the tests."""
    seen.add(path)
    needed = {name for name in at_once(path) if name.partition(".")[0] in EXTRAS}
    for name, file in ours(path):
        if file not in seen:
            needed |= {f"{name}: {other}" for other in extras_of(file, seen)}
    return needed


@pytest.mark.long
def test_no_test_needs_an_extra_to_be_collected() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not (wrong := extras_of(path, set())), f"{path.relative_to(ROOT)} needs {wrong} when it is collected"


def test_a_floor_that_is_not_listed_is_not_ours() -> None:
    """Every folder with code stands on a floor, or beside the house."""
    beside = {"tests", "benchmarks", "recipes", "docs", "build", "dist", "runs"}
    found = {p.parent.name for p in ROOT.glob("*/*.py")} - beside
    assert found == ALLOWED.keys()


def test_the_page_says_the_same_floors() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for floor, allowed in ALLOWED.items():
        (said,) = [
            line.split("->")[1] for line in text.splitlines() if line.startswith(f"    {floor}/ ") and "->" in line
        ]
        if floor == "headrace":
            assert "everything below" in said
        else:
            assert {word for word in ALLOWED if word in said} == allowed, floor


def test_modules_are_one_thought_long() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for floor in ALLOWED
        for p in (ROOT / floor).rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 320
    }
    assert not long


LONG = {
    "open_learner": "it wires everything once, in the order in which it must happen",
    "_sampling": "a row of panels, one call",
    "_load": "a row of panels, one call",
}
"""Functions above fifty lines, and why."""


@pytest.mark.long
def test_no_function_is_longer_than_a_screen_without_a_reason() -> None:
    long = {}
    for floor in ALLOWED:
        for path in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                lines = (node.end_lineno or 0) - node.lineno + 1 if isinstance(node, ast.FunctionDef) else 0
                if lines > 50 and isinstance(node, ast.FunctionDef):
                    long[node.name] = f"{path.relative_to(ROOT)}: {lines} lines"
    assert long.keys() == LONG.keys(), long
