"""Files that are written in one go."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write ``path`` in one go: a reader, or a start after a kill, finds the old text or the new one; of two writers the later holds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
