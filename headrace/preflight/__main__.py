"""``python -m headrace.preflight FILE``: makes all checks, and prints the findings of each as one line of JSON.

The checks need a separate process because data sources and rewarders are third-party code, which may hang or end the
process. With one line for each check, earlier findings are kept if that happens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from broker.runfile import RunFile
from headrace.preflight.checks import CHECKS, name_of
from headrace.preflight.subject import Subject
from headrace.running.runfile import check
from monitoring.daemon import die_with_parent
from monitoring.garbage import end_unsearched


def main(argv: Sequence[str] | None = None) -> int:
    die_with_parent()
    end_unsearched()
    parser = argparse.ArgumentParser(prog="headrace.preflight")
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--thorough", action="store_true")
    options = parser.parse_args(argv)
    out, sys.stdout = sys.stdout, sys.stderr  # stdout is for findings only, not for what plug-ins print
    subject = Subject(check(RunFile.read(options.file, options.overrides)), options.thorough)
    for look in CHECKS:
        found = [asdict(finding) for finding in look(subject)]
        print(json.dumps({"check": name_of(look), "findings": found}), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
