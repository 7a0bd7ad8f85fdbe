"""Replaces itself with another program, which is killed when its parent dies: ``python -m broker.kafka.guard PROGRAM ARGUMENTS``."""

from __future__ import annotations

import os
import sys

from monitoring.daemon import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
