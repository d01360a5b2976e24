"""The endpoints: OpenAI's, over the scheduler, and whether the server lives and is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

import inlay
from inlay.errors import InlayError
from inlay.serving.admission import Admission
from inlay.serving.chats import Chat
from inlay.serving.completions import Completions
from inlay.serving.errors import ApiError
from inlay.serving.middleware import Middleware, told
from inlay.serving.response import CompletionResponse
from inlay.serving.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    ModelCard,
    ModelCards,
    Standing,
)

if TYPE_CHECKING:
    from inlay.evals.inference import Base
    from inlay.serving.admin import Health
    from inlay.serving.following import Following
    from inlay.serving.logs import Logs
    from inlay.serving.metrics import Metrics
    from inlay.serving.request_record import RequestRecord
    from inlay.serving.scheduler import Scheduler
    from inlay.serving.settings import ServerSettings
    from inlay.serving.splitting import Splits
    from inlay.serving.tenants import Caller, Tenants

Documented = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "The request breaks a rule, and `param` names the field; or its prompt is too long.",
    401: "No valid key came with the request.",
    404: "There is no such model, or the key may not reach it.",
    408: "The body did not come in time.",
    413: "The body is larger than this server takes.",
    429: "Over the key's rate or its number of requests at once; see `Retry-After`.",
    500: "A bug of the server's; it is in its log under the request's id.",
    503: "Not right now: the queue is full, the server drains, or the model could not be loaded.",
    504: "The answer was not complete in time.",
}
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_HEADERS = {
    "x-request-id": "The request's id, as in the server's log.",
    "x-inlay-ref": "What answered.",
    "x-inlay-digest": "Its digest.",
    "x-inlay-arm": "The reference that a split chose.",
}


def _errors(*statuses: int) -> Documented:
    found: Documented = {}
    for status in statuses:
        headers = {"x-request-id": _header("x-request-id", True)}
        if status in (429, 503):
            headers["retry-after"] = {"schema": {"type": "string"}, "description": "Seconds."}
        found[status] = {"model": ErrorAnswer, "description": _MEANINGS[status], "headers": headers}
    found["default"] = {
        "model": ErrorAnswer,
        "description": "Any other error.",
    }  # else FastAPI promises a 422
    return found


def _answers(model: type[Any]) -> Documented:
    """A whole answer, or a stream of its parts."""
    return {
        200: {
            "model": model,
            "description": "The answer; with `stream`, server-sent events that end with `data: [DONE]`.",
            "content": {"text/event-stream": {"itemSchema": _EVENT}},
            "headers": {name: _header(name, name != "x-inlay-arm") for name in _HEADERS},
        },
        **_errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
    }


def _header(name: str, required: bool) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "description": _HEADERS[name], "required": required}


def make_app(
    *,
    base: Base,
    scheduler: Scheduler,
    following: Following,
    tenants: Tenants,
    splits: Splits,
    settings: ServerSettings,
    metrics: Metrics,
    logs: Logs,
    health: Health | None = None,
) -> FastAPI:
    """The API as an ASGI app. `health`: whether new requests belong here; None asks `following` alone."""
    admission = Admission(
        base=base,
        scheduler=scheduler,
        following=following,
        tenants=tenants,
        splits=splits,
        settings=settings,
        logs=logs,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        admission.close()

    app = FastAPI(
        title="Inlay",
        version=inlay.__version__,
        description=f"Variants of {base.fingerprint.name} behind the OpenAI API.",
        docs_url=None,  # its pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Middleware, tenants=tenants, settings=settings, logs=logs, metrics=metrics)
    key = [
        Depends(HTTPBearer(auto_error=False, description="A key of `inlay keys add`, where there are any."))
    ]

    async def explain(request: Request, error: Exception) -> Response:
        return told(error, request.state.visit, logs).response()

    for sort in (ApiError, HTTPException, RequestValidationError, InlayError):
        app.add_exception_handler(sort, explain)

    @app.post("/v1/chat/completions", dependencies=key, responses=_answers(ChatCompletion))
    async def answer_chat(request: Request, body: ChatRequest) -> Response:
        """An answer to messages."""
        visit = _visit(request, body.stream)
        return CompletionResponse(admission, Chat(body, admission.tokenization, admission.room), visit)

    @app.post("/v1/completions", dependencies=key, responses=_answers(Completion))
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """What a text, or tokens, go on with."""
        visit = _visit(request, body.stream)
        return CompletionResponse(admission, Completions(body, admission.tokenization, admission.room), visit)

    @app.get("/v1/models", dependencies=key, responses=_errors(401, 500))
    async def list_models(request: Request) -> ModelCards:
        """The names that the caller may ask for: the base, aliases, splits."""
        return ModelCards(data=await asyncio.to_thread(_cards, admission, request.state.visit.caller))

    @app.get("/v1/models/{model:path}", dependencies=key, responses=_errors(401, 404, 500))
    async def show_model(request: Request, model: str) -> ModelCard:
        """One of them."""
        return await asyncio.to_thread(_card, admission, request.state.visit.caller, model)

    @app.get("/health", responses=_errors(500, 503))
    async def live() -> Standing:
        """Whether the process can answer at all."""
        if health is not None and not health.alive():
            raise ApiError(503, "the scheduler has stopped", code="not_alive")
        return Standing(status="alive")

    @app.get("/ready", responses=_errors(500, 503))
    async def ready() -> Standing:
        """Whether new requests belong here."""
        problem = health.problem() if health is not None else _unready(following)
        if problem is not None:
            raise ApiError(503, problem, code="not_ready")
        return Standing(status="ready")

    return app


def _visit(request: Request, stream: bool | None) -> RequestRecord:
    visit: RequestRecord = request.state.visit
    visit.stream = bool(stream)
    return visit


def _unready(following: Following) -> str | None:
    return None if following.ready else "the store was not read yet"


def _cards(admission: Admission, caller: Caller) -> list[ModelCard]:
    rows = [row for row in admission.following.names() if admission.visible(caller, row.ref)]
    cards = {row.ref: ModelCard(id=row.ref, created=_seconds(row.created), digest=row.digest) for row in rows}
    for name in admission.splits.arms:
        if admission.visible(caller, name):
            cards.setdefault(name, ModelCard(id=name, created=0))
    return list(cards.values())


def _card(admission: Admission, caller: Caller, model: str) -> ModelCard:
    """One that is listed, by its whole name or without @prod; or what a reference means that is not."""
    cards = {card.id: card for card in _cards(admission, caller)}
    card = cards.get(model) or cards.get(f"{model}@prod")
    if card is not None:
        return card
    target = admission.meaning(caller, model)
    return ModelCard(id=model, created=_seconds(target.created), digest=target.digest)


def _seconds(created: str) -> int:
    """ISO 8601 as seconds since 1970; 0 where nothing is known."""
    return int(datetime.fromisoformat(created).timestamp()) if created else 0
