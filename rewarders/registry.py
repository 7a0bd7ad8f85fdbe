"""Finds a rewarder by ``module:Class`` (a file beside the run file works too) and makes it with its options."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory, decode
from broker.runfile import nearest
from rewarders.rewarder import Reward, Rewarder


def load_rewarder(use: str, options: dict[str, Any], base: Path) -> Rewarder:
    """Raises RunFileError if it cannot be found, is no rewarder, or has no such option."""
    module_name, sign, name = use.partition(":")
    if not sign or not name:
        raise RunFileError(f"use = {use!r}: write it as module:Class")
    beside = base / f"{module_name.removesuffix('.py')}.py"
    try:
        module = _load_file(beside) if beside.is_file() else importlib.import_module(module_name)
        kind = getattr(module, name)
    except Exception as error:  # a user's file may fail in any way when it is imported
        raise RunFileError(f"use = {use!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if dataclasses.is_dataclass(kind):
        known = [f.name for f in dataclasses.fields(kind) if f.init]
        for option in options:
            if option not in known:
                raise RunFileError(f"unknown option {option!r} of {use}{nearest(option, known)}")
    try:
        rewarder = kind(**options)
    except Exception as error:  # likewise
        raise RunFileError(f"{use} refuses its options: {error}") from error
    if not callable(rewarder):
        raise RunFileError(f"{use} makes nothing that can be called with a sample")
    return rewarder


def _load_file(path: Path) -> Any:
    name = f"headrace_beside_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def judge_factory(options: dict[str, Any]) -> Any:
    """The handler of a judging process: trajectory bytes -> [value or None, why]."""
    rewarder = load_rewarder(options["use"], options["options"], Path(options["base"]))

    def judge(payload: bytes) -> list[Any]:
        sample = decode(payload)
        assert isinstance(sample, Trajectory)
        verdict = rewarder(sample)
        if verdict is None:
            return [None, ""]
        if isinstance(verdict, int | float):
            verdict = Reward(float(verdict))
        if not isinstance(verdict, Reward):
            raise MessageError(f"returned {type(verdict).__name__}; return a number, Reward(value, why) or None")
        return [float(verdict.value), str(verdict.why)[:500]]

    return judge
