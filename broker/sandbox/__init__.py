"""Runs untrusted code: bubblewrap, a user of its own, resource limits, a filter of system calls, and a watch.

``Sandbox().run(["python3", "main.py"], files={"main.py": source})`` runs one command in a fresh sandbox;
``Sandbox().open()`` starts one for several runs.
"""

from broker.sandbox.limits import Limits, Result, SandboxError
from broker.sandbox.sandbox import Sandbox
from broker.sandbox.session import Gone, Session

__all__ = ["Gone", "Limits", "Result", "Sandbox", "SandboxError", "Session"]
