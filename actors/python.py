"""A Python interpreter as a tool: what the model writes runs in the sandbox, and the model hears what it printed."""

from __future__ import annotations

from dataclasses import dataclass

from broker.sandbox import Limits, Sandbox

SHOWN = 3000  # characters of the output that are kept, counted from its end


@dataclass(frozen=True)
class PythonTool:
    """Every call is a program of its own: nothing stays from one to the next."""

    cpu: float = 2.0
    memory_mb: int = 256

    def __call__(self, code: str) -> str:
        """Run a Python program and return what it prints. Every call starts anew; print what you want to know."""
        done = Sandbox(Limits(cpu=self.cpu, memory_mb=self.memory_mb)).run(
            ["python3", "main.py"], {"main.py": code.encode("utf-8", "replace")}
        )
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        shown = text if len(text) <= SHOWN else f"... {text[-SHOWN:]}"
        if done.cause:
            return f"{shown}\nended: {done.why}".strip()
        return shown.strip() or "(nothing printed)"
