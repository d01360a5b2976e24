"""What a server is started with: one frozen record, checked when it is made. No torch."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inlay.errors import InputError

LARGEST_PORT = 65535


@dataclass(frozen=True)
class ServerSettings:
    """`base`: a folder or a hub id; `store`: the registry's folder, None for the nearest upward.

    `port` 0 takes any that is free, for the admin address too; `admin_port` None is the one after `port`.
    `rows`: requests that are answered at once; `queue`: those that wait, more are refused. `budget`: bytes of
    adapters in the bank; `prefix_bytes`: keys and values of prompts seen before. `body_bytes`: the largest
    body of a request; `prompt_tokens`: the longest prompt, None for what the base's context holds.
    `timeout`: seconds from a request's arrival to its last token; `drain`: seconds that running requests get
    when the server is asked to end. `splits`: canaries as "acme=acme@prod:95,acme@canary:5".
    `accept_prompt_change`: serve although the base's tokenizer or chat template changed. Raises InputError
    where a value is out of bounds.
    """

    base: str | Path
    store: str | Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    rows: int = 32
    queue: int = 256
    budget: int = 1 << 30
    prefix_bytes: int = 256 << 20
    body_bytes: int = 1 << 20
    prompt_tokens: int | None = None
    timeout: float = 120.0
    drain: float = 30.0
    splits: tuple[str, ...] = ()
    device: str = "auto"
    accept_prompt_change: bool = False
    log_format: Literal["json", "text"] = "json"

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("queue", 1), ("budget", 1), ("body_bytes", 1024)):
            _at_least(name, getattr(self, name), least)
        _at_least("prefix_bytes", self.prefix_bytes, 0)
        if self.prompt_tokens is not None:
            _at_least("prompt_tokens", self.prompt_tokens, 1)
        for name in ("port", "admin_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= LARGEST_PORT:
                raise InputError(f"{name} must be between 0 and {LARGEST_PORT}, got {port}")
        if self.admin == self.port != 0 and self.admin_host == self.host:
            raise InputError(f"admin_port must be another than port, both are {self.port}")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise InputError(f"timeout must be some seconds, got {self.timeout}")
        if not (self.drain >= 0 and math.isfinite(self.drain)):
            raise InputError(f"drain must be zero seconds or more, got {self.drain}")
        if self.log_format not in ("json", "text"):
            raise InputError(f"log_format must be json or text, got {self.log_format!r}")

    @property
    def admin(self) -> int:
        """The admin address's port; 0 for any."""
        if self.admin_port is not None:
            return self.admin_port
        return 0 if self.port == 0 else self.port - 1 if self.port == LARGEST_PORT else self.port + 1

    @property
    def loopback(self) -> bool:
        """Whether both addresses can be reached from this machine alone."""
        return is_loopback(self.host) and is_loopback(self.admin_host)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
