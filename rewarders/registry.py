"""Makes a rewarder of ``module:Class`` and its options, and the handler of a judging process."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker import plugins
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory, decode
from rewarders.beside import beside
from rewarders.rewarder import GroupRewarder, Reward, Rewarder, reward_of_verdict

Packed = list[dict[str, Any] | None]
VERSION_CHARACTERS = 12


def load_rewarder(use: str, options: dict[str, Any], base: Path) -> Rewarder:
    """A rewarder of single samples. Raises RunFileError if it cannot be found, is no rewarder, or has no such option."""
    rewarder = load_any(use, options, base)
    if is_group_rewarder(rewarder):
        raise RunFileError(f"{use} judges whole groups; it cannot be called with one sample")
    return rewarder  # type: ignore[return-value]


def load_any(use: str, options: dict[str, Any], base: Path, flat: Sequence[str] = ()) -> Rewarder | GroupRewarder:
    """A rewarder of samples or of groups; ``flat`` are the worker's keys that were written beside ``use``. Raises
    RunFileError as ``load_rewarder`` does.
    """
    kind = plugins.load(use, base, "[rewarders]")
    if why := clash(flat, plugins.option_names(kind) if callable(kind) else None, use):
        raise RunFileError(f"[rewarders] use = {use!r}: {why}")
    if not inspect.isclass(kind) and _takes_a_sample(kind):
        raise RunFileError(
            f"[rewarders] use = {use!r} takes a sample itself; name a class whose instances do, with its options as fields: "
            "class Mine: def __call__(self, sample): ..."
        )
    with beside(base):
        rewarder: Any = plugins.make(kind, options, f"[rewarders] use = {use!r}")
    if is_group_rewarder(rewarder):
        if not callable(getattr(rewarder, "judge", None)):
            raise RunFileError(f"{use} says per_group, but has no judge(samples)")
    elif not callable(rewarder):
        raise RunFileError(f"{use} makes nothing that can be called with a sample")
    return rewarder


def _takes_a_sample(kind: Any) -> bool:
    try:
        return next(iter(inspect.signature(kind).parameters), "") == "sample"
    except (TypeError, ValueError):  # an object that is not callable is refused when it is made
        return False


def clash(flat: Collection[str], options: Collection[str] | None, use: str) -> str:
    """Why keys beside ``use`` are ambiguous; empty if they are not. ``options`` are the class's options, None if
    unknown.
    """
    both = [key for key in flat if key in (options or ())]
    if not both:
        return ""
    name = use.partition(":")[2]
    return (
        f"{both[0]} may be the worker's or an option of {name}: set the worker's in a table [rewarders.NAME.worker]; "
        f"beside that table (it may be empty) {both[0]} is the option of {name}"
    )


def is_group_rewarder(rewarder: object) -> bool:
    return bool(getattr(rewarder, "per_group", False))


class Judge:
    """The handler of a judging process: the encoded samples of one judgement -> a packed Reward or None for each.

    ``about`` tells the worker whether the rewarder needs whole groups, whether its cost is bounded, and its version.
    """

    def __init__(self, rewarder: Rewarder | GroupRewarder, version: str) -> None:
        self._per_group = is_group_rewarder(rewarder)
        self._judge: Callable[[list[Trajectory]], Sequence[object]]
        self._judge = rewarder.judge if self._per_group else lambda samples: [rewarder(s) for s in samples]  # type: ignore[union-attr,operator]
        bounded = bool(getattr(rewarder, "bounded", False))
        self.about = {"per_group": self._per_group, "bounded": bounded, "version": version}

    def __call__(self, payloads: list[bytes]) -> Packed:
        samples = [_sample(payload) for payload in payloads]
        verdicts = self._judge(samples)
        if self._per_group and isinstance(verdicts, Iterable) and not isinstance(verdicts, str | bytes | Mapping):
            verdicts = list(verdicts)  # an array of numpy, a generator
        if self._per_group and (not isinstance(verdicts, list) or len(verdicts) != len(samples)):
            shown = f"{len(verdicts)} of them" if isinstance(verdicts, list) else type(verdicts).__name__
            raise MessageError(
                f"judge(samples) must return one verdict for each of the {len(samples)} samples, not {shown}"
            )
        rewards = [reward_of_verdict(verdict) for verdict in verdicts]
        return [None if r is None else checked(r, s).pack() for r, s in zip(rewards, samples, strict=True)]


def judge_factory(options: dict[str, Any]) -> Judge:
    """``options``: ``use``, ``options`` of the class, ``base`` directory, and ``flat`` (see ``load_any``)."""
    base = Path(options["base"])
    rewarder = load_any(options["use"], options["options"], base, options.get("flat", ()))
    for name in ("prepare", "warm_up"):
        if callable(step := getattr(rewarder, name, None)):
            step()
    return Judge(rewarder, version_of(rewarder, options["options"], base))


def version_of(rewarder: object, options: dict[str, Any], base: Path) -> str:
    """A fingerprint of a rewarder's options and code: the loaded modules of its package, or the loaded files beside the
    run file.

    A string attribute ``version`` of the class is included (for example the name of the model that it asks).
    """
    home = type(rewarder).__module__
    digest = hashlib.sha256(
        json.dumps([options, str(getattr(rewarder, "version", ""))], sort_keys=True, default=repr).encode()
    )
    digest.update(type(rewarder).__qualname__.encode())
    for name, file in sorted(_sources(home, base)):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:VERSION_CHARACTERS]


def _sources(home: str, base: Path) -> set[tuple[str, Path]]:
    """The loaded source files that belong to the same package or directory as module ``home``, each with its module's
    name.
    """
    package, found = home.partition(".")[0], set()
    beside = getattr(sys.modules.get(home), "__file__", None) or ""
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        mine = name == home or name.startswith(f"{package}.") or (Path(beside).parent == base and file.parent == base)
        if mine and file.suffix == ".py" and file.is_file():
            found.add((name, file))
    return found


def _sample(payload: bytes) -> Trajectory:
    sample = decode(payload)
    assert isinstance(sample, Trajectory)
    return sample


def checked(reward: Reward, sample: Trajectory) -> Reward:
    """``reward``, if it fits the sample. Raises MessageError."""
    if reward.logprobs and len(reward.logprobs) != 4 * sample.response_tokens:
        raise MessageError(
            f"{len(reward.logprobs) // 4} log-probabilities for {sample.response_tokens} trainable tokens; give one for each"
        )
    if any(end > len(sample.tokens) for _, end, _ in reward.spans):
        raise MessageError(f"spans {reward.spans} go beyond the sample's {len(sample.tokens)} tokens")
    return reward
