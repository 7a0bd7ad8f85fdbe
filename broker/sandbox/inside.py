"""The runner inside the sandbox: forks a process for every run, limits it, and sends back its output.

``session.py`` starts it with ``python -I -S`` as the first process of its namespace, which no other there can kill or
stop. It imports little, so that it starts quickly, and knows no secret: a program that breaks in learns only the inputs
of earlier tests. It is as untrusted as its programs. Orders come on descriptor 0, answers go to 1: a header's length (4
bytes, big-endian), the header (orders: marshal, from the trusted side; answers: JSON), the blobs whose sizes it names.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import marshal
import os
import resource
import select
import sys
import time
from _signal import SIG_DFL, SIGKILL, SIGXCPU, SIGXFSZ, signal  # type: ignore[import-not-found]

STDERR_BYTES = 4096  # of the end of standard error
VALUE = 3  # descriptor for the result of a called function


class Channel:
    """Frames over two descriptors that runs do not inherit."""

    def __init__(self, orders: int, answers: int) -> None:
        self.orders, self.answers = orders, answers

    def receive(self) -> tuple[dict | None, list[bytes]]:
        head = self._exactly(4)
        if head is None:
            return None, []
        header = marshal.loads(self._exactly(int.from_bytes(head, "big")) or b"")
        return header, [self._exactly(size) or b"" for size in header["blobs"]]

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            piece = os.read(self.orders, min(size - len(data), 1 << 20))
            if not piece:
                return None
            data += piece
        return bytes(data)

    def send(self, header: dict, *blobs: bytes) -> None:
        fields = [f'"{key}": {quoted(value)}' for key, value in header.items()]
        fields.append(f'"blobs": {[len(b) for b in blobs]}')
        text = ("{" + ", ".join(fields) + "}").encode()
        data = memoryview(b"".join([len(text).to_bytes(4, "big"), text, *blobs]))
        while data:
            data = data[os.write(self.answers, data) :]


def quoted(value: object) -> str:
    """A number or a text as JSON. Backslashes and quotes in the text are replaced, so that none has to be escaped."""
    return (
        '"' + ascii(value)[1:-1].replace("\\", "/").replace('"', "'") + '"' if isinstance(value, str) else repr(value)
    )


def main() -> dict | None:
    settings = marshal.loads(bytes.fromhex(sys.argv[1]))
    channel = Channel(os.dup(0), os.dup(1))
    drop(settings)  # errors up to here still reach the session, on stderr
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.argv = [""]
    sys.path += settings["packages"]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # which the site module would have defined
    for name in settings["preload"]:
        __import__(name)
    gc.collect()
    gc.freeze()
    channel.send({"ready": sys.version.split()[0]})
    while True:
        order, blobs = channel.receive()
        if order is None:
            return None
        try:
            if order["do"] == "write":
                write(order["names"], blobs)
                channel.send({})
                continue
            program = run(order, blobs[0], channel)
        except OSError as error:  # no disk, descriptor or process is left: earlier runs have used them up
            channel.send({"error": error.strerror or ""})
            continue
        if program is not None:
            return program  # this is the child: it runs the program from the bottom of its stack


def drop(settings: dict) -> None:
    """Change to the sandbox's own user, which has no privileges, and set the limits of the whole sandbox."""
    if settings["uid"]:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    else:  # as a change of user does: no other process may open this one's memory or descriptors
        import ctypes

        if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
            raise OSError("the runner cannot be made undumpable")
    os.umask(0o022)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))  # the soft limit of the parent is not for programs
    for kind, bound in (
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0), (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_SIGPENDING, 256),
        (resource.RLIMIT_NPROC, settings["processes"] + 1), (resource.RLIMIT_FSIZE, settings["disk"]),
    ):  # fmt: skip
        limit(kind, bound)
    signal(SIGXFSZ, SIG_DFL)


def limit(kind: int, bound: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (bound, bound) if hard < 0 else (min(bound, hard), min(bound, hard)))


def write(names: list[str], blobs: list[bytes]) -> None:
    for name, blob in zip(names, blobs, strict=True):
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name, "wb") as file:
            file.write(blob)


def run(order: dict, stdin: bytes, channel: Channel) -> dict | None:
    """Run one program to its end and send the answer. Returns None in the runner; in the child, its order."""
    files = [os.open(".", os.O_TMPFILE | os.O_RDWR) for _ in range(4)]
    begun = time.monotonic()
    try:
        given = memoryview(stdin)
        while given:
            given = given[os.write(files[0], given) :]
        os.lseek(files[0], 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            become(order, files, channel)
            return order
        late = wait(child, order, begun)
        queued = delay(child)
        status, used = with_none_left(child)
        wall = time.monotonic() - begun
        code = os.waitstatus_to_exitcode(status)
        seconds = used.ru_utime + used.ru_stime
        cause, why = verdict(order, code, late, seconds)
        out = read(files[1], order["output"])
        if not cause and os.fstat(files[1]).st_size > order["output"]:
            cause, why = "output", f"more than {order['output'] >> 10} KiB of output"
        channel.send(
            {"status": code, "cause": cause, "why": why, "seconds": seconds, "wall": wall, "peak_kb": used.ru_maxrss, "delay": queued},
            out, read(files[2], STDERR_BYTES, end=True), read(files[3], order["output"]),
        )  # fmt: skip
    finally:
        for descriptor in files:
            os.close(descriptor)
    return None


def become(order: dict, files: list[int], channel: Channel) -> None:
    """In the child: set the run's descriptors and limits. If the order has a command, it replaces this process."""
    os.dup2(files[3], 60)  # above the descriptors that are overwritten below
    for target in range(3):
        os.dup2(files[target], target)
    os.dup2(60, VALUE)
    os.closerange(VALUE + (order["call"] is not None), 4096)
    files[:] = []
    channel.orders = channel.answers = -1
    os.chdir(order["directory"])
    cpu = max(1, -int(-order["cpu"] // 1))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    limit(resource.RLIMIT_NOFILE, order["open_files"])
    if order["memory"]:
        limit(resource.RLIMIT_AS, order["memory"])
    if order["command"]:
        try:
            os.execvpe(order["command"][0], order["command"], order["environment"])
        except OSError as error:
            os.write(2, f"{order['command'][0]}: {error.strerror}".encode())
            os._exit(127)
    os.environ.clear()
    os.environ.update(order["environment"])


def wait(child: int, order: dict, begun: float) -> str:
    """Wait for the child; the limit that it reached (``wall``, ``cpu``), else empty. ``delay`` may double ``wall``."""
    clock, pidfd = (~child) << 3 | 2, os.pidfd_open(child)  # CPUCLOCK_SCHED of a process: see clock_getcpuclockid(3)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while True:
            left = order["wall"] - (time.monotonic() - begun)
            if left <= 0:
                left += min(delay(child), order["wall"])
            if left <= 0:
                return "wall"
            if poll.poll(min(left, 0.05) * 1000):
                return ""
            if time.clock_gettime(clock) > order["cpu"]:
                return "cpu"
    finally:
        os.close(pidfd)


def delay(child: int) -> float:
    """Seconds that the child's first thread has waited for a processor; 0 if the kernel does not report them."""
    try:
        with open(f"/proc/{child}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def with_none_left(child: int) -> tuple[int, resource.struct_rusage]:
    """Kill the child and all processes that it has left, and wait for them; returns its wait status and usage."""
    try:
        os.kill(child, SIGKILL)  # works on a zombie too
        os.kill(-1, SIGKILL)  # all others in the namespace
    except ProcessLookupError:
        pass
    _, status, used = os.wait4(child, 0)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return status, used


def verdict(order: dict, code: int, late: str, seconds: float) -> tuple[str, str]:
    if late == "wall":
        return "time", f"{order['wall']:g} s on the clock"
    if late == "cpu" or code == -SIGXCPU or (code == -SIGKILL and seconds >= order["cpu"]):
        return "time", f"{order['cpu']:g} s of processor time"
    if code == -SIGXFSZ:
        return "files", "a file grew beyond the disk"
    if code < 0:
        return "killed", f"signal {-code}"
    return "", ""


def read(descriptor: int, most: int, end: bool = False) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, min(most, size), max(0, size - most) if end else 0)


def execute(order: dict) -> None:
    """Run the program's file as ``__main__``, or call one of its functions and write the result as JSON."""
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.path.insert(0, order["directory"])
    sys.argv = [order["program"]]
    names = module.__dict__
    names.update(__file__=order["program"], __builtins__=builtins)
    call = order["call"]
    if call is not None:
        names["__name__"] = "program"
        sys.modules["program"] = module
        exec(compile(call["prelude"], "prelude", "exec"), names)
    with open(order["program"], "rb") as file:
        source = file.read()
    exec(compile(source, order["program"], "exec"), names)
    if call is not None:
        function, given = find(names, call["function"]), call["arguments"]
        value = function(**given) if isinstance(given, dict) else function(*given)
        write_value(value if call["inplace"] is None else given[call["inplace"]])


def leave(order: dict) -> None:
    """Execute the program and exit as an interpreter does, but without the work of freeing its objects."""
    status = 0
    try:
        execute(order)
    except SystemExit as error:
        if isinstance(error.code, int):
            status = error.code
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 120
    os._exit(status & 0xFF)


def find(names: dict, path: str) -> type:
    """The function ``name``, or that method of ``Solution``, or ``Class.method``, of a new object. Raises NameError."""
    first, *rest = path.split(".")
    if not rest and first not in names and "Solution" in names:
        first, rest = "Solution", [first]
    if first not in names:
        raise NameError(f"the program defines no {path}")
    found = names[first]
    for name in rest:
        found = getattr(found() if isinstance(found, type) else found, name)
    return found


def write_value(value: object) -> None:
    import json

    data = memoryview(json.dumps(value).encode())
    while data:
        data = data[os.write(VALUE, data) :]


if __name__ == "__main__":
    _order = main()
    if _order is not None:
        leave(_order)
