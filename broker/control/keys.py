"""CURVE keys: beyond the loopback, daemons need the run's key file to connect (ZMTP CURVE, RFC 26)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import zmq

from broker.errors import ControlError


@dataclass(frozen=True, slots=True)
class Keys:
    """One key pair that all daemons of a run share; only its owner can read the file."""

    public: bytes
    secret: bytes

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Raises ControlError if the file is missing or holds no keys."""
        try:
            raw = json.loads(path.read_text())
            return cls(raw["public"].encode(), raw["secret"].encode())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ControlError(f"no control keys at {path}: {error}; make them with `headrace keys {path}`") from error

    @classmethod
    def make(cls, path: Path) -> Keys:
        public, secret = zmq.curve_keypair()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"public": public.decode(), "secret": secret.decode()}, file)
        return cls(public, secret)

    def serve(self, socket: zmq.Socket[bytes]) -> None:
        socket.curve_server = True
        socket.curve_secretkey, socket.curve_publickey = self.secret, self.public

    def call(self, socket: zmq.Socket[bytes]) -> None:
        socket.curve_serverkey = self.public
        socket.curve_secretkey, socket.curve_publickey = self.secret, self.public
