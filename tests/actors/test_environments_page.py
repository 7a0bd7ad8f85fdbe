"""The page docs/environments.md says what is so: its own block is run as it stands."""

from __future__ import annotations

import re
import time
import tomllib
from pathlib import Path

from patience import HANG

from actors.config import EnvironmentTable, environment_tables
from actors.rooms import Rooms, Said
from actors.tools import PARSERS
from broker.messages import ChatMessage, Prompt
from broker.runfile import RunFile

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "environments.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def wait(rooms: Rooms) -> Said:
    deadline = time.monotonic() + HANG
    while True:
        for said in rooms.ready():
            return said
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_pages_environment_plays(tmp_path: Path) -> None:
    (block,) = blocks("python")
    (tmp_path / "hangman.py").write_text(block)
    (tmp_path / "run.toml").write_text(blocks("toml")[0])
    tables = environment_tables(RunFile.read(tmp_path / "run.toml"))
    assert tables["hangman"].options == {"misses": 8}
    rooms = Rooms(tables, tmp_path)
    prompt = Prompt("w@0", (ChatMessage("user", "Hangman"),), 1, answer="tree", environment="hangman")
    ticket, said = rooms.open(prompt, 0), []
    for letter in "xter":
        turn = wait(rooms).turn
        assert turn is not None and not turn.over
        said.append(turn.messages[0].content)
        rooms.step(ticket, letter)
    end = wait(rooms).turn
    assert said == ["_ _ _ _ ", "_ _ _ _", "t _ _ _", "t _ e e"]
    assert end is not None and end.over and end.outcome == 1.0
    rooms.close()


def test_fifteen_lines_are_enough() -> None:
    (block,) = blocks("python")
    body = block[block.index("    misses") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


def test_the_page_names_the_parsers_and_the_keys_that_there_are() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)[1:] == list(PARSERS)
    for key in EnvironmentTable.model_fields:
        assert f"`{key}`" in PAGE or f"{key} =" in PAGE or f"NAME] {key}`" in PAGE, key
    table = tomllib.loads(blocks("toml")[1])["environments"]["desk"]
    assert EnvironmentTable.model_validate(table).options["parser"] in PARSERS
