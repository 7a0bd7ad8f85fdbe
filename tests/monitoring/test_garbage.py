"""When Python looks for cycles of garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

from patience import HANG

from monitoring.garbage import loading

ENDS = """
import atexit
from monitoring.garbage import end_unsearched

class Found:
    def __del__(self):
        print("found")

end_unsearched()
atexit.register(lambda: print("an exit function"))
cycle = Found()
cycle.itself = cycle
del cycle
print("the end")
"""


def test_nothing_is_searched_while_libraries_are_loaded_and_then_as_before() -> None:
    assert gc.isenabled()
    with loading():
        assert not gc.isenabled()
        with loading():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_process_ends_with_its_exit_functions_and_without_a_last_search() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout.split("\n") == ["the end", "an exit function", ""]
