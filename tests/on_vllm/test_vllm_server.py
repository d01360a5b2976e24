"""vLLM's own server with the plugin and the middleware: its greedy tokens are Inlay's, rollbacks included."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_fakes import PROMPTS, write_adapter

import inlay
from inlay.builtin import base_path
from inlay.composer import compose, lock
from inlay.evals.inference import Base, encode_prompt
from inlay.registry import Registry

pytestmark = pytest.mark.vllm

KEY = "a key of this test"
TOKENS = 24
START_SECONDS = 400.0
LONG = "Write these words in upper case: " + "river garden " * 100
"""More than a block of vLLM's prefix cache, which is 128 tokens on a CPU."""
ALL = (*PROMPTS, LONG)

Headers = dict[str, str]


@dataclass
class Server:
    """A vLLM that listens, with one door: `post`."""

    address: str
    log: Path

    def post(self, path: str, body: Any, key: str = KEY) -> tuple[int, Headers, Any]:
        """(status, headers in lower case, the JSON that came back)."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.address}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, lowered(answer.headers), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, lowered(error.headers), json.load(error)

    def ask(self, model: str, prompt: str) -> tuple[int, Headers, Any]:
        """A greedy answer with its token ids."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "return_token_ids": True,
        }
        return self.post("/v1/chat/completions", body)

    def tokens(self, model: str, prompt: str) -> list[int]:
        """Of the answer, the end of the turn included."""
        status, _, answer = self.ask(model, prompt)
        assert status == 200, answer
        return answer["choices"][0]["token_ids"]

    def cached_tokens(self) -> float:
        """How many tokens of prompts the prefix cache had so far."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:prefix_cache_hits_total"))


def lowered(headers: Any) -> Headers:
    return {name.lower(): value for name, value in headers.items()}


@pytest.fixture(scope="module")
def store(shared_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Three versions of `legal`; a stack and a merge at @prod; what vLLM cannot run."""
    folder = tmp_path_factory.mktemp("vllm")
    with inlay.Registry.open(folder / "adapters_store", create=True) as registry:
        for seed in (1, 2, 3):
            made = write_adapter(folder / f"legal-{seed}", shared_base, seed=seed)
            registry.add("legal", made, base=shared_base.fingerprint)
        made = write_adapter(folder / "tone", shared_base, seed=4, rank=9, targets=["q_proj", "o_proj"])
        registry.add("tone", made, base=shared_base.fingerprint)
        wide = write_adapter(folder / "wide", shared_base, seed=5, rank=24)
        registry.add("wide", wide, base=shared_base.fingerprint)
        stack = {"stack": [{"use": "legal@v1", "weight": 0.7}, {"use": "tone@v1", "weight": -0.5}]}
        merge = {"merge": ["legal@v1", "tone@v1"], "method": "ties", "space": "core", "rank": 8, "seed": 0}
        lock(registry, "stacked", stack, base=shared_base)
        lock(registry, "merged", merge, base=shared_base)
        lock(registry, "routed", {"route": {"by": "arrow", "experts": ["legal@v1", "tone@v1"]}})
        for name in ("legal", "stacked", "merged", "routed", "wide"):
            registry.promote(f"{name}@v1", "prod")
        yield registry


@pytest.fixture(scope="module")
def server(store: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(base_path()), "--served-model-name", "the-base", "--dtype", "float32"),
        *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
        *("--middleware", "inlay.serving.vllm.Pinned"),
    ]
    environment = {
        **os.environ,
        "INLAY_STORE": str(store.path),
        "INLAY_CACHE": str(folder / "cache"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    running = Server(f"http://127.0.0.1:{port}", folder / "log")
    with open(running.log, "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        until_it_listens(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(60)


def until_it_listens(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.address}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail("vLLM did not start:\n" + server.log.read_text(errors="replace")[-6000:])


@pytest.fixture(scope="module")
def expected(store: Registry, shared_base: Base) -> Callable[[str], dict[str, list[int]]]:
    """What Inlay answers: {prompt: greedy tokens} of a reference, or of the base."""
    found: dict[str, dict[str, list[int]]] = {}

    def tokens(ref: str) -> dict[str, list[int]]:
        digest = ref if ref == "base" else store.resolve(ref).digest
        if digest not in found:
            composed = None if ref == "base" else compose(ref, store=store, base=shared_base)
            model = shared_base.model if composed is None else composed.model
            found[digest] = {prompt: greedy(shared_base, model, prompt) for prompt in ALL}
            if composed is not None:
                composed.detach()
        return found[digest]

    return tokens


def greedy(base: Base, model: Any, prompt: str) -> list[int]:
    ids = torch.tensor([encode_prompt(base.tokenizer, prompt)])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
        )
    return out[0, ids.shape[1] :].tolist()


@pytest.fixture
def as_it_was(store: Registry) -> Iterator[None]:
    """legal@prod is the first version before and after."""
    yield
    store.promote("legal@v1", "prod")


def test_greedy_tokens_are_inlays(server: Server, store: Registry, expected: Any) -> None:
    """An adapter, a stack and a merge, by alias, by number and by digest."""
    answers = {ref: expected(ref) for ref in ("base", "legal@prod", "stacked@prod", "merged@prod")}
    for prompt in PROMPTS:
        texts = [answers[ref][prompt] for ref in answers]
        assert all(a != b for i, a in enumerate(texts) for b in texts[:i]), "nothing to tell them apart by"
    for prompt in ALL:
        assert server.tokens("the-base", prompt) == answers["base"][prompt]
    for ref in ("legal@prod", "stacked@prod", "merged@prod"):
        target = store.resolve(ref)
        name = f"{target.name}@{target.digest}"
        for asked in (ref, target.ref, name):
            for prompt in ALL:
                status, headers, answer = server.ask(asked, prompt)
                assert status == 200, answer
                assert answer["choices"][0]["token_ids"] == answers[ref][prompt], (asked, prompt)
                assert answer["model"] == name
                assert headers["x-inlay-ref"] == target.ref and headers["x-inlay-digest"] == target.digest


def test_the_next_request_after_a_move_is_the_new_version(
    server: Server, store: Registry, expected: Any, as_it_was: None
) -> None:
    """No restart, no stale text: also of a prompt that vLLM has in its prefix cache under the other one."""
    right = {number: expected(f"legal@v{number}") for number in (1, 2, 3)}
    moves: list[tuple[int, Callable[[], object]]] = [
        (2, lambda: store.promote("legal@v2", "prod")),
        (1, lambda: store.rollback("legal@prod", why="worse")),
        (3, lambda: store.promote("legal@v3", "prod")),
        (2, lambda: store.promote("legal@v2", "prod")),
        (3, lambda: store.rollback("legal@prod", why="worse")),
        (1, lambda: store.rollback("legal@prod", why="worse")),
    ]
    before = server.cached_tokens()
    seconds = []
    for _ in range(3):
        for number, move in moves:
            move()
            began = time.monotonic()
            assert server.tokens("legal@prod", PROMPTS[0]) == right[number][PROMPTS[0]]
            seconds.append(time.monotonic() - began)
            for prompt in ALL:
                assert server.tokens("legal@prod", prompt) == right[number][prompt], (number, prompt)
    print(f"first answer after a move: {max(seconds):.3f} s at most, of {len(seconds)}")
    assert server.cached_tokens() > before, "the prefix cache was never used"


def test_under_load_each_answer_is_that_of_one_version(
    server: Server, store: Registry, expected: Any, as_it_was: None
) -> None:
    """Twenty moves while four clients ask: each answer names its version, and has its tokens."""
    right = {store.resolve(f"legal@v{n}").digest: expected(f"legal@v{n}") for n in (1, 2)}
    heard: list[tuple[str, str, list[int]]] = []
    failed: list[Any] = []
    ended = threading.Event()

    def client(number: int) -> None:
        turn = number
        while not ended.is_set():
            prompt = ALL[turn % len(ALL)]
            turn += 1
            status, headers, answer = server.ask("legal@prod", prompt)
            if status == 200:
                heard.append((headers["x-inlay-digest"], prompt, answer["choices"][0]["token_ids"]))
            else:
                failed.append(answer)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for _ in range(10):
        store.promote("legal@v2", "prod")
        time.sleep(0.3)
        store.rollback("legal@prod", why="worse")
        time.sleep(0.3)
    ended.set()
    for thread in clients:
        thread.join()

    assert not failed
    assert {digest for digest, _, _ in heard} == set(right) and len(heard) >= 20
    print(f"{len(heard)} answers during 20 moves")
    for digest, prompt, tokens in heard:
        assert tokens == right[digest][prompt], (digest, prompt)


def test_a_stream_is_pinned_too(server: Server, store: Registry, expected: Any) -> None:
    body = {
        "model": "stacked@prod",
        "prompt": "What is it?",
        "temperature": 0,
        "max_tokens": 8,
        "stream": True,
    }
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{server.address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.headers["x-inlay-ref"] == "stacked@v1"
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    digest = store.resolve("stacked@v1").digest
    assert lines and {json.loads(line[6:])["model"] for line in lines} == {f"stacked@{digest}"}


def test_refusals_reach_the_client(server: Server, store: Registry) -> None:
    status, _, answer = server.ask("routed@prod", "What is it?")
    assert status == 400 and "routed@v1 routes at the root" in answer["error"]["message"]
    status, _, answer = server.ask("wide@prod", "What is it?")
    assert status == 400 and "wide@v1 has rank 24, and this vLLM takes 16" in answer["error"]["message"]
    for unknown in ("nobody", "nobody@prod", "legal@staging", "legal@v9"):
        status, _, answer = server.ask(unknown, "What is it?")
        assert status == 404, unknown
        assert answer["error"]["message"] == f"The model `{unknown}` does not exist. Valid aliases: the-base."


def test_what_was_yanked_is_refused_although_vllm_has_it(
    server: Server, store: Registry, shared_base: Base, tmp_path: Path
) -> None:
    made = write_adapter(tmp_path / "bad", shared_base, seed=8)
    version = store.add("bad", made, base=shared_base.fingerprint)
    store.promote("bad@v1", "prod")
    names = ("bad@v1", f"bad@{version.digest}", version.digest)
    for name in ("bad@prod", *names):
        assert server.ask(name, "What is it?")[0] == 200
    store.yank("bad@v1", why="it leaks", otherwise="disable")
    for name in names:
        status, headers, answer = server.ask(name, "What is it?")
        assert status == 400 and "bad@v1 was yanked" in answer["error"]["message"], name
        assert "x-inlay-digest" not in headers
    assert server.ask("bad@prod", "What is it?")[0] == 404, "disabled: it means nothing"


def test_nobody_gets_in_without_the_key_or_puts_other_bytes_under_a_name(
    server: Server, store: Registry, tmp_path: Path
) -> None:
    body = {"model": "legal@prod", "prompt": "What is it?", "max_tokens": 1}
    for model in ("legal@prod", "nobody@prod", "routed@prod"):
        status, headers, answer = server.post("/v1/completions", {**body, "model": model}, key="another")
        assert status == 401 and answer == {"error": "Unauthorized"} and "x-inlay-ref" not in headers
    digest = store.resolve("legal@v1").digest
    load = {"lora_name": f"legal@{digest}", "lora_path": str(tmp_path), "load_inplace": True}
    assert server.post("/v1/load_lora_adapter", load)[0] == 404
    assert server.post("/v1/unload_lora_adapter", {"lora_name": f"legal@{digest}"})[0] == 404
    assert server.post("/v1/completions", body)[0] == 200


def test_while_the_store_is_gone_answers_go_on(server: Server, store: Registry, expected: Any) -> None:
    prompt = PROMPTS[0]
    assert server.tokens("legal@prod", prompt) == expected("legal@v1")[prompt]
    away = store.path.rename(store.path.with_name("away"))
    try:
        assert server.tokens("legal@prod", prompt) == expected("legal@v1")[prompt]
        status, _, answer = server.ask("tone@v1", prompt)
        assert status == 503 and "cannot be read now" in answer["error"]["message"]
    finally:
        away.rename(store.path)
    assert server.tokens("tone@v1", prompt) == expected("tone@v1")[prompt]
