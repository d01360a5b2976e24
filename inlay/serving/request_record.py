"""What is known of one HTTP request by now: for its headers, its log line and its metrics."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from inlay.serving.logs import Logs
    from inlay.serving.metrics import Metrics
    from inlay.serving.shelf import Loaded
    from inlay.serving.tenants import Caller

CLIENT_LEFT = 499
"""What logs and metrics call the status of an answer that nobody waited for."""


@dataclass(eq=False)
class RequestRecord:
    """`began`, `first_token`: seconds of the monotonic clock. `arm`: the reference that a split chose.
    `status`: what was sent or, where a stream broke off or its client left, what would have been."""

    method: str
    path: str
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    began: float = field(default_factory=time.monotonic)
    caller: Caller | None = None
    arm: str | None = None
    ref: str | None = None
    digest: str | None = None
    stream: bool | None = None
    first_token: float | None = None
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    status: int | None = None
    code: str | None = None

    def found(self, loaded: Loaded, arm: str | None) -> None:
        """Not before: what was not found, or may not be known of, is nowhere named."""
        self.ref, self.digest, self.arm = loaded.ref, loaded.digest, arm

    def put_headers(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.id
        for name, value in (("digest", self.digest), ("ref", self.ref), ("arm", self.arm)):
            if value is not None:
                headers[f"x-inlay-{name}"] = value

    def tell(self, logs: Logs, metrics: Metrics) -> None:
        """The end of it, once."""
        seconds = time.monotonic() - self.began
        status = self.status or CLIENT_LEFT
        variant, _, version = (self.ref or "").partition("@")
        known = self.ref is not None
        who = (variant if known else None, version if known else None, self.arm)
        waited = None if self.first_token is None else self.first_token - self.began
        metrics.request(*who, status, seconds, self.prompt, self.completion, self.cached)
        if waited is not None:
            metrics.first_token(*who, waited)
        if self.ref is None and status >= 400:
            metrics.refused(self.code or "other")
        logs.info(
            "request",
            request=self.id,
            tenant=self.caller.tenant if self.caller else None,
            variant=variant or None,
            version=version or None,
            ref=self.ref,
            digest=self.digest,
            arm=self.arm,
            method=self.method,
            path=self.path,
            status=status,
            code=self.code,
            seconds=seconds,
            first_token=waited,
            prompt_tokens=self.prompt or None,
            completion_tokens=self.completion or None,
            cached_tokens=self.cached or None,
            stream=self.stream,
        )
