"""`serve` for real in a thread of this process: what it refuses, what its two addresses say, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from live_server import INLAY, PROMPT, TOKENS, put_versions, until

from inlay.builtin import base_path
from inlay.cli.serve import serve_verb
from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.serving import server
from inlay.serving.server import PortTaken, Serving, serve
from inlay.serving.settings import ServerSettings


@contextlib.contextmanager
def running(store: Registry, **settings: Any) -> Iterator[Serving]:
    """A server of this process; it must drain when the block ends."""
    came: Queue[Serving | BaseException] = Queue()

    def run() -> None:
        try:
            serve(ServerSettings(base_path(), store.path, port=0, **settings), ready=came.put)
        except BaseException as error:
            came.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    found = came.get(timeout=60)
    if isinstance(found, BaseException):
        raise found
    try:
        yield found
    finally:
        found.stop()
        thread.join(30)
    assert not thread.is_alive() and came.empty()


def ask(serving: Serving, model: str, key: str | None = None, **more: str) -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        "temperature": 0,
        **more,
    }
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{serving.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def test_what_is_served_is_seen_at_the_admin_address_and_its_log_has_no_words(
    store: Registry, base: Base, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_versions(store, base, tmp_path, "acme", (1, 2))
    with running(store) as serving:
        for url in (serving.url, serving.admin):
            assert httpx.get(f"{url}/health").json() == {"status": "alive"}
            assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        answered = ask(serving, "acme")
        assert answered.status_code == 200
        version = store.resolve("acme@v1")
        loaded = httpx.get(f"{serving.admin}/admin/loaded").json()
        assert [(row["ref"], row["digest"]) for row in loaded["loaded"]] == [("acme@v1", version.digest)]
        assert loaded["bank_bytes"] >= loaded["loaded"][0]["bytes"] > 0
        problems = httpx.get(f"{serving.admin}/admin/problems").json()
        assert problems["problems"] == {} and 0 <= problems["store_age_seconds"] < 2
        metrics = httpx.get(f"{serving.admin}/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        line = 'inlay_requests_total{arm="",status="200",variant="acme",version="v1"} 1.0'
        assert line in metrics.text.splitlines()
        assert httpx.get(f"{serving.url}/metrics").status_code == 404
        assert httpx.get(f"{serving.url}/admin/loaded").status_code == 404
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    events = [each["event"] for each in said]
    assert events[:2] == ["loading", "base loaded"] and events[-2:] == ["draining", "drained"]
    (request,) = [each for each in said if each.get("path") == "/v1/chat/completions"]
    assert request["digest"] == version.digest and request["variant"] == "acme"
    assert request["request"] == answered.headers["x-request-id"]
    words = [PROMPT, answered.json()["choices"][0]["message"]["content"]]
    assert not any(word in json.dumps(said, ensure_ascii=False) for word in words)


def test_with_keys_the_admin_address_wants_one_of_an_admin(
    store: Registry, base: Base, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_versions(store, base, tmp_path, "acme", (1,))
    _, plain = store.add_key("acme")
    _, admin = store.add_key("ops", admin=True)
    with running(store, host="0.0.0.0") as serving:
        for path in ("/metrics", "/admin/loaded", "/admin/problems"):
            url = f"{serving.admin}{path}"
            assert httpx.get(url).status_code == 401
            refused = httpx.get(url, headers={"authorization": f"Bearer {plain}"})
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "forbidden"
            assert httpx.get(url, headers={"authorization": f"Bearer {admin}"}).status_code == 200
        assert httpx.post(f"{serving.admin}/admin/drain").status_code == 401
        assert httpx.get(f"{serving.admin}/ready").status_code == 200
        local = Serving(serving.url.replace("0.0.0.0", "127.0.0.1"), *[""] * 3, serving.stop)
        assert ask(local, "acme").status_code == 401
        assert ask(local, "acme", plain).status_code == 200
    assert plain not in (said := capfd.readouterr().err) and admin not in said


def test_each_arm_of_a_canary_has_its_metrics(store: Registry, base: Base, tmp_path: Path) -> None:
    put_versions(store, base, tmp_path, "acme", (1, 2))
    store.promote("acme@v2", "canary", why="try it")
    with running(store, splits=("acme=acme@prod:50,acme@canary:50",)) as serving:
        arms = Counter(ask(serving, "acme", user=f"user-{n}").headers["x-inlay-arm"] for n in range(12))
        assert set(arms) == {"acme@prod", "acme@canary"}
        text = httpx.get(f"{serving.admin}/metrics").text.splitlines()
    for arm, version in (("acme@prod", "v1"), ("acme@canary", "v2")):
        labels = f'arm="{arm}",status="200",variant="acme",version="{version}"'
        assert f"inlay_requests_total{{{labels}}} {float(arms[arm])}" in text
        named = f'arm="{arm}",variant="acme",version="{version}"'
        assert f"inlay_request_seconds_count{{{named}}} {float(arms[arm])}" in text


def test_drain_by_the_admin_address_and_pages_of_browsers_are_refused(store: Registry) -> None:
    with running(store) as serving:
        foreign = {"origin": "https://example.org"}
        assert httpx.post(f"{serving.admin}/admin/drain", headers=foreign).status_code == 403
        assert httpx.get(f"{serving.admin}/ready").status_code == 200
        assert httpx.post(f"{serving.admin}/admin/drain").status_code == 202
        until(lambda: not listens(serving.url), 10, "the end")


def listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("where", [{"host": "0.0.0.0"}, {"admin_host": "::"}])
def test_other_machines_are_served_with_keys_alone(store: Registry, where: dict[str, str]) -> None:
    with pytest.raises(InputError, match="needs API keys") as caught, running(store, **where):
        pass
    assert "inlay keys add" in (caught.value.fix or "")
    key, _ = store.add_key("acme")
    store.revoke_key(key.id, why="left")
    with pytest.raises(InputError, match="needs API keys"), running(store, **where):
        pass


def test_a_port_that_is_taken_is_told_before_the_base_is_loaded(
    store: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port}"):
            serve(ServerSettings(base_path(), store.path, port=port, admin_port=0))
    assert "loading" not in capfd.readouterr().err


def test_without_the_extra_it_says_what_to_install(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EXTRA", ("fastapi", "no_such_package"))
    with pytest.raises(InputError, match="no_such_package") as caught:
        serve(ServerSettings(base_path(), store.path))
    assert caught.value.fix == "pip install 'inlay[serve]'"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"admin_port": -1},
        {"port": 8000, "admin_port": 8000},
        {"rows": 0},
        {"queue": 0},
        {"budget": 0},
        {"prompt_tokens": 0},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"drain": -1.0},
        {"drain": float("inf")},
        {"log_format": "xml"},
        {"splits": ("acme",)},
    ],
)
def test_settings_out_of_bounds(store: Registry, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        serve(ServerSettings(base_path(), store.path, **{"port": 0, **wrong}))


def test_what_is_this_machine() -> None:
    hosts = ("127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "::", "", "10.0.0.1", "example.org")
    assert [ServerSettings("b", host=host).loopback for host in hosts] == [True] * 4 + [False] * 5
    assert not ServerSettings("b", admin_host="0.0.0.0").loopback
    assert [ServerSettings("b", port=port).admin for port in (0, 8000, 65535)] == [0, 8001, 65534]


def test_the_verb_hands_on_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ServerSettings] = []

    def instead(settings: ServerSettings, *, ready: Any) -> None:
        given.append(settings)
        ready(Serving("http://127.0.0.1:1", "http://127.0.0.1:2", "b", "s", lambda: None))

    monkeypatch.setattr(server, "serve", instead)
    options = (
        "--base b --port 1 --rows 2 --queue 3 --memory 4 --prefix-memory 5 --max-prompt 6 --split a=b@prod:1"
    )
    done = CliRunner().invoke(serve_verb, [*options.split(), "--timeout", "7", "--drain", "8", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "schema": 1,
        "verb": "serve",
        "result": {
            "url": "http://127.0.0.1:1/v1",
            "admin": "http://127.0.0.1:2",
            "base": "b",
            "store": "s",
            "pid": os.getpid(),
        },
    }
    (settings,) = given
    assert settings == ServerSettings(
        base="b",
        port=1,
        rows=2,
        queue=3,
        budget=4 << 20,
        prefix_bytes=5 << 20,
        prompt_tokens=6,
        splits=("a=b@prod:1",),
        timeout=7.0,
        drain=8.0,
    )
    said = CliRunner().invoke(serve_verb, ["--base", "b"]).stdout
    assert said == "serving b at http://127.0.0.1:1/v1, admin at http://127.0.0.1:2\n"


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    options = [option for param in serve_verb.params for option in param.opts]
    assert len(options) > 15 and [option for option in options if option not in page] == []


def test_help_imports_nothing_heavy_and_errors_are_one_line(tmp_path: Path) -> None:
    script = (
        "import sys; from inlay.cli import run; code = run(sys.argv[1:]);"
        "print([m for m in ('torch', 'fastapi', 'uvicorn') if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script, "serve", "--help"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0" and "inlay serve --base" in done.stdout
    Registry.open(tmp_path / "s", create=True).close()
    command = [*INLAY, "serve", "--base", "builtin", "--store", str(tmp_path / "s"), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "inlay keys add" in done.stderr
