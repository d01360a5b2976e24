"""One app on one socket: who is under way ends, who sends nothing is let go, nobody new comes."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from fastapi import FastAPI

from inlay.errors import InputError
from inlay.serving import sockets
from inlay.serving.server import PortTaken, bound
from inlay.serving.sockets import Listener


def slow_app(entered: asyncio.Event, go: asyncio.Event) -> FastAPI:
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> str:
        entered.set()
        await go.wait()
        return "done"

    @app.get("/")
    async def quick() -> str:
        return "here"

    return app


def test_those_under_way_end_and_nobody_new_is_let_in() -> None:
    async def story() -> None:
        entered, go = asyncio.Event(), asyncio.Event()
        with bound("127.0.0.1", 0) as made:
            listener = Listener(slow_app(entered, go), made, 5.0)
            serving = asyncio.create_task(listener.serve())
            await listener.up()
            async with httpx.AsyncClient(base_url=listener.url) as client:
                assert (await client.get("/")).json() == "here"
                waiting = asyncio.create_task(client.get("/slow"))
                await entered.wait()
                listener.close()
                assert not await listener.ended(0.3)
                with pytest.raises(httpx.ConnectError):
                    await httpx.AsyncClient(base_url=listener.url).get("/")
                go.set()
                assert (await waiting).json() == "done"
            assert await listener.ended(2.0)
            await serving

    asyncio.run(story())


def test_what_never_ends_is_cut() -> None:
    async def story() -> None:
        entered, go = asyncio.Event(), asyncio.Event()
        with bound("127.0.0.1", 0) as made:
            listener = Listener(slow_app(entered, go), made, 60.0)
            serving = asyncio.create_task(listener.serve())
            await listener.up()
            async with httpx.AsyncClient(base_url=listener.url) as client:
                waiting = asyncio.create_task(client.get("/slow"))
                await entered.wait()
                listener.close()
                assert not await listener.ended(0.3)
                listener.cut()
                assert await listener.ended(2.0)
                go.set()
                await waiting
            await serving

    asyncio.run(story())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nslow"])
def test_a_client_that_does_not_send_its_head_is_let_go(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HEADERS", 0.2)

    async def story() -> None:
        with bound("127.0.0.1", 0) as made:
            listener = Listener(slow_app(asyncio.Event(), asyncio.Event()), made, 5.0)
            serving = asyncio.create_task(listener.serve())
            await listener.up()
            reader, writer = await asyncio.open_connection(*made.getsockname()[:2])
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 2.0) == b""
            writer.close()
            async with httpx.AsyncClient(base_url=listener.url) as client:
                for _ in range(3):
                    assert (await client.get("/")).status_code == 200
                    await asyncio.sleep(0.15)  # together longer than a head may take
            listener.close()
            await serving

    asyncio.run(story())


def test_a_port_that_is_taken_and_hosts_that_are_not_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1 is taken") as caught,
            bound("127.0.0.1", port),
        ):
            pass
    assert caught.value.exit_code == 3
    for host in ("no.such.host.invalid", "192.0.2.1", "\ud800"):
        with pytest.raises(InputError), bound(host, 0):
            pass
