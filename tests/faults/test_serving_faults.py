"""A server of its own process, and what happens to it: killed, without its store, a damaged object, clients
that leave, asked to end, and twenty promotions while everybody asks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import NoReturn

import httpx
import pytest
from fault_fakes import INLAY
from live_server import (
    PROMPT,
    TOKENS,
    Server,
    answer,
    crowd,
    oracle,
    put_versions,
    serving,
    until,
)
from test_read_only import as_a_stranger, close_for_writing

from inlay.builtin import base_path
from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.registry.objects import Objects
from inlay.serving.server import Serving, serve
from inlay.serving.settings import ServerSettings

pytestmark = pytest.mark.slow

PROMPTS = (
    PROMPT,
    "What is it?",
    "Which number is larger, 14 or 52?",
    "Say the following again: leaf working",
)
VISIBLE = 1.0
"""Seconds within which a promote reaches new requests."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapters_store"


@pytest.fixture
def store(path: Path, shared_base: Base, tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(path, create=True) as registry:
        put_versions(registry, shared_base, tmp_path / "made", "acme", (1, 2, 3))
        yield registry


def expected(store: Registry, base: Base, refs: tuple[str, ...] = ("acme@v1", "acme@v2", "acme@v3")) -> dict:
    found = oracle(store, base, refs, PROMPTS)
    assert len({found[digest, PROMPT] for digest, _ in found}) == len(refs), "versions must differ"
    return found


def digest(store: Registry, ref: str) -> str:
    return store.resolve(ref).digest


def elsewhere(*arguments: str) -> None:
    """Another process, as people use one."""
    done = subprocess.run([*INLAY, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_killed_and_started_again_it_serves_the_same(
    store: Registry, path: Path, shared_base: Base, tmp_path: Path
) -> None:
    right = expected(store, shared_base)
    elsewhere("promote", "acme@v2", "--store", str(path), "--why", "better")
    with serving(path, tmp_path / "log") as first:
        with crowd(first, "acme@prod", PROMPTS) as found:
            until(lambda: len(found.answers) >= 8, 30, "eight answers")
            before = answer(first.ask("acme"))
            first.signal(signal.SIGKILL)
            assert first.left() == -signal.SIGKILL
        port = first.port
    with serving(path, tmp_path / "log", port=port) as again:
        assert answer(again.ask("acme")) == before
    assert before == (digest(store, "acme@v2"), right[digest(store, "acme@v2"), PROMPT])
    assert all(right[answer(r.response)[0], r.prompt] == answer(r.response)[1] for r in found.answers)
    assert store.fsck() == []


def test_a_store_that_is_gone_for_a_while_is_not_missed(
    store: Registry, path: Path, shared_base: Base, tmp_path: Path
) -> None:
    right = expected(store, shared_base)
    with serving(path, tmp_path / "log") as server, crowd(server, "acme@prod", PROMPTS) as found:
        until(lambda: len(found.answers) >= 4, 30, "four answers")
        path.rename(tmp_path / "away")
        gone = time.monotonic()
        time.sleep(3.0)
        assert httpx.get(f"{server.said['admin']}/ready").status_code == 200
        assert dict(server.metric("inlay_store_age_seconds"))[()] > 1.5
        (tmp_path / "away").rename(path)
        back = time.monotonic()
        store.promote("acme@v2", "prod", why="after it came back")
        until(lambda: answer(server.ask("acme"))[0] == digest(store, "acme@v2"), VISIBLE, "the promote")
        time.sleep(0.5)
    assert not found.errors
    assert sum(gone < each.sent and each.came < back for each in found.answers) > 10
    assert all(right[answer(r.response)[0], r.prompt] == answer(r.response)[1] for r in found.answers)


def test_a_damaged_object_leaves_the_version_before_serving(
    store: Registry, path: Path, shared_base: Base, tmp_path: Path
) -> None:
    right = expected(store, shared_base)
    version = store.resolve("acme@v2")
    with serving(path, tmp_path / "log") as server:
        old = answer(server.ask("acme@prod"))
        (weights,) = [
            str(f["sha256"])
            for f in json.loads(store.get_object(version.digest))
            if str(f["path"]).endswith(".safetensors")
        ]
        damage(path, weights)
        elsewhere("promote", "acme@v2", "--store", str(path), "--why", "looks good")
        until(
            lambda: "acme@prod" in server.admin("/admin/problems").json()["problems"], VISIBLE, "the problem"
        )
        assert answer(server.ask("acme@prod")) == old == (digest(store, "acme@v1"), right[old[0], PROMPT])
        assert server.metric("inlay_problems")[()] == 1.0
        assert sum(server.metric("inlay_load_failures_total").values()) >= 1
        assert any(each["ref"].startswith("acme@") for each in server.events("load failed"))
        elsewhere("promote", "acme@v3", "--store", str(path), "--why", "instead")
        until(lambda: answer(server.ask("acme@prod"))[0] == digest(store, "acme@v3"), VISIBLE, "the promote")
        assert server.admin("/admin/problems").json()["problems"] == {}


def damage(path: Path, digest: str) -> None:
    """One bit of an object flipped, its size and name as before."""
    file = Objects(path).path(digest)
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(
    store: Registry, path: Path, shared_base: Base, tmp_path: Path
) -> None:
    right = expected(store, shared_base)
    with serving(path, tmp_path / "log") as server:
        with crowd(server, "acme@prod", PROMPTS) as found:
            for _ in range(20):
                leave(server)
            until(lambda: len(found.answers) >= 20, 30, "twenty answers")
        until(lambda: server.metric("inlay_running")[()] == 0, 5, "an empty batch")
        until(lambda: left_early(server) == 20, 5, "twenty clients that left")
    assert not found.errors
    assert all(right[answer(r.response)[0], r.prompt] == answer(r.response)[1] for r in found.answers)


def left_early(server: Server) -> int:
    return sum(each["status"] == 499 for each in server.events("request"))


def leave(server: Server) -> None:
    """Ask for a long stream and close the connection at its first words."""
    body = json.dumps(
        {
            "model": "acme",
            "stream": True,
            "max_tokens": 400,
            "messages": [{"role": "user", "content": PROMPT}],
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        received = b""
        while b"data:" not in received:
            more = connection.recv(4096)
            assert more, received
            received += more
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no FIN


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_streams_end_before_the_server_does(
    number: signal.Signals, code: int, store: Registry, path: Path, tmp_path: Path
) -> None:
    texts: list[str] = []
    with serving(path, tmp_path / "log") as server:
        alone = "".join(stream(server))
        threads = [threading.Thread(target=lambda: texts.append("".join(stream(server)))) for _ in range(4)]
        for each in threads:
            each.start()
        until(lambda: server.metric("inlay_running")[()] == 4, 30, "four streams")
        server.signal(number)
        until(lambda: refused(server.port), 5, "the port")
        assert httpx.get(f"{server.said['admin']}/ready").status_code == 503
        for each in threads:
            each.join(60)
        assert server.left() == code
    assert texts == [alone] * 4
    assert len(server.events("drained")) == 1


def stream(server: Server, tokens: int = 400) -> Iterator[str]:
    """The words of a stream, which must end as it should."""
    body = {
        "model": "acme",
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]", lines[-3:]
    for line in lines[:-1]:
        said = json.loads(line)
        assert "error" not in said, said
        yield said["choices"][0]["delta"].get("content") or ""


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_does_not_end_within_the_drain_is_failed_and_told(
    store: Registry, path: Path, tmp_path: Path
) -> None:
    with serving(path, tmp_path / "log", "--drain", "0", "--rows", "1") as server:
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                list(stream(server, 480))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for each in threads:
            each.start()
        until(lambda: server.metric("inlay_queue")[()] == 2, 30, "two that wait")
        server.signal(signal.SIGTERM)
        assert server.left(10) == 0
        for each in threads:
            each.join(10)
    assert len(failed) == 3
    assert len(server.events("drain is over")) == 1


def test_a_second_signal_ends_it_at_once(store: Registry, path: Path, tmp_path: Path) -> None:
    with serving(path, tmp_path / "log") as server:

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                list(stream(server, 480))

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: server.metric("inlay_running")[()] == 1, 30, "the stream")
        server.signal(signal.SIGINT)
        until(lambda: bool(server.events("draining")), 5, "draining")
        server.signal(signal.SIGINT)
        assert server.left(2) == 130
        thread.join(10)


def test_twenty_promotions_while_everybody_asks(
    store: Registry, path: Path, shared_base: Base, tmp_path: Path
) -> None:
    """Every answer is one version's own, the one it names, and each move is seen within a second."""
    right = expected(store, shared_base)
    digests = [digest(store, f"acme@v{n}") for n in (1, 2, 3)]
    moves = [(0.0, digests[0])]
    with serving(path, tmp_path / "log") as server, crowd(server, "acme@prod", PROMPTS, clients=6) as found:
        until(lambda: len(found.answers) >= 6, 30, "six answers")
        with Registry.open(path) as other:  # a connection of its own, as another process has
            for turn in range(20):
                began, asked = time.monotonic(), len(found.answers)
                if turn % 4 == 3:
                    other.rollback("acme@prod", why="bad")
                else:
                    other.promote(f"acme@v{(turn + 1) % 3 + 1}", "prod", why="next")
                moves.append((began, digest(other, "acme@prod")))
                until(lambda asked=asked: len(found.answers) >= asked + 5, 30, "five answers")
                time.sleep(0.2)
        time.sleep(VISIBLE)
        swaps = sum(server.metric("inlay_swaps_total").values())
    assert not found.errors
    for each in found.answers:
        named, text = answer(each.response)
        assert text == right[named, each.prompt]
        assert named in live(moves, each.sent - VISIBLE, each.came)
    assert {answer(each.response)[0] for each in found.answers} == set(digests)
    assert len(found.answers) >= 100 and swaps >= 15


def live(moves: list[tuple[float, str]], begin: float, end: float) -> set[str]:
    """What an alias pointed to at any time between two."""
    before = [named for at, named in moves if at <= begin]
    return {named for at, named in moves if begin < at <= end} | {before[-1]}


def test_a_store_that_the_server_may_only_read(
    store: Registry, path: Path, shared_base: Base, reachable: Path
) -> None:
    """It serves, and sees what those who may write do."""
    right = expected(store, shared_base)
    store.close()
    shutil.copytree(path, reachable / "store")
    close_for_writing(reachable / "store")
    (reachable / "cache").mkdir()
    (reachable / "cache").chmod(0o777)
    shutil.copytree(base_path(), reachable / "base")
    served_once(path)
    log, ready = reachable / "cache" / "log", reachable / "cache" / "ready"
    child = os.fork()
    if not child:
        serve_as_a_stranger(reachable, log, ready)
    code = None
    try:
        began = time.monotonic()
        while not ready.exists():
            assert time.monotonic() < began + 60, log.read_text()
            time.sleep(0.05)
        url = ready.read_text()
        with Registry.open(reachable / "store") as writer:
            first, second = digest(writer, "acme@v1"), digest(writer, "acme@v2")
            assert asked(url) == (first, right[first, PROMPT])
            writer.promote("acme@v2", "prod", why="by somebody who may")
            until(lambda: asked(url)[0] == second, VISIBLE, "the promote")
            assert asked(url) == (second, right[second, PROMPT])
    finally:
        os.kill(child, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, log.read_text()


def asked(url: str) -> tuple[str, str]:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": "acme", "messages": messages, "temperature": 0, "max_tokens": TOKENS}
    return answer(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30))


def served_once(path: Path) -> None:
    """A server of this process: a stranger may not be able to read the Python that must be imported."""
    came: Queue[Serving] = Queue()
    settings = ServerSettings(base_path(), path, port=0)
    thread = threading.Thread(target=lambda: serve(settings, ready=came.put))
    thread.start()
    found = came.get(timeout=60)
    asked(found.url)
    found.stop()
    thread.join(30)


def serve_as_a_stranger(folder: Path, log: Path, ready: Path) -> NoReturn:
    """In a forked child: until SIGTERM."""

    def tell(found: Serving) -> None:
        ready.with_suffix(".tmp").write_text(found.url)
        ready.with_suffix(".tmp").rename(ready)

    code = 70
    try:
        sys.stderr = log.open("w")
        as_a_stranger(folder / "cache")
        serve(ServerSettings(folder / "base", folder / "store", port=0), ready=tell)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
