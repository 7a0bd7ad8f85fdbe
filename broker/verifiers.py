"""What the adapters for the package ``verifiers`` (PyPI, 0.1.10 to 0.3) share: how an environment is found, and how a rubric is watched.

A rubric of its own accord turns whatever its functions raise into a reward of 0. Here a failure is an error, never a reward: the functions
are watched, and who asked the rubric hears what one of them raised.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker import plugins
from broker.errors import RunFileError


def environment(named: str, arguments: Mapping[str, Any], base: Path, where: str) -> Any:
    """The environment that ``named`` stands for: ``module:name`` or ``file.py:name`` (an environment, or what makes one when it is called with
    ``arguments``), or the name of an installed package of one. The same one for the same words. Raises RunFileError."""
    return _environment(named, json.dumps(dict(arguments), sort_keys=True), base, where)


@functools.cache
def _environment(named: str, arguments: str, base: Path, where: str) -> Any:
    try:
        import verifiers
        from verifiers import Environment
    except ImportError as error:  # also a release from 0.4 on, which is another package
        raise RunFileError(f"{where} needs verifiers below 0.4: pip install 'headrace[verifiers]' ({error})") from error
    given = json.loads(arguments)
    if ":" in named:
        found = plugins.load(named, base, where)
        if not isinstance(found, Environment):
            found = plugins.make(found, given, f"{where} load = {named!r}")
    else:
        try:
            found = verifiers.load_environment(named, **given)
        except Exception as error:  # the package's own code, and that of whoever wrote the environment
            raise RunFileError(
                f"{where} load = {named!r} cannot be loaded: {type(error).__name__}: {error}; install its package, or name module:name"
            ) from error
    if not isinstance(found, Environment):
        raise RunFileError(
            f"{where} load = {named!r} is a {type(found).__name__}; it must be an Environment of verifiers, or make one"
        )
    if getattr(found, "message_type", "chat") != "chat":
        raise RunFileError(f"{where} load = {named!r} completes plain text; only chat environments can be played")
    return found


def rubrics(rubric: Any) -> list[Any]:
    """The rubric, and those that it is made of."""
    return [rubric, *(inner for part in getattr(rubric, "rubrics", ()) for inner in rubrics(part))]


def watch(rubric: Any, raised: list[BaseException]) -> None:
    """Have what the functions of ``rubric`` raise put into ``raised`` as well."""
    for one in rubrics(rubric):
        one.funcs = [_watched(function, raised) for function in one.funcs]


def _watched(function: Callable[..., Any], raised: list[BaseException]) -> Callable[..., Any]:
    """``function``, whose errors are kept. Its signature stays: the rubric reads it."""

    @functools.wraps(function)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            value = function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        except Exception as error:  # kept for whoever asked the rubric, and left to the rubric as before
            raised.append(error)
            raise

    return watched
