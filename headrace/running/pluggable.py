"""Looks whether what a run file names (``module:Class``, a model's directory, a data file) is there, without loading it.

Only what is certainly wrong is refused: a module that only a daemon can find, or a Hugging Face id, passes, and the daemon
that loads it has the last word.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

from broker.errors import RunFileError
from broker.runfile import RunFile, nearest

DATA_SUFFIXES = (".json", ".jsonl", ".parquet")


def check_use(use: str, where: str, beside: Path | None) -> None:
    """``use`` is ``module:Class``; a file in ``beside`` comes first, if that is given. Raises RunFileError."""
    module, sign, name = use.partition(":")
    if not sign or not module or not name:
        raise RunFileError(f"{where} use = {use!r}: write it as module:Class")
    source = _source(module, beside)
    if source is None:
        if module.endswith(".py"):
            have = [path.name for path in sorted(beside.glob("*.py"))] if beside else []
            raise RunFileError(
                f"{where} use = {use!r}: there is no {module} beside the run file{nearest(module, have)}"
            )
        raise RunFileError(f"{where} use = {use!r}: there is no module {module!r}{nearest(module, _siblings(module))}")
    names = _names(source) if source.suffix == ".py" and source.is_file() else None
    if names is not None and name not in names:
        classes = [n for n in names if n[:1].isupper()]
        raise RunFileError(f"{where} use = {use!r}: {module} has no {name!r}{nearest(name, classes)}")


def check_path(value: str, where: str, key: str, file: RunFile) -> None:
    """``value`` is a path or a Hugging Face id; what can only be a path must exist. Raises RunFileError."""
    path = file.resolve(value)
    if path.exists() or Path(value).exists():
        return
    if value.startswith(("/", "./", "../", "~")) or value.endswith(DATA_SUFFIXES):
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise RunFileError(f"{where} {key} = {value!r}: {path} does not exist{_hint(path.name, there)}")


def _hint(name: str, there: list[str]) -> str:
    hint = nearest(name, there)
    return hint if "did you mean" in hint else ""  # a whole directory's names would be no help


def _source(module: str, beside: Path | None) -> Path | None:
    """The file that defines ``module``; its first package alone where only a daemon can tell; None if there is none."""
    if beside is not None and (own := beside / f"{module.removesuffix('.py')}.py").is_file():
        return own
    here: list[str] | None = None
    spec = None
    for part in module.split("."):
        path = [str(Path.cwd()), *sys.path] if here is None else here
        spec = importlib.machinery.PathFinder.find_spec(part, path) or (
            importlib.util.find_spec(part) if here is None else None
        )
        if spec is None:
            return None
        here = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else Path(module)


def _siblings(module: str) -> list[str]:
    """The modules that lie where ``module`` would."""
    package, _, _ = module.rpartition(".")
    source = _source(package, None) if package else None
    return [f"{package}.{p.stem}" for p in sorted(source.parent.glob("*.py"))] if source is not None else []


def _names(source: Path) -> list[str] | None:
    """What a module defines or imports at its top; None where that cannot be told by reading it."""
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None  # the daemon that imports it says why
    names: list[str] = []
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.append(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names += [a.asname or a.name.partition(".")[0] for a in aliases]
            case ast.Assign(targets=targets):
                names += [t.id for t in targets if isinstance(t, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.If() | ast.Try():
                return None
    return None if "*" in names or "__getattr__" in names else names
