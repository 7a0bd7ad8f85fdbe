"""``python -m broker.sqlite.vacuum DIRECTORY``: rewrite the files of an embedded log that an older version made, so
that they can return free space to the disk. Stop the run first; needs as much free disk as the largest file takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from broker.errors import HeadraceError
from broker.sqlite.files import LockedFile


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m broker.sqlite.vacuum", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="RUN/log")
    options = parser.parse_args(argv)
    for path in sorted(options.directory.glob("*.sqlite")):
        before = path.stat().st_size
        try:
            file = LockedFile(path)
            file.vacuum()
            file.close()
        except HeadraceError as error:
            print(f"fault: {error}", file=sys.stderr)
            return 3
        print(f"{path}: {before / 2**20:.1f} -> {path.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
