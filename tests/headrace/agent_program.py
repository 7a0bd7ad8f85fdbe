"""An agent as somebody may have one: it plays a game of two turns with OpenAI's own client, over and over, and says what each game was worth.

``python agent_program.py URL NAME LOG``: a line of LOG a game that was rewarded. It knows nothing of this project but three addresses.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import httpx
from openai import APIConnectionError, APIStatusError, OpenAI


def patiently(what: Any) -> Any:
    """Try again while the other side is away."""
    while True:
        try:
            answer = what()
            if isinstance(answer, httpx.Response) and answer.status_code >= 500:
                raise httpx.TransportError(answer.text)
            return answer
        except (httpx.TransportError, APIConnectionError):
            time.sleep(0.3)
        except APIStatusError as error:
            if error.status_code < 500:
                raise
            time.sleep(0.3)


def main(url: str, name: str, log: str) -> None:
    for game in range(1000):
        session = f"{name}-{game}"
        client = OpenAI(base_url=f"{url}/sessions/{session}/v1", api_key="none", max_retries=0, timeout=600)
        talk: list[Any] = [{"role": "user", "content": "Guess: 0 to 9"}]
        worth = 0.0
        for _ in range(2):
            asked = list(talk)
            choice = patiently(lambda: client.chat.completions.create(model="duty", messages=asked)).choices[0]  # noqa: B023
            text = choice.message.content or ""
            talk += [{"role": "assistant", "content": text}, {"role": "user", "content": "5 to 9"}]
            worth += text.strip().isdigit() / 2
            if choice.finish_reason != "stop":
                break
        reward = f"{url}/v1/headrace/sessions/{session}/reward"
        answer = patiently(lambda: httpx.post(reward, json={"reward": worth}, timeout=600))  # noqa: B023
        assert answer.status_code == 200, answer.text
        with Path(log).open("a") as file:
            file.write(f"{session} {worth}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
