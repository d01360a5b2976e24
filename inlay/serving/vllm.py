"""Registry references as names of adapters in vLLM, which keeps for good what a name meant first.

    INLAY_STORE=adapters_store VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 \\
    vllm serve BASE --enable-lora --middleware inlay.serving.vllm.Pinned

Two parts, both given to vLLM by its own means. `Pinned`, a middleware, writes in every request what the
reference in `model` means at that moment: acme@prod -> acme@sha256:…. `Resolver`, a plugin of the group
vllm.general_plugins, answers such names with the adapter, exported once into a folder called by the digest.
So vLLM sees no name that moves, and its caches (adapters by name, prefixes by name and path) never hold what
the registry has left. What must not be served is given to vLLM under a name that it cannot have kept; the
resolver then refuses it with the reason, after vLLM asked for the key. Checked with vLLM 0.32.

Imports vLLM where vLLM itself calls it, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from inlay import __version__
from inlay.composer.lint import VLLM_RANKS
from inlay.errors import BaseMismatch, InlayError, InputError, IntegrityError, StoreBusy
from inlay.registry import BaseFingerprint, cache_dir
from inlay.serving.pins import Pin, Pins, is_pinned

CLOSED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters")
"""Where vLLM would let a client put other bytes under a name, once adapters may be loaded while it runs."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STATE: ContextVar[Any] = ContextVar("the state of vLLM's server, during a request")


def register() -> None:
    """vLLM calls this in each of its processes. Does nothing where INLAY_STORE is not set."""
    if not os.environ.get("INLAY_STORE"):
        return
    from vllm.lora.resolver import LoRAResolverRegistry

    if "inlay" not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver("inlay", Resolver(pins))


@cache
def pins() -> Pins:
    """Those of the store that INLAY_STORE names, which the middleware and the resolver share."""
    return Pins()


class Resolver:
    """vllm.lora.resolver.LoRAResolver, by what it does."""

    def __init__(self, pins: Callable[[], Pins]) -> None:
        self.pins = pins
        self._bases: dict[tuple[str, str | None], BaseFingerprint] = {}

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """The vllm.lora.request.LoRARequest of a pinned name; None, hence 404, where it means nothing here.

        Raises fastapi.HTTPException, whose words reach the client: 400 for a name that moves, what was
        yanked, what vLLM cannot run and what was made for another base; 503 where the store or the disk
        cannot be used now; 500 where bytes are not what they were.
        """
        from fastapi import HTTPException

        config = getattr(_STATE.get(None), "vllm_config", None)
        try:
            found = await asyncio.to_thread(self._resolve, base_model_name, lora_name, config)
        except InlayError as error:
            raise HTTPException(_status(error), str(error)) from None
        if found is None:
            return None
        from vllm.lora.request import LoRARequest

        path, number = found
        return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=path)

    def _resolve(self, base: str, name: str, config: Any) -> tuple[str, int] | None:
        """(folder, a number that vLLM replaces by its own)."""
        pin = self.pins().of(name)
        if pin is None:
            return None
        if pin.refused:
            raise InputError(pin.refused)
        if not is_pinned(name):
            raise InputError(
                f"vLLM keeps what a name meant first, and {name} may come to mean something else",
                fix=f"start vLLM with --middleware {__name__}.Pinned, or ask for {pin.name}",
            )
        self._check_base(pin, base, config)
        from inlay.serving.exports import Exports, rank_of

        exports = Exports(exports_folder(), engine="vllm")
        folder = exports.made(pin.target.digest) or exports.make(pin.target, self.pins().registry())
        _check_rank(pin, rank_of(folder), config)
        return str(folder), 1 + int(folder.name[:8], 16)

    def _check_base(self, pin: Pin, base: str, config: Any) -> None:
        from inlay.composer.bases import check_fingerprint

        revision = getattr(getattr(config, "model_config", None), "revision", None)
        if (base, revision) not in self._bases:
            self._bases[base, revision] = BaseFingerprint.of(base, revision)
        try:
            check_fingerprint(pin.target.base, self._bases[base, revision], pin.target.ref)
        except BaseMismatch as error:
            raise BaseMismatch(error.message, fix="start vLLM with the base that it was made for") from None


def _status(error: InlayError) -> int:
    if isinstance(error, StoreBusy):
        return 503
    return 500 if isinstance(error, IntegrityError) else 400


def exports_folder() -> Path:
    """Where the adapters lie that vLLM reads: in $INLAY_CACHE, apart for each release of Inlay."""
    return cache_dir() / "vllm" / __version__


def _check_rank(pin: Pin, rank: int, config: Any) -> None:
    """InputError where vLLM was started for smaller ranks, which it would only say in its log."""
    largest = getattr(getattr(config, "lora_config", None), "max_lora_rank", None)
    if largest is not None and rank > largest:
        fitting = next(each for each in VLLM_RANKS if each >= rank)
        raise InputError(
            f"{pin.target.ref} has rank {rank}, and this vLLM takes {largest} at most",
            fix=f"start it with --max-lora-rank {fitting}, or merge to a smaller rank",
        )


class Pinned:
    """A middleware (ASGI) that pins the reference in the `model` of every request with a JSON body.

    The body is read when vLLM reads it, which is after the key was checked. Names of the base and of
    --lora-modules are vLLM's own and stay as they are. Answers carry `x-inlay-ref` and `x-inlay-digest`, and
    their `model` is the pinned name. Where the registry cannot be read, references mean what they meant last.
    Clients cannot load or unload adapters by path: those addresses answer 404.

    Raises InputError where there is no registry, or vLLM's settings would never ask the resolver.
    """

    def __init__(self, app: App) -> None:
        _check_settings()
        self.app = app
        self.pins = pins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = getattr(scope.get("app"), "state", None)
        token = _STATE.set(state)
        try:
            if _closed(scope):
                await _not_found(send)
            elif _names_elsewhere(scope):
                await self.app(scope, receive, send)
            else:
                exchange = _Exchange(self.pins, state, receive, send)
                await self.app(scope, exchange.receive, exchange.send)
        finally:
            _STATE.reset(token)


class _Exchange:
    """One request on its way in, and its answer on the way out."""

    def __init__(self, pins: Pins, state: Any, receive: Receive, send: Send) -> None:
        self.pins, self.state = pins, state
        self._receive, self._send = receive, send
        self._read = False
        self._pin: Pin | None = None

    async def receive(self) -> Message:
        """The whole body as one message, pinned; after that whatever comes."""
        if self._read:
            return await self._receive()
        self._read = True
        parts = []
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return message  # the client left
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body = await asyncio.to_thread(self._pinned, b"".join(parts))
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """What the answer is made with, beside it."""
        made = message["type"] == "http.response.start" and message["status"] < 400
        if made and self._pin is not None:
            target = self._pin.target
            told = [(b"x-inlay-ref", target.ref.encode()), (b"x-inlay-digest", target.digest.encode())]
            message = {**message, "headers": [*message.get("headers", ()), *told]}
        await self._send(message)

    def _pinned(self, body: bytes) -> bytes:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return body  # vLLM says what is wrong with it
        if not isinstance(content, dict) or not isinstance(name := content.get("model"), str):
            return body
        if self._own(name):
            return body
        try:
            pin = self.pins.of(name)
        except InlayError:
            return body  # the resolver meets the same error, and says it
        if pin is None:
            return body
        if pin.refused:  # a name with a number is none that vLLM keeps: the resolver is asked, and refuses
            content["model"] = pin.target.ref
        else:
            content["model"], self._pin = pin.name, pin
        return body if content["model"] == name else json.dumps(content).encode()

    def _own(self, name: str) -> bool:
        """Is it a base's name, or one of --lora-modules?"""
        models = getattr(self.state, "openai_serving_models", None)
        if models is None:
            return False
        return models.is_base_model(name) or (name in models.lora_requests and not is_pinned(name))


def _check_settings() -> None:
    from vllm import envs

    if not os.environ.get("INLAY_STORE"):
        raise InputError("references need a registry", fix="set INLAY_STORE to its folder")
    if not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise InputError(
            "vLLM asks no resolver by itself", fix="start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        )
    if envs.VLLM_SKIP_MODEL_NAME_VALIDATION:
        raise InputError(
            "vLLM was told to answer every name with the base", fix="unset VLLM_SKIP_MODEL_NAME_VALIDATION"
        )


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _closed(scope: Scope) -> bool:
    path = _path(scope)
    return any(path == closed or path.startswith(f"{closed}/") for closed in CLOSED)


def _names_elsewhere(scope: Scope) -> bool:
    """Is the adapter not named in a JSON body? Forms with files are not held in memory as one piece, and
    SageMaker's address puts what a header says in the place of the body's `model`."""
    return _path(scope) == "/invocations" or any(
        name == b"content-type" and value.lower().startswith(b"multipart/")
        for name, value in scope["headers"]
    )


async def _not_found(send: Send) -> None:
    error = {"message": "Not Found", "type": "Not Found", "param": None, "code": 404}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})
