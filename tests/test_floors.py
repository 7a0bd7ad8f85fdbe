"""Imports go down only, and what must start quickly loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
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


@pytest.mark.parametrize(
    "module",
    [
        "broker",
        "rewarders.__main__",
        "rewarders.worker",
        "rewarders.math",
        "headrace.__main__",
        "headrace.runfile",
        "headrace.run",
    ],
)
def test_these_start_without_torch_and_sympy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'sympy', 'transformers', 'math_verify') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_modules_are_one_thought_long() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for floor in ALLOWED
        for p in (ROOT / floor).rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 430
    }
    assert not long
