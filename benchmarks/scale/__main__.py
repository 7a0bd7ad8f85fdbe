"""``python -m benchmarks.scale [STEPS ...]``: CPU seconds and memory of the commands that read a run, on logs of these many steps."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.scale.logs import Maker, Shape

STEPS = (50, 200, 800)


def measured(run: Path, *command: str, stop_at: str = "") -> tuple[float, float]:
    """CPU seconds and peak MB of a headrace command; with ``stop_at`` it is ended once it has printed that."""
    read, write = os.pipe()
    arguments = [sys.executable, "-m", "headrace", command[0], str(run), *command[1:]]
    if command[0] == "broker":
        arguments = [sys.executable, "-m", "headrace", "broker", command[1], str(run), *command[2:]]
    process = subprocess.Popen(arguments, stdout=write if stop_at else subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    if stop_at:
        with os.fdopen(read) as out:
            for line in out:
                if stop_at in line:
                    process.send_signal(signal.SIGTERM)
                    break
            out.read()
    else:
        os.close(read)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in ((0, 1) if command[0] == "doctor" else (0,)), (
        f"{command} ended with {process.returncode}"
    )
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def commands(last: int) -> dict[str, tuple[tuple[str, ...], str]]:
    """What is measured, in this order; the text is what ends it."""
    export = ("export", "--to", "tensorboard")
    return {
        "broker tail, trajectories": (("broker", "tail", "--topic", "trajectories", "--count", "5"), ""),
        "trace of the last step": (("trace", str(last)), ""),
        "trace of a step in the middle": (("trace", str(last // 2)), ""),
        "top --once, all views": (("top", "--once", "--view", "overview", "--view", "steps", "--view", "samples"), ""),
        "timeline of the last step": (("timeline", "--steps", str(last)), ""),
        "timeline of the last 10 steps": (("timeline", "--steps", f"{last - 9}-{last}"), ""),
        "doctor": (("doctor",), ""),
        "broker trim --dry-run": (("broker", "trim", "--dry-run", "--keep-steps", "10"), ""),
        "export": (export, ""),
        "export --follow, behind an export": ((*export, "--follow"), "and what comes"),
        "report": (("report",), ""),
        "verify": (("verify",), ""),
        "verify --seal, the first": (("verify", "--seal"), ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", type=int, default=STEPS)
    parser.add_argument("--samples", type=int, default=Shape().samples)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    for steps in options.steps:
        with tempfile.TemporaryDirectory() as home:
            run, maker = Path(home) / "run", Maker(Path(home) / "run", Shape(samples=options.samples))
            maker.steps(steps)
            maker.checkpoint()
            for name, (command, stop_at) in commands(steps).items():
                found.setdefault(name, []).append(measured(run, *command, stop_at=stop_at))
                print(steps, name, *found[name][-1], file=sys.stderr, flush=True)
            maker.steps(5)
            name = "verify --seal, 5 steps later"
            found.setdefault(name, []).append(measured(run, "verify", "--seal"))
            maker.close()
    nothing = measured(Path("--help"), "verify")
    print("| CPU s / peak MB | " + " | ".join(f"{n} steps" for n in options.steps) + " |")
    print("|---|" + "---|" * len(options.steps))
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{cpu:.2f} / {peak:.0f}" for cpu, peak in values) + " |")
    print(f"| a command that does nothing | {nothing[0]:.2f} / {nothing[1]:.0f} |")
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
