"""Tools: schemas from types, calls in the formats of real models, checked arguments, and errors that the model hears."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from actors.environment import pack
from actors.python import PythonTool
from actors.tools import Calculator, Call, Tool, Tools, hermes, llama3, pythonic
from broker.errors import EnvironmentFault
from broker.messages import ChatMessage, Prompt

PROMPT = Prompt("g@0", (ChatMessage("user", "q"),), 1)
SHOP = '''
def price(item: str, count: int = 1) -> float:
    """The price of some items in a shop."""
    return {"apple": 0.5}[item] * count

def untyped(item):
    """Nobody knows what it takes."""
'''


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.mark.parametrize(
    ("parser", "reply", "wanted"),
    [
        (hermes, 'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [("f", {"a": 1})]),
        (hermes, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call><tool_call>{"name": "g"}</tool_call>', [("f", {"a": 1}), ("g", {})]),
        (hermes, "no call {}", []),
        (hermes, '</tool_call> <tool_call> \t{"name": "f"}\u2028</tool_call> and </tool_call>', [("f", {})]),
        (llama3, '<|python_tag|>{"name": "f", "parameters": {"a": [1, "x"]}}<|eom_id|>', [("f", {"a": [1, "x"]})]),
        (llama3, "The answer is 4.", []),
        (pythonic, "[f(a=-1, b='x'), g()]", [("f", {"a": -1, "b": "x"}), ("g", {})]),
        (pythonic, "It is [3]? No.", []),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_formats_of_models(parser, reply, wanted) -> None:  # type: ignore[no-untyped-def]
    assert list(parser(reply)) == [Call(name, arguments) for name, arguments in wanted]


@pytest.mark.parametrize(
    ("parser", "reply", "error"),
    [
        (hermes, '<tool_call>{"name": "f"', "without its </tool_call>"),
        (hermes, "<tool_call>{name: f}</tool_call>", "JSONDecodeError"),
        (hermes, "<tool_call></tool_call>", "JSONDecodeError"),
        (hermes, '<tool_call>["f"]</tool_call>', "TypeError"),
        (hermes, f"<tool_call>{'[' * 100_000}</tool_call>", "no call"),
        (llama3, '{"name": 3, "parameters": {}}', "must be a text"),
        (pythonic, "[f(__import__('os').system('x'))]", "name(key=value)"),
        (pythonic, "[f(a=__import__('os'))]", "literal values"),
        (pythonic, "[f(]", "no list of calls"),
    ],
)
def test_what_is_no_call_is_an_error_for_the_model(parser, reply, error) -> None:  # type: ignore[no-untyped-def]
    (call,) = parser(reply)
    assert error in call.error


@pytest.mark.parametrize(
    "reply", ["<tool_call>" + "\n" * 20_000, "<tool_call>" * 9_000, "<tool_call>\n</tool_call>\n" * 9_000]
)
def test_a_degenerate_reply_is_read_in_no_time(reply: str) -> None:
    started = time.process_time()
    calls = list(hermes(reply))
    assert time.process_time() - started < 1.0
    assert calls and all(call.error for call in calls)


def test_a_typed_function_is_a_tool(shop: Path) -> None:
    tools = Tools(["shop.py:price", "actors.tools:Calculator"], base=shop)
    price, calculator = pack(tools.open(PROMPT, 0))["tools"]
    assert price["function"]["name"] == "price" and "in a shop" in price["function"]["description"]
    assert price["function"]["parameters"]["required"] == ["item"]
    assert price["function"]["parameters"]["properties"]["count"]["type"] == "integer"
    assert calculator["function"]["name"] == "calculator" and "brackets" in calculator["function"]["description"]

    def hear(name: str, arguments: str) -> str:
        turn = tools.step(f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>')
        assert not turn.over and turn.messages[0].role == "tool"
        return turn.messages[0].content

    assert hear("price", '{"item": "apple", "count": 3}') == "1.5"
    assert hear("price", '{"item": "apple", "count": "many"}').startswith("error: count: Input should be a valid int")
    assert hear("price", '{"itm": "apple"}').startswith("error: item: Missing")
    assert hear("price", '{"item": "pear"}') == "error: KeyError: 'pear'"
    assert hear("prize", "{}") == "error: there is no tool 'prize'; did you mean 'price'?"
    assert hear("calculator", '{"expression": "(37*86 + 4) / 2"}') == "1593"
    assert tools.step("It is 1.5.").over
    thought = '<think><tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>'
    assert tools.step(f"{thought} or not</think> It is 2.").over, "a call that is only thought of"


def test_what_is_no_tool_is_refused(shop: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"untyped needs types for \['item'\]"):
        Tools(["shop.py:untyped"], base=shop)
    with pytest.raises(EnvironmentFault, match="did you mean 'hermes'"):
        Tools(["shop.py:price"], parser="hermis", base=shop)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2**10", "1024"), ("-(3.5*2)", "-7"), ("7//2 + 7%2", "4"), ("10**60", str(10**60)), ("1/4", "0.25")],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert Calculator()(expression) == value


@pytest.mark.parametrize(
    "expression", ["9**9**9", "10**500", "__import__('os')", "2 if 1 else 3", "'a'*9", "(-8)**0.5", "1/0", "9" * 5000]
)
def test_the_calculator_refuses_what_is_no_sum_or_too_large(expression: str) -> None:
    assert Tool(Calculator()).call({"expression": expression}).startswith("error: ")


@pytest.mark.long
def test_a_python_program_runs_in_the_sandbox_and_what_it_printed_is_heard() -> None:
    tool = Tool(PythonTool(cpu=1.0))
    assert tool.name == "python_tool" and "Run a Python program" in tool.schema["function"]["description"]
    assert tool.call({"code": "print(sum(range(10)))"}) == "45"
    assert tool.call({"code": "x = 1"}) == "(nothing printed)"
    assert "ZeroDivisionError" in tool.call({"code": "1/0"})
    assert "ended: " in tool.call({"code": "while True: pass"})
    assert "Error" in tool.call({"code": "import socket; socket.create_connection(('1.1.1.1', 53), 1)"})
