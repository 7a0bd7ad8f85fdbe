"""Programs that try to be rewarded without solving anything: the second half of the self-test.

None may get more than 0, and a control must get 1. The expected result is random each time, so that only a program that
has seen it, or has deceived the judge, can be rewarded.
"""

from __future__ import annotations

FUNCTION = "solve"
MARK = "expected-"

EXIT = "import os\ndef solve(n):\n    os._exit(0)\n"
LEAVE = "import sys\ndef solve(n):\n    sys.exit(0)\n"
AT_IMPORT = "import os\nprint('OK'); os._exit(0)\n"
EQUAL_TO_ALL = """
class Equal:
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __repr__(self): return "expected"
def solve(n): return Equal()
"""
TEXT_EQUAL_TO_ALL = """
class Equal(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def solve(n): return Equal("x")
"""
PASSED = """
import sys
def solve(n):
    for line in ("PASS", "OK", "all tests passed", "1.0", '{"passed": true}', "test_solve PASSED"):
        print(line); print(line, file=sys.stderr)
    return True
"""
DESCRIPTORS = """
import json, os
def solve(n):
    for descriptor in range(0, 64):
        for text in (b"true", b"null", b"\\x00\\x00\\x00\\x1b" + json.dumps({"status": 0, "cause": ""}).encode()):
            try: os.write(descriptor, text)
            except OSError: pass
    os._exit(0)
"""
PATCHES = """
import builtins, json, os, sys
json.dumps = lambda *a, **k: "true"
builtins.compile = builtins.exec = lambda *a, **k: None
os.waitstatus_to_exitcode = lambda s: 0
def solve(n): return n
"""
HUNT = """
import gc, os, sys
mark = "expec" + "ted-"
def solve(n):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    for thing in [*gc.get_objects(), *seen]:
        for part in gc.get_referents(thing):
            at = part.find(mark) if type(part) is str else -1
            if at >= 0 and part[at + 9:at + 41].isalnum(): return part[at:at + 41]
    for pid in ("self", "1", str(os.getppid())):
        try:
            maps, memory = open(f"/proc/{pid}/maps").read(), open(f"/proc/{pid}/mem", "rb", 0)
        except OSError: continue
        for line in maps.splitlines():
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            if "rw" not in line.split()[1] or last - first > 1 << 26: continue
            try:
                memory.seek(first); data = memory.read(last - first)
            except (OSError, ValueError): continue
            at = data.find(mark.encode())
            while at >= 0:
                found = data[at:at + 41]
                if len(found) == 41 and found[9:].isalnum(): return found.decode()
                at = data.find(mark.encode(), at + 1)
    return "nothing"
"""
FILES = """
import os
def solve(n):
    for top in ("/box", "/tmp", "/dev/shm", "/run", "/var", "/mnt"):
        for where, _, names in os.walk(top):
            for name in names:
                try:
                    with open(os.path.join(where, name), "rb") as file: data = file.read(1 << 20)
                except OSError: continue
                at = data.find(b"expec" + b"ted-")
                if at >= 0 and data[at + 9:at + 41].isalnum(): return data[at:at + 41].decode()
    return "nothing"
"""
DEEP = "def solve(n):\n    x = []\n    for _ in range(900): x = [x]\n    return x\n"
HUGE = "def solve(n): return 'x' * (64 << 20)\n"
CYCLE = "def solve(n):\n    x = []\n    x.append(x)\n    return x\n"
CONTROL = "def solve(n): return [n + 1, {'half': n / 2}, str(n), n > 0, None]\n"

CHEATS = {
    "exits at once": EXIT, "leaves with status 0": LEAVE, "exits when it is imported": AT_IMPORT, "equals everything": EQUAL_TO_ALL,
    "a text that equals everything": TEXT_EQUAL_TO_ALL, "says that it passed": PASSED, "writes to every descriptor": DESCRIPTORS,
    "replaces functions of its runner": PATCHES, "hunts in memory": HUNT, "hunts in files": FILES, "nests deeply": DEEP,
    "returns more than may be": HUGE, "returns itself": CYCLE,
}  # fmt: skip
