"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}} and a status.

A message says what is wrong with the request. What is wrong with the server is said to its log, and to the
client only that something is: no trace, no path, no key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from inlay.errors import InlayError, InputError
from inlay.registry.printable import printable
from inlay.serving.tenants import Refused

INVALID = "invalid_request_error"
LONGEST_SHOWN = 120
"""Characters of a client's own words in a message."""
SECONDS_TO_WAIT = 1.0
"""What `Retry-After` says where nobody knows better."""
_OF_KEY = {401: "invalid_api_key", 403: "permission_denied"}
_OF_STATUS = {
    404: ("unknown_url", "there is nothing at this address"),
    405: ("method_not_allowed", "this address does not know this method"),
    408: ("request_timeout", "the body did not come in time"),
    413: ("request_too_large", "the body is larger than this server takes"),
}


class ApiError(Exception):
    """An answer that is an error. `param`: the field of the body that is meant; `code`: for programs;
    `retry_after`: seconds after which it may be tried again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or (INVALID if status < 500 else "server_error")
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that breaks a rule."""
    return ApiError(400, message, param=param, code=code)


def model_not_found(model: str) -> ApiError:
    """For what nobody has and for what the caller may not know of, word for word the same."""
    return ApiError(
        404,
        f"The model {shown(model)} does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def too_long(message: str, param: str) -> ApiError:
    return invalid(message, param, "context_length_exceeded")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any error. A status of 500 is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _not_valid(error.errors(), error.body)
    if isinstance(error, HTTPException):
        code, message = _OF_STATUS.get(error.status_code, (None, "the request cannot be read as JSON"))
        return ApiError(error.status_code, message, code=code, headers=error.headers)
    if isinstance(error, Refused):
        if error.status in (401, 403):
            return ApiError(error.status, error.message, code=_OF_KEY[error.status])
        return ApiError(
            error.status,
            error.message,
            kind="requests",
            code="rate_limit_exceeded",
            retry_after=error.retry_after or SECONDS_TO_WAIT,
        )
    if isinstance(error, TimeoutError):
        return ApiError(
            504, "the answer was not complete in the time that this server allows", code="timeout"
        )
    if isinstance(error, InputError):
        return invalid(printable(error.message))
    if isinstance(error, InlayError) and error.exit_code != 3:
        return ApiError(503, "what should answer is damaged or broken", code="model_failed")
    if isinstance(error, InlayError):
        return ApiError(
            503, "this cannot be served right now", code="unavailable", retry_after=SECONDS_TO_WAIT
        )
    return ApiError(500, "the server made a mistake; it has been logged", code="internal_error")


def shown(text: object) -> str:
    """A client's own words inside a message: on one line, and not many of them."""
    words = printable(str(text))
    return f"`{words[:LONGEST_SHOWN]}…`" if len(words) > LONGEST_SHOWN else f"`{words}`"


def _not_valid(errors: Sequence[Any], body: Any) -> ApiError:
    """The first of pydantic's complaints."""
    if isinstance(body, bytes):
        return invalid("the body must be JSON, with `Content-Type: application/json`", code="invalid_json")
    first = errors[0]
    if first["type"] == "json_invalid":
        return invalid(f"the body must be JSON: {first['ctx']['error']}", code="invalid_json")
    where = [part for part in first["loc"] if part != "body"]
    if not where:
        return invalid(f"the body must be an object: {first['msg']}")
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{printable(str(part))}" for part in where)
    return invalid(f"{place.lstrip('.')}: {printable(first['msg'])}", str(where[0]), "invalid_value")
