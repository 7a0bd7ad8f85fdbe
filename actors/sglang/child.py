"""Runs a command that ends with its parent: ``python -m actors.sglang.child PARENT COMMAND...``. SGLang has no such switch."""

from __future__ import annotations

import os
import sys

from monitoring.daemon import die_with_parent


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # the order to end with the parent stays


if __name__ == "__main__":
    main()
