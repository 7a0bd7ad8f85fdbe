"""The one loader of plug-ins: ``module:Class``, or ``file.py:Class`` of a file beside the run file; options are the class's fields.

``check`` reads the plug-in without running it, so that a command line can check modules that would load torch; it refuses only what is
certainly wrong. ``build`` loads the class, makes an instance with its options, and so finds everything else.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from broker.errors import RunFileError
from broker.spelling import nearest


def split(use: str, where: str) -> tuple[str, str]:
    """Module and name of ``module:Class``. Raises RunFileError."""
    module, _, name = use.partition(":")
    if not module or not name:
        raise RunFileError(f"{where} use = {use!r}: write it as module:Class")
    return module, name


def check(use: str, options: Collection[str], base: Path, where: str, hidden: Collection[str] = ()) -> None:
    """Raises RunFileError, beginning with ``where``, if ``use`` does not exist, its file is not Python, or the class lacks an option.

    ``base`` is the run file's directory. ``hidden`` fields of the class do not count as options.
    """
    module, name = split(use, where)
    source = _source(module, base)
    if source is None:
        if module.endswith(".py"):
            have = [path.name for path in sorted(base.glob("*.py"))]
            raise RunFileError(
                f"{where} use = {use!r}: there is no {module} beside the run file{nearest(module, have)}"
            )
        raise RunFileError(f"{where} use = {use!r}: there is no module {module!r}{nearest(module, _siblings(module))}")
    tree = _tree(source, use, where)
    names = None if tree is None else _names(tree)
    if tree is None or names is None:
        return
    if name not in names:
        classes = [n for n in names if n[:1].isupper()]
        raise RunFileError(f"{where} use = {use!r}: {module} has no {name!r}{nearest(name, classes)}")
    known = _fields(tree, name)
    if known is not None:
        _refuse_unknown(options, [k for k in known if k not in hidden], use, where)


def may_have(use: str, base: Path, method: str) -> bool:
    """Whether the class named by ``use`` may have ``method``; False only if its source shows that it does not."""
    module, name = split(use, "")
    source = _source(module, base)
    tree = _tree(source, use, "") if source is not None else None
    found = (
        None if tree is None else next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    )
    if found is None or found.bases or not all("dataclass" in ast.unparse(d) for d in found.decorator_list):
        return True
    return any(_named(item, method) for item in found.body)


def _named(item: ast.stmt, name: str) -> bool:
    """Whether a statement in a class body may define ``name``."""
    match item:
        case ast.FunctionDef(name=own) | ast.AsyncFunctionDef(name=own) | ast.AnnAssign(target=ast.Name(id=own)):
            return own == name
        case ast.Assign(targets=targets):
            return any(isinstance(t, ast.Name) and t.id == name for t in targets)
    return isinstance(item, ast.If | ast.Try)


def fields_of(use: str, base: Path) -> list[str] | None:
    """The options of the class named by ``use``, without running its code; None if unknown."""
    module, _, name = use.partition(":")
    source = _source(module, base) if module and name else None
    try:
        tree = None if source is None else _tree(source, use, "")
    except RunFileError:
        return None  # ``check`` says why
    return None if tree is None else _fields(tree, name)


def load(use: str, base: Path, where: str) -> Any:
    """The object named by ``use``. Raises RunFileError if it cannot be loaded."""
    module, name = split(use, where)
    beside = _beside(module, base)
    try:
        found = load_file(beside) if beside is not None else importlib.import_module(module)
        return getattr(found, name)
    except Exception as error:  # a user's file may fail in any way when it is imported
        raise RunFileError(f"{where} use = {use!r} cannot be loaded: {type(error).__name__}: {error}") from error


def build(
    use: str, options: Mapping[str, Any], base: Path, where: str, hidden: Collection[str] = (), **given: Any
) -> Any:
    """An instance of the class named by ``use``, made from ``options`` and from arguments ``given`` by the caller.

    Raises RunFileError if it cannot be loaded, has no such option, or refuses a value.
    """
    return make(load(use, base, where), options, f"{where} use = {use!r}", hidden, **given)


def make(kind: Any, options: Mapping[str, Any], place: str, hidden: Collection[str] = (), /, **given: Any) -> Any:
    """An instance of ``kind``. Raises RunFileError for an unknown option, or a refused value."""
    if not callable(kind):
        raise RunFileError(f"{place} is no class")
    known = option_names(kind)
    name = getattr(kind, "__name__", type(kind).__name__)
    if known is not None:
        _refuse_unknown(options, [k for k in known if k not in hidden and k not in given], name, place)
    try:
        return kind(**options, **given)
    except Exception as error:  # likewise
        raise RunFileError(f"{place} refuses its options: {error}") from error


def option_names(kind: Any) -> list[str] | None:
    """The options of a plug-in class: its fields, or what its constructor takes; None if it takes any."""
    if dataclasses.is_dataclass(kind):
        return [f.name for f in dataclasses.fields(kind) if f.init]
    if isinstance(fields := getattr(kind, "model_fields", None), dict):
        return list(fields)
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]


def load_file(path: Path) -> Any:
    """The module in ``path``, imported once per process."""
    name = f"headrace_beside_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _refuse_unknown(options: Collection[str], known: list[str], use: str, where: str) -> None:
    for option in options:
        if option not in known:
            raise RunFileError(f"{where} unknown option {option!r} of {use}{nearest(option, known)}")


def _beside(module: str, base: Path) -> Path | None:
    path = base / f"{module.removesuffix('.py')}.py"
    return path if path.is_file() else None


def _source(module: str, base: Path) -> Path | None:
    """The file that defines ``module``; its first package alone where only an import can tell; None if there is none."""
    if (own := _beside(module, base)) is not None:
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
    """The names of modules in the place where ``module`` would be."""
    package, _, _ = module.rpartition(".")
    source = _source(package, Path("/nowhere")) if package else None
    return [f"{package}.{p.stem}" for p in sorted(source.parent.glob("*.py"))] if source is not None else []


def _tree(source: Path, use: str, where: str) -> ast.Module | None:
    if source.suffix != ".py" or not source.is_file():
        return None
    try:
        return ast.parse(source.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise RunFileError(f"{where} use = {use!r}: {source}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError):
        return None  # the import says why


def _names(tree: ast.Module) -> list[str] | None:
    """The names that a module defines or imports at top level; None if its source does not tell."""
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


def _fields(tree: ast.Module, name: str) -> list[str] | None:
    """The fields of a dataclass whose base classes are all in the same file; None if its source does not tell."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    node = classes.get(name)
    if node is None or not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return None
    known: list[str] = []
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in ("Protocol", "object"):
            continue
        inherited = _fields(tree, base.id) if isinstance(base, ast.Name) else None
        if inherited is None:
            return None
        known += inherited
    return known + list(_annotated(node))


def _annotated(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            told = ast.unparse(item.annotation)
            fixed = isinstance(item.value, ast.Call) and "init=False" in ast.unparse(item.value)
            if "ClassVar" not in told and not fixed:
                yield item.target.id
