"""Starts, watches and ends an SGLang server of this machine. Unmodified SGLang; on a CPU it gets what it needs to run there."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from actors.pinned import pin
from broker.errors import EngineError
from monitoring.ports import free_ports

log = logging.getLogger("sglang")
START_SECONDS = 600.0
END_SECONDS = 5.0  # after this it is killed: nothing that it does while it ends is needed
SAY_SECONDS = 15.0
CPU_ARGUMENTS = (
    "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none",
    "--disable-cuda-graph", "--mem-fraction-static", "0.2", "--sleep-on-idle",
)  # fmt: skip
STUB = "int cuPointerGetAttribute(void) { return 100; }  /* CUDA_ERROR_NO_DEVICE */\n"


class Server:
    """One server process at ``url``; it ends with ``stop``, or with this process. ``model`` tells what it is to start from. With
    ``adaptive`` slots the server runs at once what its memory holds."""

    def __init__(
        self, directory: Path, model: Callable[[], str], *, device: str, dtype: str, slots: int, context: int, seed: int,
        arguments: Sequence[str] = (), adaptive: bool = False, host: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self._directory, self._model, self._device = directory, model, device
        directory.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1, host)
        self.url = f"http://{host}:{port}"
        self._command = [
            sys.executable, "-m", "sglang.launch_server", "--dtype", dtype, "--host", host,
            "--port", str(port), *(() if adaptive else ("--max-running-requests", str(slots))), "--context-length", str(context),
            "--random-seed", str(seed % 2**31), "--enable-metrics",
            *((*CPU_ARGUMENTS, "--max-total-tokens", str(max(slots * context, 2 * context))) if device == "cpu" else ()),
            *arguments,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Start it and wait until it answers. Raises EngineError with the end of its output if it does not come up."""
        model = str(pin(Path(self._model()), self._directory / "model"))
        output = self._directory / "server.out"
        with output.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "actors.sglang.child", str(os.getpid()), *self._command, "--model-path", model],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment(), start_new_session=True,
            )  # fmt: skip
        begun = said = time.monotonic()
        while not self._answers():
            now = time.monotonic()
            if self._process.poll() is not None or now - begun > START_SECONDS:
                self.stop()
                tail = output.read_text(errors="replace")[-1500:]
                raise EngineError(f"the SGLang server did not start; the end of {output}:\n{tail}")
            if stopped():
                self.stop()
                raise EngineError("stopped while the SGLang server was starting")
            if now - said > SAY_SECONDS:
                log.info("the SGLang server is starting (%.0f s)", now - begun)
                said = now
            time.sleep(0.25)
        log.info("the SGLang server at %s is ready after %.0f s", self.url, time.monotonic() - begun)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the SGLang server does not end by itself")
        with contextlib.suppress(
            ProcessLookupError
        ):  # its scheduler and detokenizer as well, whatever has become of it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _environment(self) -> dict[str, str]:
        found = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        if self._device == "cpu":
            found |= {"SGLANG_USE_CPU_ENGINE": "1", "CUDA_VISIBLE_DEVICES": ""}
            found.setdefault("OMP_NUM_THREADS", "1")
            if not has_driver():
                stub = str(cuda_stub(self._directory))
                found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (stub, found.get("LD_LIBRARY_PATH"))))
        return found


def has_driver() -> bool:
    """Whether NVIDIA's driver library is on this machine."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cuda_stub(directory: Path) -> Path:
    """A folder with a libcuda.so.1 that knows the one symbol that SGLang's kernels link; it says that there is no device.

    Raises EngineError if there is no C compiler.
    """
    folder = directory / "stub"
    library = folder / "libcuda.so.1"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise EngineError("SGLang on a machine without NVIDIA's driver needs a C compiler: apt install gcc")
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"building.{os.getpid()}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(beside), "-xc", "-"],
            input=STUB.encode(), check=True,
        )  # fmt: skip
        beside.replace(library)
    return folder
