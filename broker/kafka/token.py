"""OAuth tokens for SASL/OAUTHBEARER from a file that something else keeps up to date (a sidecar, a projected service-account token)."""

from __future__ import annotations

from pathlib import Path

from kafka.net.sasl.oauth import AbstractTokenProvider


class TokenFile(AbstractTokenProvider):
    """Reads the file at every login, so it may be replaced at any time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def token(self) -> str:
        return self._path.read_text(encoding="ascii").strip()
