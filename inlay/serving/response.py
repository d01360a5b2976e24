"""One completion, from its admission to its last byte: taken, submitted, heard, answered, given back.

An exchange is the response that an endpoint returns, so that all of it happens within one call that cannot
end, whether by an error, a timeout or a client that left, without what it took being given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inlay.serving.endpoint import Endpoint, Said, Wanted
from inlay.serving.errors import invalid
from inlay.serving.event_queue import EventQueue
from inlay.serving.middleware import told
from inlay.serving.request_record import CLIENT_LEFT
from inlay.serving.requests import Ended, Event, Failed, Request, Token
from inlay.serving.scheduler import NotFinite

if TYPE_CHECKING:
    from inlay.serving.admission import Admission
    from inlay.serving.request_record import RequestRecord
    from inlay.serving.scheduler import Ticket
    from inlay.serving.shelf import Loaded

LAST_WORDS = 1.0
"""Seconds that a client which reads slowly gets to hear why its stream ends."""


class CompletionResponse(Response):
    def __init__(self, admission: Admission, endpoint: Endpoint, visit: RequestRecord) -> None:
        self.admission = admission
        self.endpoint = endpoint
        self.visit = visit
        self.background = None
        self._started = False
        self._left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        until = self.visit.began + self.admission.settings.timeout
        try:
            async with asyncio.timeout_at(until) as limit:
                watch = asyncio.create_task(self._watch(receive, limit))
                try:
                    await self._held(send)
                finally:
                    watch.cancel()
        except Exception as error:
            if self._left:
                self.visit.status = CLIENT_LEFT
                return
            if not self._started:
                raise
            body = told(error, self.visit, self.admission.logs).body()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._send(send, f"event: error\ndata: {_json(body)}\n\n", last=True)

    async def _watch(self, receive: Receive, limit: asyncio.Timeout) -> None:
        """Ends the exchange at once when its client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        limit.reschedule(asyncio.get_running_loop().time())

    async def _held(self, send: Send) -> None:
        """The exchange, with what it holds."""
        assert self.visit.caller is not None
        with contextlib.ExitStack() as held:
            held.enter_context(self.admission.tenants.admitted(self.visit.caller))
            rows, loaded = await self.admission.take(self.endpoint, self.visit)
            queue = EventQueue(len(rows), eager=bool(self.endpoint.asked.stream))
            tickets: list[Ticket] = []
            held.callback(self.admission.leave, loaded, tickets, queue, len(rows))
            for number, row in enumerate(rows):
                tickets.append(self.admission.submit(loaded, self._request(number, row), queue.ear(number)))
            said = [Said() for _ in rows]
            if self.endpoint.asked.stream:
                await self._stream(send, queue, said, loaded)
            else:
                await self._whole(send, queue, said, loaded)

    def _request(self, number: int, row: Wanted) -> Request:
        assert self.visit.caller is not None
        extension = self.endpoint.asked.inlay
        weights, expert = (extension.weights, extension.expert) if extension else (None, None)
        return Request(
            f"{self.visit.id}/{number}", self.visit.caller.tenant, row.ids, row.sampling, weights, expert
        )

    def _heed(self, events: Sequence[tuple[int, Event]], said: Sequence[Said]) -> None:
        for row, event in events:
            if isinstance(event, Failed):
                raise self._failure(event.error)
            said[row].add(event.text)
            if isinstance(event, Token):
                said[row].tokens.append(event)
            else:
                said[row].end = event

    def _failure(self, error: Exception) -> Exception:
        """Weights that make a model overflow are the request's mistake."""
        extension = self.endpoint.asked.inlay
        if isinstance(error, NotFinite) and extension is not None and extension.weights:
            return invalid("these weights make the model overflow: lower them", "inlay", "invalid_value")
        return error

    def _note(self, queue: EventQueue, said: Sequence[Said]) -> dict[str, Any]:
        usage, visit = self.endpoint.usage(said), self.visit
        visit.first_token = queue.first
        visit.prompt, visit.completion = usage["prompt_tokens"], usage["completion_tokens"]
        visit.cached = usage["prompt_tokens_details"]["cached_tokens"]
        return usage

    def _head(self, kind: str, loaded: Loaded) -> dict[str, Any]:
        return {
            "id": self.endpoint.prefix + self.visit.id.removeprefix("req_"),
            "object": kind,
            "created": int(time.time()),
            "model": self.endpoint.asked.model,
            "system_fingerprint": loaded.digest,
        }

    async def _whole(self, send: Send, queue: EventQueue, said: list[Said], loaded: Loaded) -> None:
        while any(row.end is None for row in said):
            self._heed(await queue.more(), said)
        answer = {
            **self._head(self.endpoint.object, loaded),
            "choices": [self.endpoint.choice(number, row) for number, row in enumerate(said)],
            "usage": self._note(queue, said),
        }
        text = _json(answer)
        await self._start(send, "application/json", ("content-length", str(len(text.encode()))))
        await self._send(send, text, last=True)

    async def _stream(self, send: Send, queue: EventQueue, said: list[Said], loaded: Loaded) -> None:
        """Server-sent events. Nothing is sent before the first token, so that what fails has its status."""
        head, usage = self._head(self.endpoint.chunk, loaded), self.endpoint.asked.with_usage

        def line(choices: list[dict[str, Any]], used: dict[str, Any] | None = None) -> str:
            return f"data: {_json({**head, 'choices': choices, **({'usage': used} if usage else {})})}\n\n"

        opened: set[int] = set()
        try:
            while any(row.end is None for row in said):
                lines: list[str] = []
                for number, event in await queue.more():
                    if isinstance(event, Failed):
                        if lines:
                            await self._begin(send)
                            await self._send(send, "".join(lines))
                        raise self._failure(event.error)
                    if number not in opened:
                        opened.add(number)
                        opening = self.endpoint.opening(number)
                        lines += [line([opening])] if opening is not None else []
                    lines += [line([piece]) for piece in self._pieces(number, event, said[number])]
                if lines:
                    await self._begin(send)
                    await self._send(send, "".join(lines))
        finally:
            used = self._note(queue, said)
        end = line([], used) if usage else ""
        await self._send(send, f"{end}data: [DONE]\n\n", last=True)

    def _pieces(self, number: int, event: Token | Ended, said: Said) -> list[dict[str, Any]]:
        """What a token, or the end, adds to a row. A token without text is shown for its probability only."""
        offset, pieces = said.shown, []
        said.add(event.text)
        token = event if isinstance(event, Token) and self.endpoint.logprobs is not None else None
        if event.text or token is not None:
            pieces.append(self.endpoint.piece(number, event.text, token, offset, None))
        if isinstance(event, Ended):
            said.end = event
            pieces.append(self.endpoint.piece(number, "", None, said.shown, event.reason))
        return pieces

    async def _begin(self, send: Send) -> None:
        if not self._started:
            await self._start(send, "text/event-stream; charset=utf-8", ("cache-control", "no-cache"))

    async def _start(self, send: Send, kind: str, *more: tuple[str, str]) -> None:
        self._started = True
        headers = [("content-type", kind), *more]
        raw = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, text: str, *, last: bool = False) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": not last})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
