"""One SGLang server: its address, what it holds, and the orders of the weight road to it (SGLang 0.5.23's HTTP interface).

A server runs a weight update on the thread that generates: while it waits in a collective it answers nothing, so every order
has a limit, and after a failed one the server stays paused until it holds a whole set of weights again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from actors.engine import UpdateMode
from broker.errors import EngineError, WeightPushError
from broker.weights import layout
from broker.weights.sink import Lane, Push

log = logging.getLogger("sglang")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request
ORDER_SECONDS = 30.0
LOAD_SECONDS = 600.0
PUSH_SECONDS = (
    5.0  # a version whose push broke is sent again within this time; if not, sampling goes on with older weights
)
MARGIN_SECONDS = 5.0
PART_SECONDS = 2.0  # for each of the three things that an actor which is to end waits for, of its 10 s
RELEASED = " released"  # suffix of the version while the memory of its weights is released: what an actor that comes later finds there


class ServerLink:
    """What the engine knows of a server. ``version`` is -1 while it may not be asked: nothing, or a mixture, is loaded."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.version = -1
        self.answers = True
        """Whether it took the last order's connection, or has answered since."""
        self.running = 0
        """Samples that it works on."""
        self.kept = 0
        """Those of them that new weights must not end."""
        self.failures = 0
        """Of requests in a row."""
        self.resting = False
        """Whether it is to be asked nothing, because the devices are the learner's."""

    def ask(self, what: str, timeout: float) -> dict[str, Any]:
        """What the server says of itself (``server_info``, ``get_model_info``). Raises EngineError if it does not answer."""
        try:
            answer = httpx.get(f"{self.url}/{what}", timeout=timeout)
            answer.raise_for_status()
            self.answers = True
            return dict(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            self.answers = False
            raise EngineError(f"the server at {self.url} does not answer: {error}") from error


class ServerSink:
    """Implements ``broker.weights.sink.WeightSink`` for one server.

    ``mode`` is what becomes of running samples: with ``retract`` their cache is computed again, with ``in_place`` kept, with
    ``abort`` they end and are asked for again. ``broken`` is told when it holds no whole set of weights, and for how many seconds
    one may be waited for. A server that ``gives_back`` its memory at rest keeps neither cache nor weights.
    """

    def __init__(
        self, link: ServerLink, mode: UpdateMode, ranks: int = 1, broken: Callable[[float, str], None] = lambda seconds, why: None,
        gives_back: bool = False,
    ) -> None:  # fmt: skip
        self._link, self._mode, self.ranks, self._broken, self._gives_back = link, mode, ranks, broken, gives_back
        self._rests = False
        self._lane: Lane | None = None
        self._whole = -1  # the version that the server was last known to hold whole
        self._busy = threading.Lock()
        self._http = httpx.Client(timeout=ORDER_SECONDS)

    @property
    def ready(self) -> bool:
        return self._link.answers

    def join(self, lane: Lane) -> None:
        with self._busy:
            self._leave()
            self._order(
                "init_weights_update_group", lane.timeout + MARGIN_SECONDS, master_address=lane.host, master_port=lane.port,
                rank_offset=lane.rank, world_size=lane.world, group_name=lane.group, backend=lane.backend,
            )  # fmt: skip
            self._lane = lane

    def receive(self, push: Push) -> str:
        """The server has no sum over the bytes that came, but one over what it holds: all servers must agree on it.

        It goes on once every bucket has come; the sum is taken while it generates.
        """
        with self._busy, self._telling():
            return self._receive(push)

    def load(self, path: Path, version: int) -> None:
        with self._busy, self._telling():
            self._load(path, version)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except WeightPushError as error:
            if self._link.version < 0:
                self._broken(PUSH_SECONDS, str(error))
            raise

    def leave(self) -> None:
        with self._busy:
            self._leave()

    def recover(self, newest: tuple[Path, int] | None) -> None:
        """Take the server up again after it was away: with what it still holds, else with the ``newest`` published weights.

        Raises WeightPushError while that is not possible.
        """
        with self._busy:
            if self._link.version >= 0 or self._link.resting:
                return
            held = self._held()
            if self._whole >= 0 and held == str(self._whole):
                self._go_on(self._whole)
            elif newest is not None:
                self._load(*newest)

    def rest(self) -> None:
        """Memory can only be given back with no sample in it, so ``in_place`` is then as ``retract``."""
        with self._busy:
            self._link.resting = True
            if self._rests:
                return
            if self._mode == "abort":
                self._order("pause_generation", ORDER_SECONDS, mode="abort")
            kept = self._mode == "in_place" and not self._gives_back
            self._order("pause_generation", ORDER_SECONDS, mode="in_place" if kept else "retract")
            if self._gives_back:
                self._give_memory_back()
            self._rests = True

    def wake(self, version: int, patience: float) -> None:
        """Without weights as new as ``version`` the server stays paused until they come."""
        with self._busy:
            self._link.resting = self._rests = False
            self._link.version, why = -1, f"weights of version {version} are to come"
            try:
                if self._whole >= max(0, version):
                    return self._go_on(self._whole)
            except WeightPushError as error:
                patience, why = 0.0, str(error)
        self._broken(patience, why)

    def _give_memory_back(self) -> None:
        held = self._held()
        if not held.endswith(RELEASED):
            self._name_weights(held + RELEASED)
            try:
                self._order("release_memory_occupation", LOAD_SECONDS)
            except WeightPushError:
                self._name_weights(held)
                raise
        self._whole = -1

    def _take_memory_back(self) -> None:
        """Only where it was given back, be it by an actor before this one: a server that is told so without that ends."""
        if self._gives_back and (held := self._held()).endswith(RELEASED):
            self._order("resume_memory_occupation", LOAD_SECONDS)
            self._name_weights(held.removesuffix(RELEASED) + " lost")

    def _held(self) -> str:
        """What the server calls the weights that it holds. Raises WeightPushError if it does not answer."""
        try:
            return str(self._link.ask("get_model_info", ORDER_SECONDS).get("weight_version"))
        except EngineError as error:
            raise WeightPushError(str(error)) from error

    def _name_weights(self, name: str) -> None:
        self._order("update_weight_version", ORDER_SECONDS, new_version=name, abort_all_requests=False)

    def _receive(self, push: Push) -> str:
        lane = self._lane
        if lane is None:
            raise WeightPushError("a push without a lane")
        self._pause()
        self._order("begin_weight_update", lane.timeout)
        buckets = layout.buckets(push.specs, push.bucket_bytes)
        for bucket in buckets:
            specs = push.specs[bucket.first : bucket.last]
            self._order(
                "update_weights_from_distributed", lane.timeout + MARGIN_SECONDS, names=[s.name for s in specs],
                dtypes=[s.dtype for s in specs], shapes=[list(s.shape) for s in specs], group_name=lane.group,
                load_format="flattened_bucket", weight_version=str(push.version),
                flush_cache=self._mode != "in_place" and bucket is buckets[-1],
            )  # fmt: skip
        self._order("end_weight_update", lane.timeout)
        self._go_on(push.version)
        try:
            return self._checksum()
        except WeightPushError:
            self._link.version = self._whole = -1
            raise

    def _load(self, path: Path, version: int) -> None:
        self._pause()
        self._quietly("end_weight_update")
        self._order(
            "update_weights_from_disk", LOAD_SECONDS, model_path=str(path.absolute()), weight_version=str(version),
            flush_cache=self._mode != "in_place",
        )  # fmt: skip
        self._go_on(version)

    def _leave(self, seconds: float = ORDER_SECONDS) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            self._quietly("end_weight_update", seconds)
            self._quietly("destroy_weights_update_group", seconds, group_name=lane.group)

    def close(self) -> None:
        """Leave the lane, unless the server is too busy for that: it may be in a join that comes to nothing."""
        if self._busy.acquire(timeout=PART_SECONDS):
            try:
                self._leave(PART_SECONDS)
            finally:
                self._busy.release()
        self._http.close()

    def _pause(self) -> None:
        self._link.version = self._whole = -1
        self._take_memory_back()
        keeps = self._mode == "abort" and self._link.kept > 0  # the mode is the whole server's
        self._order("pause_generation", ORDER_SECONDS, mode="retract" if keeps else self._mode)

    def _go_on(self, version: int) -> None:
        self._order("continue_generation", ORDER_SECONDS)
        self._link.version = self._whole = version

    def _checksum(self) -> str:
        """A digest over all parameters as the server holds them, of every rank. What it holds is fused: only servers compare."""
        answer = self._order("weights_checker", LOAD_SECONDS, action="checksum")
        sums = [str(rank["per_gpu_checksum"]) for rank in answer.get("ranks", [])]
        if not sums:
            raise WeightPushError(f"{self._link.url} gives no checksum: {str(answer)[:200]}")
        return f"held by {len(sums)}:" + "/".join(sums)

    def _quietly(self, order: str, seconds: float = ORDER_SECONDS, **fields: Any) -> None:
        """An order that is refused where there is nothing to do."""
        try:
            self._order(order, seconds, **fields)
        except WeightPushError as error:
            log.debug("%s", error)

    def _order(self, order: str, timeout: float, **fields: Any) -> dict[str, Any]:
        """Have the server do something. Raises WeightPushError with its words."""
        try:
            answer = self._http.post(f"{self._link.url}/{order}", json=fields, timeout=timeout)
        except httpx.HTTPError as error:
            self._link.answers = self._link.answers and not isinstance(error, httpx.ConnectError)
            raise WeightPushError(f"{order} at {self._link.url}: {type(error).__name__} {error}") from error
        try:
            found = answer.json()
        except ValueError:
            found = {"message": answer.text[:500]}
        if answer.status_code != httpx.codes.OK or (isinstance(found, dict) and found.get("success") is False):
            raise WeightPushError(f"{order} at {self._link.url}: {words(found)}")
        return found if isinstance(found, dict) else {}


def words(answer: Any) -> str:
    """What a server says where it refuses."""
    for key in ("error", "message"):
        while isinstance(answer, dict) and key in answer:
            answer = answer[key]
    return str(answer)[:500]


def gives_back(about: Mapping[str, Any]) -> bool:
    """Whether a server can be told to give its memory back: one on a CPU ends when it is."""
    return bool(about.get("enable_memory_saver")) and about.get("device") != "cpu"
