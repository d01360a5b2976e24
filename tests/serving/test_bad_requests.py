"""Hostile and mistaken requests: each gets an error in OpenAI's shape, and the others are served on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_fakes import Fakes, Script, fake_app, listening, soon

from inlay.evals.inference import Base

HELLO = [{"role": "user", "content": "hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
MB = 1 << 20


@pytest.fixture(scope="module")
def fakes(shared_base: Base) -> Fakes:
    return fake_app(shared_base, timeout=3.0, prompt_tokens=200)


@pytest.fixture(scope="module")
def url(fakes: Fakes) -> Iterator[str]:
    with listening(fakes.app) as url:
        yield url


@pytest.fixture
def http(fakes: Fakes, url: str) -> Iterator[httpx.Client]:
    """A client; whatever it did, the server must answer others afterwards, and nothing may be out."""
    fakes.scheduler.script = Script()
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
        good = client.post(CHAT, json={"model": "acme", "messages": HELLO})
        assert good.status_code == 200, good.text
        assert soon(lambda: fakes.out == 0)
        assert '"event": "bug"' not in fakes.log


def refused(answer: httpx.Response, status: int, code: str | None = None, param: str | None = None) -> str:
    assert answer.status_code == status, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    error = body["error"]
    assert list(body) == ["error"] and set(error) == {"message", "type", "param", "code"}
    assert (
        isinstance(error["message"], str)
        and 0 < len(error["message"]) < 500
        and error["message"].isprintable()
    )
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (code, param), error
    assert "Traceback" not in answer.text and "/inlay/" not in answer.text
    return str(error["message"])


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "acme", "messages": [}',
        b"\xff\xfe\xfd",
        b'{"model": "\xff"}',
        b"\x00" * 100,
        b'{"model": ' + b"[" * 200_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "words", "comma", "utf16", "utf8", "zeros", "deep", "closed", "digits"],
)
def test_what_is_no_json(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers=JSON)
    assert refused(answer, 400, answer.json()["error"]["code"])
    assert answer.json()["error"]["code"] in ("invalid_json", None)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", None]
)
def test_what_does_not_say_it_is_json(http: httpx.Client, kind: str | None) -> None:
    content = json.dumps({"model": "acme", "messages": HELLO}).encode()
    answer = http.post(CHAT, content=content, headers={} if kind is None else {"content-type": kind})
    assert "application/json" in refused(answer, 400, "invalid_json")


@pytest.mark.parametrize("body", [[], "x", 7, None, True])
def test_what_is_no_object(http: httpx.Client, body: Any) -> None:
    refused(http.post(CHAT, content=json.dumps(body).encode(), headers=JSON), 400)


WRONG = [
    ("temperature", "NaN"),
    ("temperature", "Infinity"),
    ("temperature", "-Infinity"),
    ("temperature", "1e999"),
    ("temperature", "-0.1"),
    ("temperature", "2.1"),
    ("temperature", '"1"'),
    ("temperature", "true"),
    ("top_p", "NaN"),
    ("top_p", "1.01"),
    ("top_p", "-1"),
    ("n", "0"),
    ("n", "9"),
    ("n", "1.5"),
    ("max_tokens", "0"),
    ("max_tokens", "-1"),
    ("max_tokens", "1e30"),
    ("max_tokens", "99999999999999999999999999"),
    ("max_tokens", '"5"'),
    ("seed", "1.5"),
    ("seed", "9223372036854775808"),
    ("stop", '""'),
    ("stop", '["a", "b", "c", "d", "e"]'),
    ("stop", "[1]"),
    ("stop", "{}"),
    ("stream", '"yes"'),
    ("stream", "1"),
    ("model", "null"),
    ("model", '""'),
    ("model", "7"),
    ("model", '"' + "a" * 300 + '"'),
    ("model", '"\\ud800"'),
    ("user", "[]"),
    ("inlay", '{"weights": {"acme@v1": NaN}}'),
    ("inlay", '{"weights": {"acme@v1": "much"}}'),
    ("inlay", '{"weight": {}}'),
    ("inlay", '{"expert": 3}'),
]


@pytest.mark.parametrize("name, value", WRONG)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_values_out_of_bounds(http: httpx.Client, path: str, name: str, value: str) -> None:
    fields = {
        "model": '"acme"',
        "messages" if path == CHAT else "prompt": json.dumps(HELLO if path == CHAT else "hi"),
    }
    text = ", ".join(f'"{key}": {said}' for key, said in {**fields, name: value}.items())
    refused(http.post(path, content=f"{{{text}}}".encode(), headers=JSON), 400, "invalid_value", name)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "root", "content": "x"}],
        [{"role": "user", "content": "\ud800"}],
        [None] * 100_000,
    ],
)
def test_messages_that_are_none(http: httpx.Client, messages: Any) -> None:
    content = json.dumps({"model": "acme", "messages": messages}).encode()
    answer = http.post(CHAT, content=content, headers=JSON)
    refused(answer, 400, answer.json()["error"]["code"], answer.json()["error"]["param"])
    assert answer.json()["error"]["param"] in ("messages", "tool_call_id")


@pytest.mark.parametrize(
    "prompt",
    [[], [[]], "", [1.5], [None], [-1], [10**9], [1684], [[1], "a"], ["a", [1]], {}, ["a"] * 65, [True]],
)
def test_prompts_that_are_none(http: httpx.Client, prompt: Any) -> None:
    answer = http.post(TEXT, json={"model": "acme", "prompt": prompt})
    refused(answer, 400, "invalid_value", "prompt")


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 100}},
        {"presence_penalty": 0.1},
        {"frequency_penalty": float("nan")},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x", "format": "wav"}},
        {"reasoning_effort": "high"},
        {"web_search_options": {}},
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_by_name(http: httpx.Client, given: dict[str, Any]) -> None:
    content = json.dumps({"model": "acme", "messages": HELLO, **given}).encode()
    answer = http.post(CHAT, content=content, headers=JSON)
    (name,) = given
    assert name in refused(answer, 400, "unsupported_parameter", name)


def test_what_changes_nothing_is_passed_over(http: httpx.Client) -> None:
    given = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "modalities": ["text"],
        "service_tier": "auto",
        "store": True,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "functions": None,
        "seed": None,
        "stop": None,
    }
    assert http.post(CHAT, json={"model": "acme", "messages": HELLO, **given}).status_code == 200


def test_what_nobody_knows_is_refused(http: httpx.Client) -> None:
    def asked(path: str = CHAT, **more: Any) -> httpx.Response:
        prompt = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
        return http.post(
            path, content=json.dumps({"model": "acme", **(prompt | more)}).encode(), headers=JSON
        )

    refused(asked(top_k=5), 400, "unknown_parameter", "top_k")
    assert "\\x1b" in refused(asked(**{"\x1b[2J": 5}), 400, "unknown_parameter", "\\x1b[2J")
    refused(asked(**{"\ud800": 5}), 400, "unknown_parameter", "\\ud800")
    long = "x" * 10_000
    assert len(refused(asked(**{long: 1}), 400, "unknown_parameter", long[:120] + "…")) < 300
    refused(asked(stream_options={"include_usage": True}), 400, None, "stream_options")
    refused(asked(top_logprobs=3), 400, None, "top_logprobs")
    refused(asked(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs")
    refused(asked(max_tokens=3, max_completion_tokens=4), 400, None, "max_completion_tokens")
    refused(asked(TEXT, echo=True), 400, "unsupported_parameter", "echo")
    refused(asked(TEXT, suffix="x"), 400, "unsupported_parameter", "suffix")
    refused(asked(TEXT, best_of=2), 400, "unsupported_parameter", "best_of")
    refused(asked(TEXT, prompt=["a"] * 33, n=2), 400, "invalid_value", "n")
    refused(asked(TEXT, logprobs=6), 400, "invalid_value", "logprobs")
    assert asked(TEXT, best_of=2, n=2, echo=False, suffix=None).status_code == 200


def test_prompts_that_are_too_long(http: httpx.Client) -> None:
    def asked(text: str, **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return http.post(CHAT, json={"model": "acme", "messages": messages, **more})

    long = "context_length_exceeded"
    assert "200 tokens" in refused(asked("word " * 300), 400, long, "messages")
    assert "512 tokens" in refused(asked("hello", max_tokens=600), 400, long, "messages")
    assert asked("hello", max_tokens=500).status_code == 200
    refused(http.post(TEXT, json={"model": "acme", "prompt": [5] * 201}), 400, long, "prompt")
    began = time.monotonic()
    for text in ("long word " * 90_000, "x" * 900_000, " " * 900_000):
        refused(asked(text), 400, long, "messages")
        refused(http.post(TEXT, json={"model": "acme", "prompt": ["short", text]}), 400, long, "prompt")
    assert time.monotonic() - began < 20, "a megabyte is not read to its end"


def test_a_body_that_is_too_large(fakes: Fakes, http: httpx.Client) -> None:
    before = len(fakes.scheduler.seen)
    refused(http.post(CHAT, content=b" " * (MB + 1), headers=JSON), 413, "request_too_large")
    refused(http.post(CHAT, content=b"[" * (100 * MB), headers=JSON), 413, "request_too_large")
    assert len(fakes.scheduler.seen) == before


def _raw(url: str, head: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=20)
    made.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n".encode())
    return made


def test_a_body_is_refused_before_it_is_read(url: str, http: httpx.Client) -> None:
    with _raw(url, f"Content-Length: {10**12}\r\n") as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 413 "), "nothing of the body was sent"
    with _raw(url, f"Content-Length: {10**9}\r\nExpect: 100-continue\r\n") as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 413 "), "the client must not be told to go on"
    with _raw(url, "Transfer-Encoding: chunked\r\n") as client:
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(MB // 0x10000 + 1):
            client.sendall(piece)
        assert client.recv(4096).startswith(b"HTTP/1.1 413 "), "counted, where no length was announced"


def test_a_body_that_does_not_come(url: str, http: httpx.Client) -> None:
    with _raw(url, "Content-Length: 100\r\n") as client:
        began = time.monotonic()
        client.sendall(b"{")
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ") and time.monotonic() - began < 10


def test_a_client_that_reads_nothing_is_let_go(fakes: Fakes, url: str, http: httpx.Client) -> None:
    fakes.scheduler.script = Script(reply="word " * 400, pause=0.0)
    body = json.dumps(
        {"model": "acme", "messages": HELLO, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    )
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    host, port = url.removeprefix("http://").split(":")
    taken = fakes.names.taken
    with made:
        made.connect((host, int(port)))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        made.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert soon(lambda: fakes.names.taken == taken + 1 and fakes.out == 0, 10)


def test_addresses_and_methods_that_are_not(http: httpx.Client) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/embeddings",
        "/docs",
        "/v1/chat/completions/",
        "/metrics",
        "/%00",
        "/v1/../x",
    ):
        refused(http.get(path), 404, "unknown_url")
    answer = http.get(CHAT)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        refused(http.request(method, "/v1/models"), 405, "method_not_allowed")
    refused(http.get("/v1/models/%F0%9F%A6%86%1b"), 404, "model_not_found", "model")


def test_many_at_once(fakes: Fakes, http: httpx.Client, url: str) -> None:
    """Bad ones beside good ones: every good one is answered."""
    good: list[int] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            if number % 2:
                client.post(CHAT, content=b"{" * number, headers=JSON)
            else:
                good.append(client.post(CHAT, json={"model": "acme", "messages": HELLO}).status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [200] * 20
