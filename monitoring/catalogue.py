"""docs/metrics.md: every metric that daemons serve, from the rows that declare them. ``python -m monitoring.catalogue`` writes it."""

from __future__ import annotations

from pathlib import Path

from monitoring.metrics import ROLES
from monitoring.rows import PREFIX, Metrics, Row

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
HEAD = f"""# Metrics

Every daemon serves its metrics for Prometheus; all names begin with `{PREFIX}`. Counters end in `_total`, histograms have `_bucket`, `_sum`
and `_count`. A *key* is the name that the value has in the result of a step, in the log's `steps` topic; a star stands for the label. Where a metric may be absent or zero in
a sound run, the last column says why. This page is made from the declarations in `monitoring/metrics.py` (`python -m monitoring.catalogue`).
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for kind in dict.fromkeys(kind for kinds in ROLES.values() for kind in kinds):
        roles = [role for role, kinds in ROLES.items() if kind in kinds]
        parts.append(_table(kind, roles))
    return "\n".join(parts)


def _table(kind: type[Metrics], roles: list[str]) -> str:
    summary = (kind.__doc__ or "").partition("\n")[0]
    lines = [
        f"## {summary.rstrip('.')} ({', '.join(roles)})",
        "",
        "| name | type | labels | key | what | may be zero |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row) for _, row in kind.rows()), ""])


def _line(row: Row[object]) -> str:
    name = f"{row.name}_total" if row.type == "counter" else row.name
    key = f"`{row.key}`" if row.key else ""
    cells = (f"`{name}`", row.type, ", ".join(row.labels), key, row.help, row.may_be_zero)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
