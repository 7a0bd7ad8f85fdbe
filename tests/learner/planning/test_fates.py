"""The page of fates says what the code says: one list, and everybody who ends a group takes the reason from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from headrace.reading.audit import Audit
from headrace.reading.elsewhere import FATES
from learner.planning.fates import Fate, Reason, fate_of, reason_of

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "fates.md").read_text()


def rows(heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_the_page_has_each_fate_and_each_reason_and_no_other() -> None:
    assert rows("Fates") == [str(fate) for fate in Fate]
    assert rows("Reasons") == [str(reason) for reason in Reason]


def test_the_audit_counts_each_fate() -> None:
    assert set(FATES.values()) | {reason.fate for reason in Reason} == set(Fate)
    assert all(getattr(Audit(), fate) == 0 for fate in Fate)


def test_a_reason_in_a_record_has_its_fate_also_where_it_is_not_known() -> None:
    assert fate_of("dead_letter") is Fate.DEAD_LETTERED and fate_of("rejected: too long") is Fate.DROPPED
    assert reason_of("rejected: too long") is Reason.REJECTED and reason_of("of tomorrow") is None
    assert fate_of("of tomorrow") is Fate.DROPPED


@pytest.mark.parametrize("room", ["planning", "stages", "training"])
def test_whoever_ends_a_group_takes_the_reason_from_the_list(room: str) -> None:
    literal = []
    for path in sorted((ROOT / "learner" / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) >= 2:
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in ("Dropped", "_drop") and isinstance(node.args[1], ast.Constant):
                    literal.append(f"{path.name}:{node.lineno}")
    assert literal == []
