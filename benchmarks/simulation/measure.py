"""Three runs, each with another role as the slowest: ``python -m benchmarks.simulation.measure DIRECTORY``. Some three minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = {
    "learner": (),
    "rewarder": ("rewarders.judge.seconds=0.03",),
    "actor": ("actors.slots=1",),
}
"""The settings by which a role becomes the slowest; as it stands, the learner is."""


def main() -> None:
    home = Path(sys.argv[1])
    for name, settings in RUNS.items():
        command = [
            sys.executable,
            "-m",
            "headrace",
            "run",
            str(HERE / "run.toml"),
            "--dir",
            str(home / name),
            "--plain",
        ]
        subprocess.run([*command, *(part for setting in settings for part in ("--set", setting))], check=True)


if __name__ == "__main__":
    main()
