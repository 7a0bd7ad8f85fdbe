"""Tools as an environment: the model calls functions in the format that it was taught, hears what they gave, and ends by calling none.

A tool is a typed Python function with a docstring, or a class with options as fields and such a ``__call__``. What the model may know of
it (an OpenAI-style schema) goes to the chat template; its arguments are checked against the types before it is called.
"""

from __future__ import annotations

import ast
import inspect
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from actors.environment import Turn, over
from broker import plugins
from broker.errors import EnvironmentFault, HeadraceError
from broker.messages import ChatMessage, Prompt
from broker.spelling import nearest

MAX_RESULT = 4000  # characters of a tool's result that are shown to the model
BEGIN, END = "<tool_call>", "</tool_call>"


class Call(NamedTuple):
    """A call that a reply asks for; ``error`` says why it cannot be made of what was written."""

    name: str
    arguments: Mapping[str, Any]
    error: str = ""


def tagged(reply: str) -> tuple[list[str], str]:
    """The stripped texts between tags, and the reply without them and their tags. Takes time linear in the reply, whatever was sampled: a
    regular expression that strips as well is cubic."""
    found, rest, at = [], [], 0
    while (start := reply.find(BEGIN, at)) >= 0 and (end := reply.find(END, start)) >= 0:
        found.append(reply[start + len(BEGIN) : end].strip())
        rest.append(reply[at:start])
        at = end + len(END)
    return found, "".join(rest) + reply[at:]


def hermes(reply: str) -> Iterator[Call]:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number: Hermes, Qwen."""
    found, _ = tagged(reply)
    if reply.count(BEGIN) != len(found):
        yield Call("", {}, "a <tool_call> without its </tool_call>")
    for text in found:
        yield _of_json(text, "arguments")


def llama3(reply: str) -> Iterator[Call]:
    """``{"name": ..., "parameters": {...}}`` as the whole reply: Llama 3."""
    text = reply.strip().removeprefix("<|python_tag|>").removesuffix("<|eom_id|>").strip()
    if text.startswith("{") and '"name"' in text:
        yield _of_json(text, "parameters")


def pythonic(reply: str) -> Iterator[Call]:
    """``[name(key=value, ...), ...]`` as the whole reply, with literal values: Llama 4, Gemma, Olmo."""
    text = reply.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Call("", {}, f"no list of calls: {error}")
        return
    for call in tree.elts if isinstance(tree, ast.List) else []:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            yield Call("", {}, "write calls as name(key=value)")
            continue
        try:
            yield Call(call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            yield Call(call.func.id, {}, "arguments must be literal values")


def _of_json(text: str, key: str) -> Call:
    try:
        found = json.loads(text)
        name, arguments = found["name"], found.get(key, {})
        if isinstance(arguments, str):  # some write the object as a text
            arguments = json.loads(arguments)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise TypeError(f'"name" must be a text and "{key}" an object')
        return Call(name, arguments)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Call("", {}, f"no call: {type(error).__name__}: {error}")


PARSERS: dict[str, Callable[[str], Iterator[Call]]] = {"hermes": hermes, "llama3": llama3, "pythonic": pythonic}


class Tool:
    """A function as the model sees and calls it. Raises EnvironmentFault if it has no types or no docstring."""

    def __init__(self, function: Callable[..., Any]) -> None:
        called = function if inspect.isfunction(function) else type(function).__call__
        self.name = getattr(function, "__name__", "") or _snake(type(function).__name__)
        about = inspect.getdoc(called) or (inspect.getdoc(function) or "")
        untyped = [
            p.name for p in inspect.signature(function).parameters.values() if p.annotation is inspect.Parameter.empty
        ]
        if untyped or not about:
            raise EnvironmentFault(f"tool {self.name} needs {f'types for {untyped}' if untyped else 'a docstring'}")
        bound: Any = function if inspect.isfunction(function) else getattr(function, "__call__")  # noqa: B004, B009
        self._adapter: TypeAdapter[Any] = TypeAdapter(bound)
        parameters = {k: v for k, v in self._adapter.json_schema().items() if k != "additionalProperties"}
        self.schema = {
            "type": "function",
            "function": {"name": self.name, "description": about, "parameters": parameters},
        }

    def call(self, arguments: Mapping[str, Any]) -> str:
        """What it gives, as text: a text as it is, anything else as JSON. Errors are for the model to hear."""
        try:
            result = self._adapter.validate_python(ArgsKwargs((), dict(arguments)))
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except ValidationError as error:
            first = error.errors()[0]
            text = f"error: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        except HeadraceError:  # not the model's fault: this machine gives no sandbox
            raise
        except Exception as error:  # a tool is a plug-in, and its failure an answer
            text = f"error: {type(error).__name__}: {error}"
        return text if len(text) <= MAX_RESULT else f"{text[:MAX_RESULT]} ... ({len(text)} characters)"


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass
class Tools:
    """An episode that goes on while the model calls ``tools`` (``module:name``, also of a file beside the run file) by ``parser``.

    What they give is said with ``role``. The outcome is left to the rewarders, which judge the last reply.
    """

    tools: tuple[str, ...] | list[str]
    parser: str = "hermes"
    role: str = "tool"
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, options of tools that are classes."""
    base: Path = Path()

    def __post_init__(self) -> None:
        if self.parser not in PARSERS:
            raise EnvironmentFault(
                f"parser {self.parser!r} is not one of {list(PARSERS)}{nearest(self.parser, list(PARSERS))}"
            )
        made = [Tool(self._made(use)) for use in self.tools]
        self._tools = {tool.name: tool for tool in made}  # fmt: skip

    def _made(self, use: str) -> Callable[..., Any]:
        found = plugins.load(use, self.base, "[environments] tools")
        if inspect.isclass(found):
            found = plugins.make(found, self.options.get(_snake(found.__name__), {}), f"tool {use}")
        return found

    def open(self, prompt: Prompt, index: int) -> Turn:
        return Turn(tools=tuple(tool.schema for tool in self._tools.values()))

    def step(self, reply: str) -> Turn:
        spoken = reply.rpartition("</think>")[2]  # what is only thought of calls nobody
        said = tuple(ChatMessage(self.role, self._answer(call)) for call in PARSERS[self.parser](spoken))
        return Turn(said) if said else over()

    def _answer(self, call: Call) -> str:
        if call.error:
            return f"error: {call.error}"
        if call.name not in self._tools:
            return f"error: there is no tool {call.name!r}{nearest(call.name, list(self._tools))}"
        return self._tools[call.name].call(call.arguments)


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip


@dataclass(frozen=True)
class Calculator:
    """Arithmetic; nothing of the expression is run as a program."""

    digits: int = 200

    def __call__(self, expression: str) -> str:
        """Compute an arithmetic expression with + - * / // % ** and brackets, such as (3 + 4) * 2."""
        value = self._value(ast.parse(expression.strip(), mode="eval").body)
        return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)

    def _value(self, node: ast.expr) -> int | float:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self._value(inner)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self._value(inner)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
                return self._apply(sign, self._value(left), self._value(right))
        raise ValueError("only numbers, + - * / // % ** and brackets")

    def _apply(self, sign: ast.operator, a: int | float, b: int | float) -> int | float:
        if isinstance(sign, ast.Pow) and (abs(b) > 1000 or self._size(a) * abs(b) > self.digits):
            raise ValueError("the result is too large")
        found: int | float = BINARY[type(sign)](a, b)
        if isinstance(found, complex) or self._size(found) > self.digits:
            raise ValueError("the result is no number of a reasonable size")
        return found

    @staticmethod
    def _size(value: int | float) -> float:
        """About how many digits a number has."""
        return abs(value).bit_length() * 0.30103 if isinstance(value, int) else 17.0
