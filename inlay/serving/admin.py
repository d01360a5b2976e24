"""What operators look at: metrics, what is loaded, what could not be, and drain. An address of its own.

Bound to this machine unless told otherwise. Where the store has keys, everything but health and readiness
asks for one that was made with `inlay keys add --admin`. No pages of a browser may ask: whoever opens a
foreign page on the server's own machine would ask in its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from inlay.serving.errors import ApiError, as_api_error
from inlay.serving.metrics import CONTENT_TYPE
from inlay.serving.tenants import Refused, Tenants

if TYPE_CHECKING:
    from inlay.serving.following import Following
    from inlay.serving.metrics import Metrics
    from inlay.serving.scheduler import Scheduler
    from inlay.serving.shelf import Shelf


@dataclass(eq=False)
class Health:
    """Whether the process lives, and whether new requests belong here. `alive`: False once the thread that
    owns the model has died; `following`: whether the registry was read."""

    alive: Callable[[], bool]
    known: Callable[[], bool]
    draining: bool = False

    def problem(self) -> str | None:
        """Why no new request should come, or None."""
        if self.draining:
            return "the server is draining"
        if not self.alive():
            return "the scheduler has stopped"
        return None if self.known() else "the store was not read yet"


def make_admin_app(
    *,
    scheduler: Scheduler,
    shelf: Shelf,
    following: Following,
    tenants: Tenants,
    metrics: Metrics,
    health: Health,
    drain: Callable[[], None],
) -> FastAPI:
    """The admin endpoints. `drain`: what asks the server to end, as SIGTERM does."""

    def admin(request: Request) -> None:
        if "origin" in request.headers:
            raise _forbidden("the admin endpoints are not for pages of a browser")
        if not tenants.of(request.headers.get("authorization")).admin:
            raise _forbidden("the admin endpoints need a key made with --admin")

    app = FastAPI(title="Inlay: admin", openapi_url=None)

    @app.exception_handler(ApiError)
    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    @app.get("/health")
    async def live() -> dict[str, str]:
        if not health.alive():
            raise ApiError(503, "the scheduler has stopped", code="not_alive")
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        problem = health.problem()
        if problem is not None:
            raise ApiError(503, problem, code="not_ready")
        return {"status": "ready"}

    @app.get("/metrics", dependencies=[Depends(admin)])
    def tell_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/admin/loaded", dependencies=[Depends(admin)])
    def tell_loaded() -> dict[str, Any]:
        rows = [
            {"ref": each.ref, "digest": each.digest, "bytes": each.nbytes, "slots": list(each.slots)}
            for each in shelf.loaded()
        ]
        return {
            "loaded": rows,
            "bank_bytes": scheduler.bank.nbytes,
            "running": scheduler.running,
            "waiting": scheduler.waiting,
        }

    @app.get("/admin/problems", dependencies=[Depends(admin)])
    def tell_problems() -> dict[str, Any]:
        return {"problems": following.problems(), "store_age_seconds": following.store_age()}

    @app.post("/admin/drain", status_code=202, dependencies=[Depends(admin)])
    async def begin_drain() -> dict[str, str]:
        drain()
        return {"status": "draining"}

    return app


def _forbidden(message: str) -> ApiError:
    return ApiError(403, message, code="forbidden", kind="permission_error")
