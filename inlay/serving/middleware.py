"""Where every request comes in: its id, its key, the bounds of its body, and the line in the log at its end.

Outside of the endpoints, so that nobody without a key makes the server read a body, and that whatever goes
wrong further in is answered in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inlay.errors import InlayError
from inlay.serving.errors import ApiError, as_api_error
from inlay.serving.request_record import RequestRecord

if TYPE_CHECKING:
    from inlay.serving.logs import Logs
    from inlay.serving.metrics import Metrics
    from inlay.serving.settings import ServerSettings
    from inlay.serving.tenants import Tenants

NEEDS_KEY = "/v1/"
UNTOLD = frozenset({"/health", "/ready"})
"""Asked every few seconds by machines: no lines in the log."""


class Middleware:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        tenants: Tenants,
        settings: ServerSettings,
        logs: Logs,
        metrics: Metrics,
    ) -> None:
        self.app = app
        self.tenants = tenants
        self.settings = settings
        self.logs = logs
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = RequestRecord(scope["method"], scope["path"])
        scope.setdefault("state", {})["visit"] = visit
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                visit.status = message["status"]
                visit.put_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            if visit.path.startswith(NEEDS_KEY):
                visit.caller = self.tenants.of(Headers(scope=scope).get("authorization"))
            await self.app(scope, self._bounded(scope, receive, visit), sending)
        except Exception as error:
            if started:
                raise
            await told(error, visit, self.logs).response()(scope, receive, sending)
        finally:
            if visit.path not in UNTOLD:
                visit.tell(self.logs, self.metrics)

    def _bounded(self, scope: Scope, receive: Receive, visit: RequestRecord) -> Receive:
        """`receive` that refuses a body that is too long, or too slow, before it has been read."""
        most, until = self.settings.body_bytes, visit.began + self.settings.timeout
        length = Headers(scope=scope).get("content-length")
        announced = int(length) if length is not None and length.isdecimal() else 0
        came, whole = 0, False

        async def receiving() -> Message:
            nonlocal came, whole
            if whole:
                return await receive()
            if announced > most:
                raise HTTPException(413)
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            came += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if came > most:
                raise HTTPException(413)
            return message

        return receiving


def told(error: Exception, visit: RequestRecord, logs: Logs) -> ApiError:
    """What the client is told of an error; what is the server's own is told to the log."""
    answer = as_api_error(error)
    visit.status, visit.code = answer.status, answer.code
    if answer.status == 500 or (answer.status > 500 and isinstance(error, InlayError)):
        logs.error("bug" if answer.status == 500 else "failed", error, request=visit.id, code=answer.code)
    return answer
