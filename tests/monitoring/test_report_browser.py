"""The report in a real browser: it opens from the disk, asks nobody for anything, and runs nothing that a model wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handreport import hand_report
from matplotlib.image import imread
from patience import HANG

from monitoring.report import write_html
from monitoring.report.page import SECTIONS

pytestmark = pytest.mark.watch
HOSTILE = (
    "</pre></title></style></script><script>document.body.innerHTML='owned';console.error('owned')</script>"
    "<img src=x onerror=\"console.error('owned')\"><img src=http://model.invalid/leak><svg onload=console.error(1)>"
    "<meta http-equiv=refresh content='0;url=http://model.invalid/'><a href=javascript:alert(1)>'\"&lt;${name} {name} $name"
    "\x00\x07\x1b[2J\x9b\u202e\u2066\u200b\ud800\ufeff" + "y" * 100_000
)


@dataclass
class Seen:
    """What the browser made of a page: its document, what it said on the console, what it asked the network for."""

    document: str
    console: list[str]
    asked: list[str]
    picture: Path


def browse(page: Path, dark: bool = False, size: tuple[int, int] = (1280, 1000)) -> Seen:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.fail("this test needs Chromium: `make setup-watch` installs it")
    picture = page.with_suffix(".png")
    command = [
        browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={page.parent / 'profile'}", f"--window-size={size[0]},{size[1]}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--log-net-log={page.with_suffix('.net')}", "--dump-dom", f"--screenshot={picture}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []), page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=HANG)
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0 and picture.exists(), said[-3000:]
    console = [line for line in said.splitlines() if ":CONSOLE" in line]
    return Seen(done.stdout.decode(errors="replace"), console, requests(page.with_suffix(".net")), picture)


def requests(net_log: Path) -> list[str]:
    """What a page asked the network for; what the browser asks for itself has no origin."""
    log = json.loads(net_log.read_text())
    began = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = [event["params"] for event in log["events"] if event["type"] == began and event.get("params")]
    return [p["url"] for p in found if p.get("url") and p.get("initiator", "") != "not an origin"]


class Elements(HTMLParser):
    """The tags of a document, its text, and all that would run or load something."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.active: list[str] = []
        self.ids: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            outside = name in ("src", "href") and not (value or "").startswith(("#", "data:"))
            if outside or name.startswith("on") or tag in ("script", "iframe", "object", "embed", "base", "form"):
                self.active.append(f"{tag} {name}={value}"[:200])

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def colours(picture: Path) -> tuple[int, float]:
    """How many colours a picture has, and how bright its first pixel is."""
    pixels = imread(picture)[:, :, :3]
    levels = (pixels * 15).round().astype(int)
    codes = levels[:, :, 0] * 256 + levels[:, :, 1] * 16 + levels[:, :, 2]
    return len(set(codes.ravel().tolist())), float(pixels[0, 0].mean())


def test_hostile_texts_are_shown_and_nothing_else(tmp_path: Path) -> None:
    write_html(hand_report(120, HOSTILE), tmp_path / "report.html")
    seen = browse(tmp_path / "report.html")
    found = Elements(seen.document)
    assert seen.console == [] and seen.asked == [] and found.active == []
    assert not {"script", "img"} & set(found.tags)
    assert [name for name in SECTIONS if name in found.ids] == list(SECTIONS)
    assert found.tags.count("figure") > 15 and found.tags.count("details") == 10
    text = "".join(found.text)
    assert "<script>document.body.innerHTML='owned'" in text, "the model's text is shown as text"
    for shown in (
        "pass@1 of the model that each stage left",
        "cons@16",
        "3,600",
        "2.35M",
        "not judged",
        "before",
        "after",
    ):
        assert shown in text, shown
    assert found.tags.count("table") > 6 and text.count("What is 12 + 7?") == 8
    assert "more characters]" in text and "${name} {name} $name" in text
    assert not set(text) & set("\x00\x07\x1b\x9b\u202e\u2066\u200b\ud800")
    assert sorted(map(len, found.text))[-2] < 25_000, "a long line is clipped, other than in the run file"
    count, brightness = colours(seen.picture)
    assert count > 20 and brightness > 0.9


def test_it_is_dark_where_the_reader_wants_it_and_fits_a_phone(tmp_path: Path) -> None:
    write_html(hand_report(5), tmp_path / "report.html")
    seen = browse(tmp_path / "report.html", dark=True, size=(500, 2500))
    count, brightness = colours(seen.picture)
    assert seen.console == [] and seen.asked == []
    assert count > 20 and brightness < 0.2


def test_a_page_that_runs_and_loads_something_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img hidden src=http://model.invalid/leak><script>console.error('owned')</script>")
    seen = browse(page)
    assert any("owned" in line for line in seen.console)
    assert any("model.invalid/leak" in line for line in seen.asked)
    assert colours(seen.picture)[0] == 1, "a blank picture is seen to be blank"
