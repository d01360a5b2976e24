"""The endpoints over a scripted scheduler: shapes, headers, streams, errors, and nothing kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_fakes import Fakes, Script, fake_app, listening, soon
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams

from inlay.errors import InputError, IntegrityError
from inlay.evals.inference import Base, encode_prompt
from inlay.serving.admin import Health
from inlay.serving.schemas import ChatRequest, CompletionRequest
from inlay.serving.shelf import MemoryFull

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
SPLIT = "front=acme@prod:50,acme@canary:50"


@pytest.fixture
def fakes(base: Base) -> Fakes:
    return fake_app(base, splits=[SPLIT], timeout=20.0)


@pytest.fixture
def http(fakes: Fakes) -> Iterator[httpx.Client]:
    """A client of the app; afterwards nothing is out, and no row still runs."""
    with listening(fakes.app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client
        print(fakes.log)
        assert soon(lambda: fakes.out == 0), "what was taken must be given back once"
        assert soon(lambda: fakes.scheduler.ended == len(fakes.scheduler.tickets)), "a row still runs"


def chat(http: httpx.Client, model: str = "acme", **more: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": model, **HELLO, **more})


def events(answer: httpx.Response) -> list[Any]:
    """The data of each server-sent event; the last must be [DONE]."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""], answer.text
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def error_of(answer: httpx.Response, status: int, code: str | None, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and list(answer.json()) == ["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert answer.headers["x-request-id"].startswith("req_")
    return str(error["message"])


def test_an_answer_to_messages(fakes: Fakes, http: httpx.Client, base: Base) -> None:
    answer = chat(http, max_tokens=100)
    body, digest = answer.json(), fakes.names.known["acme@prod"].digest
    prompt = len(encode_prompt(base.tokenizer, "hello"))
    count = len(base.tokenizer.encode("three blue chairs", add_special_tokens=False))
    assert abs(body.pop("created") - time.time()) < 60
    assert body == {
        "id": answer.headers["x-request-id"].replace("req_", "chatcmpl-"),
        "object": "chat.completion",
        "model": "acme",
        "system_fingerprint": digest,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "three blue chairs", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": count,
            "total_tokens": prompt + count,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }
    assert (answer.headers["x-inlay-digest"], answer.headers["x-inlay-ref"]) == (digest, "acme@v3")
    assert "x-inlay-arm" not in answer.headers and fakes.names.asked == ["acme@prod"]


def test_what_is_asked_for_reaches_the_scheduler(fakes: Fakes, http: httpx.Client, base: Base) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "d"},
    ]
    inlay = {"weights": {"acme@v1": 0.5}, "expert": "legal"}
    answer = chat(
        http,
        messages=messages,
        max_completion_tokens=7,
        temperature=0.25,
        top_p=0.5,
        seed=2**63 - 1,
        stop=["\n", "end"],
        n=2,
        logprobs=True,
        top_logprobs=3,
        inlay=inlay,
        user="u",
    )
    assert answer.status_code == 200
    first, second = fakes.scheduler.seen
    said = [("system", "Be short."), ("user", "ab"), ("assistant", "c"), ("user", "d")]
    assert first.ids == tuple(encode_prompt(base.tokenizer, [{"role": r, "content": c} for r, c in said]))
    assert (first.tenant, first.weights, first.expert) == ("local", {"acme@v1": 0.5}, "legal")
    assert first.id == answer.headers["x-request-id"] + "/0"
    sampling = first.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.25, 0.5)
    assert (sampling.stop, sampling.logprobs, sampling.seed) == (("\n", "end"), 3, 2**63 - 1)
    assert second.sampling.seed == 0, "another choice draws otherwise"
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1]


@pytest.mark.parametrize(
    "given, temperature, top_p",
    [
        ({}, 1.0, 1.0),
        ({"temperature": 0}, 0.0, 1.0),
        ({"top_p": 0}, 0.0, 1.0),
        ({"temperature": None}, 1.0, 1.0),
    ],
)
def test_how_tokens_are_drawn(
    fakes: Fakes, http: httpx.Client, given: dict[str, Any], temperature: float, top_p: float
) -> None:
    assert chat(http, **given).status_code == 200
    sampling = fakes.scheduler.seen[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (temperature, top_p, None)
    assert sampling.max_tokens == fakes.scheduler.context - len(fakes.scheduler.seen[0].ids)


def test_a_stream_of_a_chat(fakes: Fakes, http: httpx.Client) -> None:
    whole = chat(http).json()
    answer = chat(http, stream=True, stream_options={"include_usage": True})
    first, *pieces, last, used = events(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(piece["choices"][0]["delta"]) == ["content"] for piece in pieces)
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"] and len(pieces) > 3
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (used["choices"], used["usage"]) == ([], whole["usage"])
    chunks = [first, *pieces, last, used]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {answer.headers["x-request-id"].replace("req_", "chatcmpl-")}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {answer.headers["x-inlay-digest"]}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-2])
    assert "usage" not in events(chat(http, stream=True))[0]


def test_choices_of_a_stream_are_told_apart(fakes: Fakes, http: httpx.Client) -> None:
    fakes.scheduler.script = Script(pause=0.001)
    texts, ends = ["", "", ""], []
    for event in events(chat(http, stream=True, n=3, max_tokens=6)):
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends += [choice["index"]] if choice["finish_reason"] == "length" else []
    assert len(set(texts)) == 1 and texts[0] and sorted(ends) == [0, 1, 2]


def test_log_probabilities(fakes: Fakes, http: httpx.Client) -> None:
    whole = chat(http, logprobs=True, top_logprobs=2).json()["choices"][0]
    content = whole["logprobs"]["content"]
    assert "".join(bytes(token["bytes"]).decode() for token in content).strip() == "three blue chairs"
    assert [token["token"] for token in content if token["token"].strip()][-1] == "s"
    assert content[0]["logprob"] == -0.25
    assert [other["logprob"] for other in content[0]["top_logprobs"]] == [-0.5, -1.5]
    pieces = [event["choices"][0] for event in events(chat(http, logprobs=True, top_logprobs=2, stream=True))]
    streamed = [token for piece in pieces if piece["logprobs"] for token in piece["logprobs"]["content"]]
    assert streamed == content
    assert chat(http, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_texts_and_tokens_to_go_on_from(fakes: Fakes, http: httpx.Client, base: Base) -> None:
    def complete(prompt: Any, **more: Any) -> dict[str, Any]:
        answer = http.post("/v1/completions", json={"model": "acme", "prompt": prompt, **more})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    text = complete("hello")
    ids = base.tokenizer("hello")["input_ids"]
    choice = {"index": 0, "text": "three blue chairs", "logprobs": None, "finish_reason": "stop"}
    assert (text["object"], text["choices"]) == ("text_completion", [choice])
    assert (list(fakes.scheduler.seen[-1].ids), fakes.scheduler.seen[-1].sampling.max_tokens) == (ids, 16)
    complete([5, 6, 7])
    assert fakes.scheduler.seen[-1].ids == (5, 6, 7)
    several = complete([[5, 6], [7]], n=2)
    assert [row.ids for row in fakes.scheduler.seen[-4:]] == [(5, 6), (5, 6), (7,), (7,)]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["usage"]["prompt_tokens"] == 3, "a prompt counts once, however many choices it has"
    assert complete(["hello", "you"], logprobs=0, max_tokens=3)["choices"][1]["finish_reason"] == "length"

    logprobs = complete("hello", logprobs=2)["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]).strip() == "three blue chairs"
    assert set(logprobs["token_logprobs"]) == {-0.25} and len(logprobs["top_logprobs"][0]) == 2
    whole = "three blue chairs"
    assert whole[logprobs["text_offset"][-1] :] == logprobs["tokens"][-1]

    streamed = http.post(
        "/v1/completions", json={"model": "acme", "prompt": "hello", "stream": True, "logprobs": 2}
    )
    pieces = [event["choices"][0] for event in events(streamed)]
    assert "".join(piece["text"] for piece in pieces) == whole and pieces[-1]["finish_reason"] == "stop"
    offsets = [offset for piece in pieces if piece["logprobs"] for offset in piece["logprobs"]["text_offset"]]
    assert offsets == logprobs["text_offset"]


def test_models_are_listed_as_far_as_the_caller_may_know(fakes: Fakes, http: httpx.Client) -> None:
    ids = [card["id"] for card in http.get("/v1/models").json()["data"]]
    assert ids == ["acme@prod", "acme@canary", "team/bolt@prod", "base", "front"]
    card = http.get("/v1/models/team/bolt@prod").json()
    assert card == {
        "id": "team/bolt@prod",
        "object": "model",
        "created": 1767323045,
        "owned_by": "inlay",
        "digest": fakes.names.known["team/bolt@prod"].digest,
    }
    assert http.get("/v1/models/acme").json()["id"] == "acme@prod"
    fakes.keys.add("k", "t", "acme@prod", "base")
    key = {"authorization": "Bearer k"}
    allowed = [card["id"] for card in http.get("/v1/models", headers=key).json()["data"]]
    assert allowed == ["acme@prod", "base"]
    error_of(http.get("/v1/models/team/bolt@prod", headers=key), 404, "model_not_found", "model")
    error_of(http.get("/v1/models/acme@v3", headers=key), 404, "model_not_found", "model")
    assert "acme@v3" not in fakes.names.asked
    fakes.keys.add("k", "t", "acme")
    pinned = http.get("/v1/models/acme@v3", headers=key).json()
    assert (pinned["id"], pinned["digest"]) == ("acme@v3", fakes.names.known["acme@v3"].digest)
    error_of(http.get("/v1/models"), 401, "invalid_api_key")


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_and_forbidden_are_one(fakes: Fakes, http: httpx.Client, stream: bool) -> None:
    fakes.keys.add("k", "t", "team/bolt")
    answers = {}
    for model in (
        "acme",
        "nobody",
        "acme@v3",
        "nobody@v3",
        "base",
        "Not A Name",
        "front",
        "acme@sha256:" + 8 * "0",
    ):
        answer = http.post(
            "/v1/chat/completions",
            json={"model": model, "stream": stream, **HELLO},
            headers={"authorization": "Bearer k"},
        )
        error_of(answer, 404, "model_not_found", "model")
        headers = {name for name in answer.headers if name != "content-length"}
        answers[model] = (answer.text.replace(model, "…"), headers)
    assert len({text for text, _ in answers.values()}) == 1
    assert {frozenset(headers) for _, headers in answers.values()} == {frozenset(answers["acme"][1])}
    assert not set(fakes.names.asked) & set(fakes.names.known), "what is forbidden is not even looked for"
    assert len(fakes.names.asked) == 7, "each of them is looked for, under some name, but what is no name"
    assert fakes.names.taken == 0 and fakes.scheduler.seen == []
    assert "acme" not in fakes.log.replace("/v1", ""), "nor does the log keep what strangers ask for"


def test_a_split_is_sticky_by_user_and_named(fakes: Fakes, http: httpx.Client) -> None:
    arms = {}
    for user in map(str, range(12)):
        answers = [chat(http, "front", user=user) for _ in range(2)]
        one, two = [answer.headers["x-inlay-arm"] for answer in answers]
        assert one == two
        arms[user] = one
        assert answers[0].headers["x-inlay-ref"] == {"acme@prod": "acme@v3", "acme@canary": "acme@v4"}[one]
        assert answers[0].json()["model"] == "front"
    assert set(arms.values()) == {"acme@prod", "acme@canary"}
    anonymous = {chat(http, "front").headers["x-inlay-arm"] for _ in range(24)}
    assert anonymous == {"acme@prod", "acme@canary"}, "who names no user falls by the shares"
    text = fakes.metrics.text().decode()
    assert 'arm="acme@canary",status="200",variant="acme",version="v4"' in text


def test_the_queue_is_full(fakes: Fakes, http: httpx.Client) -> None:
    fakes.scheduler.script = Script(pause=0.05, room=2)
    answer = chat(http, n=3)
    error_of(answer, 503, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert [ticket.left.is_set() for ticket in fakes.scheduler.tickets] == [True, True]


@pytest.mark.parametrize(
    "error, status, code",
    [
        (InputError("weights must be for members of acme@v3, and 'x' is none"), 400, None),
        (MemoryFull("no room"), 503, "unavailable"),
        (ValueError("secret /path"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_token_has_its_status(
    fakes: Fakes, http: httpx.Client, error: Exception, status: int, code: str | None, stream: bool
) -> None:
    fakes.scheduler.script = Script(fails=error)
    answer = chat(http, stream=stream, n=2)
    message = error_of(answer, status, code)
    assert "secret" not in message and ("weights" in message) == (status == 400)
    assert answer.headers["x-inlay-ref"] == "acme@v3"
    assert ('"level": "error"' in fakes.log) == (status >= 500) and "secret" not in fakes.log


def test_what_fails_later_ends_the_stream_with_an_error(fakes: Fakes, http: httpx.Client) -> None:
    fakes.scheduler.script = Script(fails=RuntimeError("boom"), fails_after=4, pause=0.002)
    answer = chat(http, stream=True)
    assert answer.status_code == 200
    *_, last, end = answer.text.split("\n\n")
    assert end == "" and last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "internal_error"
    assert "[DONE]" not in answer.text and "boom" not in answer.text
    assert soon(lambda: '"status": 500' in fakes.log) and "test_api" not in answer.text


@pytest.mark.parametrize(
    "error, status, code, param",
    [
        (InputError("acme@v3 was yanked and is not served"), 400, "model_not_served", "model"),
        (IntegrityError("bytes at /secret/path differ"), 503, "model_failed", None),
        (KeyError("secret"), 500, "internal_error", None),
    ],
)
def test_what_cannot_be_taken(
    fakes: Fakes, http: httpx.Client, error: Exception, status: int, code: str, param: str | None
) -> None:
    fakes.names.fails = error
    message = error_of(chat(http), status, code, param)
    assert "secret" not in message and "secret" not in fakes.log


def test_an_answer_that_takes_too_long(base: Base) -> None:
    fakes = fake_app(base, timeout=0.3)
    fakes.scheduler.script = Script(pause=0.05)
    with listening(fakes.app) as url, httpx.Client(base_url=url) as http:
        error_of(chat(http), 504, "timeout")
        answer = chat(http, stream=True)
        assert answer.status_code == 200 and '"code":"timeout"' in answer.text.split("\n\n")[-2]
        fakes.names.pause = 0.6
        error_of(chat(http), 504, "timeout")
        assert soon(lambda: fakes.names.taken == 3 and fakes.out == 0), "also what came too late"
        assert all(ticket.left.is_set() for ticket in fakes.scheduler.tickets)


@pytest.mark.parametrize("when", ["loading", "whole", "stream"])
def test_a_client_that_leaves(fakes: Fakes, http: httpx.Client, when: str) -> None:
    fakes.scheduler.script = Script(reply="word " * 80, pause=0.02)
    fakes.names.pause = 0.5 if when == "loading" else 0.0
    body = {"model": "acme", "stream": when == "stream", **HELLO}
    if when == "stream":
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.2)
    assert soon(lambda: '"status": 499' in fakes.log, 2), "its end must be known at once"
    assert soon(lambda: fakes.names.taken == 1 and fakes.out == 0)
    assert len(fakes.scheduler.tickets) == (0 if when == "loading" else 1)
    assert all(ticket.left.is_set() for ticket in fakes.scheduler.tickets)
    fakes.names.pause, fakes.scheduler.script = 0.0, Script()
    assert chat(http).status_code == 200


def test_a_slow_load_holds_up_nobody_else(fakes: Fakes, http: httpx.Client) -> None:
    fakes.names.pause = 0.4
    url = str(http.base_url)
    waiting = [
        threading.Thread(target=lambda: chat(httpx.Client(base_url=url, timeout=60), "acme@v3"))
        for _ in range(40)
    ]
    for thread in waiting:
        thread.start()
    assert soon(lambda: len(fakes.names.asked) >= 1)
    began = time.monotonic()
    assert chat(http, "team/bolt").status_code == 200
    assert time.monotonic() - began < 2.0, "forty that wait for one load must not use up the threads"
    fakes.names.pause = 0.0
    for thread in waiting:
        thread.join()


def test_limits_of_a_key(fakes: Fakes, http: httpx.Client) -> None:
    fakes.keys.add("slow", "t", "*", rate=1)
    fakes.keys.add("narrow", "u", "*", concurrent=1)
    post = {"url": "/v1/chat/completions", "json": {"model": "acme", **HELLO}}
    assert http.post(**post, headers={"authorization": "Bearer slow"}).status_code == 200
    answer = http.post(**post, headers={"authorization": "Bearer slow"})
    error_of(answer, 429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    fakes.scheduler.script = Script(pause=0.05)
    narrow = {"headers": {"authorization": "Bearer narrow"}}
    with http.stream("POST", post["url"], json={**post["json"], "stream": True}, **narrow) as stream:
        lines = stream.iter_raw()
        next(lines)
        error_of(http.post(**post, **narrow), 429, "rate_limit_exceeded")
        for _ in lines:
            pass
    assert http.post(**post, **narrow).status_code == 200
    error_of(http.post(**post, headers={"authorization": "Bearer wrong"}), 401, "invalid_api_key")
    assert "wrong" not in fakes.log and "narrow" not in fakes.log


def test_alive_and_ready(fakes: Fakes, http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "alive"}
    assert http.get("/ready").json() == {"status": "ready"}
    fakes.names.ready = False
    error_of(http.get("/ready"), 503, "not_ready")
    assert http.get("/health").status_code == 200
    assert fakes.log == "", "those who look every second leave no lines"


def test_health_is_what_the_server_says(base: Base) -> None:
    health = Health(alive=lambda: True, known=lambda: True)
    fakes = fake_app(base, health=health)
    with listening(fakes.app) as url, httpx.Client(base_url=url) as http:
        assert http.get("/ready").status_code == 200
        health.draining = True
        assert "draining" in error_of(http.get("/ready"), 503, "not_ready")
        assert http.get("/health").status_code == 200
        health.alive = lambda: False
        error_of(http.get("/health"), 503, "not_alive")


def test_a_request_is_told_once(fakes: Fakes, http: httpx.Client) -> None:
    answer = chat(http, stream=True, user="somebody")
    assert soon(lambda: fakes.log.count('"event": "request"') == 1)
    line = json.loads(fakes.log)
    wanted = {
        "request": answer.headers["x-request-id"],
        "tenant": "local",
        "variant": "acme",
        "version": "v3",
        "ref": "acme@v3",
        "path": "/v1/chat/completions",
        "status": 200,
        "cached_tokens": 3,
        "stream": True,
    }
    assert wanted.items() <= line.items() and 0 < line["first_token"] <= line["seconds"]
    assert "hello" not in fakes.log and "somebody" not in fakes.log and "chairs" not in fakes.log
    text = fakes.metrics.text().decode()
    assert 'inlay_requests_total{arm="",status="200",variant="acme",version="v3"} 1.0' in text
    assert 'inlay_tokens_total{arm="",kind="cached",variant="acme",version="v3"} 3.0' in text
    assert 'inlay_first_token_seconds_count{arm="",variant="acme",version="v3"} 1.0' in text


@pytest.mark.parametrize("params, body", [(ChatParams, ChatRequest), (TextParams, CompletionRequest)])
def test_every_parameter_of_openai_is_followed_passed_over_or_refused(params: Any, body: Any) -> None:
    others = {*body.harmless, *body.passed_over}
    assert set(params.__annotations__) - others - set(body.model_fields) == set()
    assert not set(body.model_fields) & others and not set(body.harmless) & body.passed_over
