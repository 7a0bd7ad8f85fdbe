"""Writes every dashboard as JSON beside this file."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.dashboards import actors, learner, log, rewarders, ring, sglang

HERE = Path(__file__).resolve().parent
MODULES = (ring, learner, actors, rewarders, log, sglang)


def texts() -> dict[str, str]:
    """File name -> JSON of each dashboard."""
    return {
        f"{module.__name__.rpartition('.')[2]}.json": JSONEncoder(indent=1).encode(module.dashboard().build()) + "\n"
        for module in MODULES
    }


if __name__ == "__main__":
    for name, text in texts().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(HERE / name)
