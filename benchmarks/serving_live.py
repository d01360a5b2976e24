"""`inlay serve` in a process of its own while its store changes: what clients get, and how soon.

Every answer is compared with what `inlay.compose` says for the version that the response names. The base is
the built-in one on the CPU; adapters are random, so that every version answers differently.

    python benchmarks/serving_live.py                # all three, about ten minutes
    python benchmarks/serving_live.py rollback       # 100 rollbacks and promotions in 60 s of traffic
    python benchmarks/serving_live.py gone           # the store away for 10 s of it
    python benchmarks/serving_live.py many           # 1,000 variants, 32 in memory, 5,000 requests
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file

import inlay
from inlay.builtin import base_path
from inlay.evals.inference import Base, load_base
from inlay.registry import Registry

Row = tuple[str, str, str, bool]
"""(what, asked, measured, whether that is met)."""

TARGETS = ("q_proj", "v_proj", "down_proj")
RANK, STRENGTH = 4, 0.2
TOKENS = 12
PROMPTS = (
    "Say something about the river",
    "What is it?",
    "Which number is larger, 14 or 52?",
    "Write these words in upper case: river garden",
)
SERVER = """
import json, sys
from inlay.serving.server import serve
from inlay.serving.settings import ServerSettings
serve(
    ServerSettings(**json.loads(sys.argv[1])),
    ready=lambda found: print(json.dumps({"url": found.url, "admin": found.admin}), flush=True),
)
"""


@dataclass(frozen=True)
class Asked:
    """`sent`, `came`: seconds of the monotonic clock."""

    sent: float
    came: float
    prompt: str
    digest: str
    text: str


@dataclass(frozen=True)
class Move:
    """An alias was pointed to `digest` between two moments."""

    begin: float
    end: float
    digest: str


class Server:
    """A server on `store`; ends with the block."""

    def __init__(self, store: Path, **settings: Any) -> None:
        given = {"base": str(base_path()), "store": str(store), "port": 0, **settings}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the server has ended
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(given)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"the server did not start: {self.log.read()}")
        self.url, self.admin = json.loads(line)["url"], json.loads(line)["admin"]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def ask(self, client: httpx.Client, model: str, prompt: str) -> Asked:
        """One greedy answer. AssertionError for any other than that."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        sent = time.monotonic()
        response = client.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        came = time.monotonic()
        assert response.status_code == 200, response.text
        text = response.json()["choices"][0]["message"]["content"].strip()  # as `generate` does
        return Asked(sent, came, prompt, response.headers["x-inlay-digest"], text)

    def look(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.admin}{path}", timeout=30) as answer:
            return json.load(answer)

    def rss(self) -> int:
        """Bytes of its memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def write_adapter(folder: Path, base: Base, seed: int) -> Path:
    """A LoRA as PEFT saves one, both factors random."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in base.model.named_modules():
        if name.rpartition(".")[2] in TARGETS:
            a = torch.randn(RANK, module.in_features, generator=generator)
            b = torch.randn(module.out_features, RANK, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a * STRENGTH
            tensors[f"base_model.model.{name}.lora_B.weight"] = b * STRENGTH
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def oracle(
    store: Registry, base: Base, refs: Sequence[str], prompts_of: Callable[[str], Sequence[str]]
) -> dict[tuple[str, str], str]:
    """(digest, prompt) -> what each version answers alone."""
    composed = inlay.compose(refs[0], store=store, base=base)
    found = {}
    for ref in refs:
        composed.swap(ref)
        prompts = prompts_of(ref)
        answers = composed.generate(list(prompts), max_new_tokens=TOKENS)
        found |= {(composed.target.digest, p): a for p, a in zip(prompts, answers, strict=True)}
    composed.detach()
    return found


@contextlib.contextmanager
def traffic(server: Server, model: str, clients: int) -> Iterator[tuple[list[Asked], list[BaseException]]]:
    """Clients that ask for `model` without a pause until the block ends."""
    found: list[Asked] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def hammer(number: int) -> None:
        with httpx.Client() as client:
            turn = number
            while not over.is_set():
                turn += 1
                try:
                    found.append(server.ask(client, model, PROMPTS[turn % len(PROMPTS)]))
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(clients)]
    for each in threads:
        each.start()
    try:
        yield found, failed
    finally:
        over.set()
        for each in threads:
            each.join()


def versions(folder: Path, base: Base) -> Path:
    """A store whose acme has three versions, the first live."""
    with Registry.open(folder / "store", create=True) as store:
        for seed in (1, 2, 3):
            store.add("acme", write_adapter(folder / f"acme-{seed}", base, seed), base=base.fingerprint)
        store.promote("acme@v1", "prod", why="first")
    return folder / "store"


def stale(moves: Sequence[Move], asked: Asked) -> float:
    """Seconds between the end of the move that took a version from its alias and the request that still got
    it; 0 where it was live at some time while the request was under way, infinite where it never had been."""
    ends = [move.end for move in moves[1:]] + [math.inf]
    spans = [(move.begin, end) for move, end in zip(moves, ends, strict=True) if move.digest == asked.digest]
    if any(begin <= asked.came and end >= asked.sent for begin, end in spans):
        return 0.0
    return min((asked.sent - end for _, end in spans if end < asked.sent), default=math.inf)


def rollback(folder: Path, base: Base, clients: int, count: int = 100, seconds: float = 60.0) -> list[Row]:
    path = versions(folder, base)
    with Registry.open(path) as store:
        right = oracle(store, base, ["acme@v1", "acme@v2", "acme@v3"], lambda _ref: PROMPTS)
        moves = [Move(0.0, 0.0, store.resolve("acme@prod").digest)]
        with Server(path) as server, traffic(server, "acme@prod", clients) as (asked, failed):
            while len(asked) < clients:
                time.sleep(0.05)
            began = time.monotonic()
            for turn in range(2 * count):
                time.sleep(max(0.0, began + seconds * turn / (2 * count) - time.monotonic()))
                start = time.monotonic()
                if turn % 2:
                    store.rollback("acme@prod", why="bad")
                else:
                    store.promote(f"acme@v{2 + turn // 2 % 2}", "prod", why="next")
                moves.append(Move(start, time.monotonic(), store.resolve("acme@prod").digest))
            took = time.monotonic() - began
            time.sleep(1.0)
    wrong = sum(right.get((each.digest, each.prompt)) != each.text for each in asked)
    lags = [stale(moves, each) for each in asked]
    by_version = [sum(each.digest == named for each in asked) for named in sorted({d for d, _ in right})]
    print(
        f"rollback: {count} rollbacks and {count} promotions in {took:.1f} s, {len(asked)} answers by "
        f"{clients} clients, of the three versions {by_version}; a version was last given {max(lags):.3f} s "
        f"after it was no longer live (p99 {quantile(lags, 0.99):.3f} s)"
    )
    return [
        ("rollbacks under load: failed", "0", str(len(failed)), not failed),
        ("rollbacks under load: answers that are not one version's own", "0", str(wrong), not wrong),
        ("rollbacks under load: a move is seen within", "<= 1 s", f"{max(lags):.2f} s", max(lags) <= 1.0),
    ]


def gone(folder: Path, base: Base, clients: int, seconds: float = 10.0) -> list[Row]:
    path = versions(folder, base)
    with Registry.open(path) as store:
        right = oracle(store, base, ["acme@v1", "acme@v2"], lambda _ref: PROMPTS)
        target = store.resolve("acme@v2").digest
        with Server(path) as server, traffic(server, "acme@prod", clients) as (asked, failed):
            while len(asked) < clients:
                time.sleep(0.05)
            path.rename(folder / "away")
            left = time.monotonic()
            time.sleep(seconds)
            (folder / "away").rename(path)
            back = time.monotonic()
            store.promote("acme@v2", "prod", why="after it came back")
            moved = time.monotonic()
            while not any(each.digest == target for each in [*asked]) and time.monotonic() < moved + 30:
                time.sleep(0.01)
            seen = time.monotonic() - moved
    meanwhile = sum(left < each.sent and each.came < back for each in asked)
    wrong = sum(right.get((each.digest, each.prompt)) != each.text for each in asked)
    print(f"gone: {meanwhile} answers in {seconds:.0f} s without a store; then a promote took {seen:.2f} s")
    return [
        (
            "a store that is gone for 10 s: failed or wrong",
            "0",
            str(len(failed) + wrong),
            not failed and not wrong,
        ),
        ("a store that came back: a promote is seen within", "<= 1 s", f"{seen:.2f} s", seen <= 1.0),
    ]


def many(
    folder: Path, base: Base, clients: int, names: int = 1000, held: int = 32, requests: int = 5000
) -> list[Row]:
    path = folder / "store"
    began = time.monotonic()
    refs = [f"customer-{n:04}@prod" for n in range(names)]

    def prompt(ref: str) -> str:
        return f"{PROMPTS[int(ref[9:13]) % len(PROMPTS)]} {ref[9:13]}"

    with Registry.open(path, create=True) as store:
        for n in range(names):
            name = f"customer-{n:04}"
            version = store.add(name, write_adapter(folder / "made" / name, base, n), base=base.fingerprint)
            store.promote(version.ref, "prod", why="first")
        digests = {ref: store.resolve(ref).digest for ref in refs}
        print(f"many: {names} variants registered in {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        right = oracle(store, base, refs, lambda ref: [prompt(ref)])
        print(f"many: their {names} answers alone took {time.monotonic() - began:.0f} s")
    each = (
        4
        * RANK
        * sum(
            module.in_features + module.out_features
            for name, module in base.model.named_modules()
            if name.rpartition(".")[2] in TARGETS
        )
    )
    dice = random.Random(1)
    # Every variant once, in which metrics and allocator reach their size; then what is measured.
    order = [*dice.sample(refs, names), *dice.choices(refs, k=requests)]
    wrong: list[tuple[str, str, str]] = []
    failed: list[BaseException] = []
    memory: list[tuple[int, int]] = []
    most = 0
    turns = iter(range(len(order)))
    lock = threading.Lock()
    with Server(path, budget=held * each) as server:

        def client() -> None:
            nonlocal most
            with httpx.Client() as connection:
                while True:
                    with lock:
                        turn = next(turns, None)
                    if turn is None:
                        return
                    ref = order[turn]
                    try:
                        found = server.ask(connection, ref, prompt(ref))
                        said = right[digests[ref], prompt(ref)]
                        if (found.digest, found.text) != (digests[ref], said):
                            wrong.append((ref, found.text, said))
                    except Exception as error:
                        failed.append(error)
                    if turn % 250 == 0:
                        memory.append((turn, server.rss()))
                        most = max(most, len(server.look("/admin/loaded")["loaded"]))

        began = time.monotonic()
        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        memory.append((len(order), server.rss()))
        bank = server.look("/admin/loaded")["bank_bytes"]
    for ref, got, alone in wrong:
        print(f"many: {ref}: got {got!r}, alone {alone!r}")
    for error in failed:
        print(f"many: {type(error).__name__}: {error}")
    measured = [size for turn, size in sorted(memory) if turn >= names]
    early, late = statistics.mean(measured[:4]), statistics.mean(measured[-4:])
    growth = late / early - 1
    shown = ", ".join(f"{size / 2**20:.0f}" for size in measured)
    print(
        f"many: {len(order)} requests in {took:.0f} s by {clients} clients, {len(order) / took:.0f} a "
        f"second, at most {most} in memory, bank {bank / 2**20:.1f} MiB; resident MiB every 250: {shown}"
    )
    return [
        (f"{names} variants: failed or wrong", "0", str(len(failed) + len(wrong)), not failed and not wrong),
        (f"{names} variants: in memory at most", f"<= {held}", str(most), most <= held),
        (
            f"{names} variants: memory grows over {requests} requests by",
            "<= 2%",
            f"{growth:+.1%}",
            growth <= 0.02,
        ),
    ]


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="rollback gone many  [default: all]")
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    base = load_base(base_path())
    rows: list[Row] = []
    for name, part in (("rollback", rollback), ("gone", gone), ("many", many)):
        if not given.parts or name in given.parts:
            with tempfile.TemporaryDirectory() as folder:
                rows += part(Path(folder), base, given.clients)
    for what, asked, measured, met in rows:
        print(f"{'met   ' if met else 'MISSED'}  {what}: {measured}, asked {asked}")
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
