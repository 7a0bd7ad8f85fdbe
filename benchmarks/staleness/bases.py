"""The base models that experiments begin from: the first stage of recipes/tiny.toml as it stands, once for each seed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from hashlib import sha256
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "runs" / "staleness"


def base(seed: int) -> Path:
    """The checkpoint of base ``seed``; trained now if it is not there yet (about a minute)."""
    home = HOME / f"base-{seed}"
    found = home / "run" / "checkpoints" / "stage-0-base"
    if not found.exists():
        tables = tomllib.loads((ROOT / "recipes" / "tiny.toml").read_text())
        tables["run"] |= {"model": str(ROOT / "recipes" / "tiny_model"), "seed": seed}
        tables["stage"] = [tables["stage"][0] | {"threads": 1}]  # sums in another order would make another base
        home.mkdir(parents=True, exist_ok=True)
        (home / "base.toml").write_text(tomli_w.dumps(tables))
        command = [sys.executable, "-m", "learner", str(home / "base.toml"), "--dir", str(home / "run")]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return found


def fingerprint(seed: int) -> str:
    """What the weights of base ``seed`` are: results of one base are compared with those of the same weights alone."""
    return sha256((base(seed) / "model.safetensors").read_bytes()).hexdigest()[:12]
