"""`inlay serve` in a process of its own on the built-in base, clients for it, and what it must answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from serving_fakes import write_adapter

import inlay
from inlay.evals.inference import Base
from inlay.registry import Registry

INLAY = [sys.executable, "-c", "from inlay.cli import main; main()"]
STARTING = 120.0
"""Seconds in which a server must be ready; importing torch on a busy machine takes most of them."""
PROMPT = "Say something about the river"
TOKENS = 12

Answer = tuple[str, str]
"""The digest that a response names, and its text."""


@dataclass
class Server:
    """A running `inlay serve`. `said`: the JSON line it printed when it was ready."""

    process: subprocess.Popen[str]
    said: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return str(self.said["url"])

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 0

    def ask(self, model: str, prompt: str = PROMPT, *, client: Any = httpx, **body: Any) -> httpx.Response:
        """One greedy answer; whatever its status is."""
        body = {"max_tokens": TOKENS, "temperature": 0, **body}
        messages = [{"role": "user", "content": prompt}]
        return client.post(
            f"{self.url}/chat/completions", json={"model": model, "messages": messages, **body}, timeout=60.0
        )

    def admin(self, path: str) -> Any:
        return httpx.get(f"{self.said['admin']}{path}", timeout=10.0)

    def metric(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The samples called `name` by their labels."""
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.admin("/metrics").text)
            for sample in family.samples
            if sample.name == name
        }

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it logged; every line must be one JSON object."""
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [each for each in found if event in (None, each["event"])]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def left(self, seconds: float = 30.0) -> int:
        """Its exit code."""
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(store: Path, log: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """A server that is ready; killed afterwards if it still runs."""
    with log.open("a") as stream:
        process = subprocess.Popen(
            [
                *INLAY,
                "serve",
                "--base",
                "builtin",
                "--store",
                str(store),
                "--port",
                str(port),
                "--json",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
    assert process.stdout is not None
    try:
        heard, _, _ = select.select([process.stdout], [], [], STARTING)
        line = process.stdout.readline() if heard else ""
        assert line, f"the server did not start: {log.read_text()[-2000:]}"
        yield Server(process, json.loads(line)["result"], log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()


def put_versions(store: Registry, base: Base, folder: Path, name: str, seeds: Sequence[int]) -> None:
    """Versions of `name` whose answers differ; the first is live."""
    for seed in seeds:
        store.add(name, write_adapter(folder / f"{name}-{seed}", base, seed=seed), base=base.fingerprint)
    store.promote(f"{name}@v1", "prod", why="first")


def oracle(
    store: Registry, base: Base, refs: Sequence[str], prompts: Sequence[str], tokens: int = TOKENS
) -> dict[tuple[str, str], str]:
    """(digest, prompt) -> what `inlay.compose` answers, each version alone."""
    found = {}
    for ref in refs:
        composed = inlay.compose(ref, store=store, base=base)
        try:
            answers = composed.generate(list(prompts), max_new_tokens=tokens)
        finally:
            composed.detach()
        found |= {(composed.target.digest, p): a for p, a in zip(prompts, answers, strict=True)}
    return found


def answer(response: httpx.Response) -> Answer:
    """What a good response says."""
    assert response.status_code == 200, response.text
    assert response.json()["system_fingerprint"] == response.headers["x-inlay-digest"]
    text = response.json()["choices"][0]["message"]["content"].strip()  # as `generate` does
    return response.headers["x-inlay-digest"], text


@dataclass(frozen=True)
class Asked:
    """`sent`, `came`: seconds of the monotonic clock."""

    sent: float
    came: float
    prompt: str
    response: httpx.Response


@dataclass
class Crowd:
    """Clients that ask without a pause."""

    answers: list[Asked] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


@contextlib.contextmanager
def crowd(server: Server, model: str, prompts: Sequence[str], clients: int = 4) -> Iterator[Crowd]:
    """Clients that ask for `model` until the block ends, each over one connection."""
    found, over = Crowd(), threading.Event()

    def hammer(number: int) -> None:
        with httpx.Client() as client:
            turn = number
            while not over.is_set():
                prompt = prompts[turn % len(prompts)]
                turn += 1
                sent = time.monotonic()
                try:
                    response = server.ask(model, prompt, client=client)
                    found.answers.append(Asked(sent, time.monotonic(), prompt, response))
                except BaseException as error:
                    found.errors.append(error)
                    return

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(clients)]
    for each in threads:
        each.start()
    try:
        yield found
    finally:
        over.set()
        for each in threads:
            each.join(60)


def until(true: Callable[[], bool], seconds: float = 10.0, what: str = "it") -> float:
    """Seconds until something became true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began
