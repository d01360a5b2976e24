"""Serving sixteen variants to many clients at once.

throughput: the scheduler with the bank against the same scheduler without adapters, and with PEFT's mixed
    batches (`adapter_names`) in the bank's place; in this process, in turns, on three copies of the built-in
    base. What the bank and PEFT answer is compared.
http: `inlay serve` in a process of its own, asked for its variants and for the bare base, in turns.

Clients ask in a closed loop: each has one variant and asks again as soon as it is answered, 64 tokens,
greedy, prompts of the general probe. No token ends an answer early, and the first answers are of unequal
lengths, so that afterwards rows join and leave one by one. A ratio is the median over the rounds.

    python benchmarks/serving.py                       # all, 16 variants, 64 clients, a few minutes
    python benchmarks/serving.py throughput --rank 8 --rounds 9
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from inlay.builtin import base_path, general_prompts_path
from inlay.evals.inference import Base, encode_prompt, load_base
from inlay.evals.prompts import read_prompts
from inlay.registry import Registry
from inlay.serving.requests import Ended, Event, Failed, Request, Sampling, Token
from inlay.serving.row_adapters import Voice
from inlay.serving.scheduler import Scheduler
from inlay.serving.shelf import Loaded, Shelf

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class PeftVoices:
    """PEFT in the bank's place: the names of a batch's adapters, handed to its layers by its own hooks."""

    def __init__(self, base: Base, folders: Sequence[Path]) -> None:
        self.model = PeftModel.from_pretrained(base.model, folders[0], adapter_name="v0")
        for i, folder in enumerate(folders[1:], 1):
            self.model.load_adapter(folder, adapter_name=f"v{i}")
        self.model.eval()

    def turn(self, loaded: Loaded, requests: Sequence[Request], ids: Sequence[Sequence[int]]) -> list[Voice]:
        return [Voice() for _ in requests]

    @contextlib.contextmanager
    def speaking(self, rows: Sequence[tuple[Loaded, Voice]]) -> Iterator[None]:
        with self.model._enable_peft_forward_hooks(adapter_names=[loaded.ref for loaded, _ in rows]):
            yield


@dataclass
class Round:
    """What one side did: tokens a second, and a second of this process on a CPU, which others on the machine
    do not disturb; seconds of each request, and what was answered."""

    rate: float
    cpu_rate: float
    seconds: list[float]
    answers: dict[tuple[int, int], tuple[int, ...]]


@dataclass
class Client:
    """Asks its variant one prompt after the other, from the thread that tells it the answer."""

    number: int
    loaded: Loaded
    prompts: list[tuple[int, ...]]
    first: int
    side: Side
    asked: int = 0
    began: float = 0.0
    ids: list[int] = field(default_factory=list)

    def ask(self) -> None:
        self.began, self.ids = time.perf_counter(), []
        tokens = self.first if self.asked == 0 else self.side.tokens
        prompt = self.prompts[self.asked % len(self.prompts)]
        request = Request("bench", "local", prompt, Sampling(tokens))
        self.side.scheduler.submit(self.loaded, request, self.hear)

    def hear(self, event: Event) -> None:
        if isinstance(event, Token):
            self.ids.append(event.id)
            return
        assert isinstance(event, Ended), event.error if isinstance(event, Failed) else event
        self.side.answered(self, time.perf_counter())
        self.asked += 1
        if not self.side.over.is_set():
            self.ask()


class Side:
    """A scheduler with its targets, and clients that ask it while `measured` waits."""

    def __init__(self, scheduler: Scheduler, targets: list[Loaded], clients: int, tokens: int) -> None:
        self.scheduler, self.targets, self.clients, self.tokens = scheduler, targets, clients, tokens
        scheduler.start()

    def measured(self, prompts: list[tuple[int, ...]], each: int) -> Round:
        """Until as many answers have come as `each` for every client, the first ones not counted."""
        self.over, self.wanted = threading.Event(), each * self.clients
        self.seconds: list[float] = []
        self.said = 0
        self.answers: dict[tuple[int, int], tuple[int, ...]] = {}
        self.begun: tuple[float, float] | None = None
        self.warm = set(range(self.clients))
        clients = [
            Client(
                i,
                self.targets[i % len(self.targets)],
                prompts[i % len(prompts) :: self.clients],
                1 + i * self.tokens // self.clients,
                self,
            )
            for i in range(self.clients)
        ]
        for client in clients:
            client.ask()
        self.over.wait()
        assert self.begun is not None
        rates = [self.said / (end - begin) for begin, end in zip(self.begun, self.ended, strict=True)]
        while self.scheduler.running or self.scheduler.waiting:  # who was not counted goes on to its end
            time.sleep(0.01)
        return Round(rates[0], rates[1], self.seconds, self.answers)

    def answered(self, client: Client, now: float) -> None:
        if self.over.is_set():
            return
        if client.number in self.warm:
            self.warm.discard(client.number)
            self.begun = None if self.warm else (now, time.process_time())
            return
        self.answers[client.number, client.asked] = tuple(client.ids)
        if self.begun is None:
            return
        self.said += len(client.ids)
        self.seconds.append(now - client.began)
        if len(self.seconds) >= self.wanted:
            self.ended = (now, time.process_time())
            self.over.set()


def written(folder: Path, base: Base, variants: int, rank: int) -> list[Path]:
    """Adapters of random factors, as PEFT saves them; the base is left as it was."""
    folders = []
    for i in range(variants):
        torch.manual_seed(i)
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=TARGETS,
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        made = get_peft_model(base.model, lora)
        folders.append(folder / f"v{i}")
        made.save_pretrained(folders[-1])
        made.unload()
        (folders[-1] / "README.md").unlink(missing_ok=True)
    return folders


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def throughput(options: argparse.Namespace) -> bool:
    bases = [load_base(base_path(), device=options.device) for _ in range(3)]
    for base in bases:
        base.model.generation_config.eos_token_id = []
    prompts = [tuple(encode_prompt(bases[0].tokenizer, p)) for p in read_prompts(general_prompts_path())]
    given = {"rows": options.clients, "queue": options.clients, "prefix_bytes": 0}
    with tempfile.TemporaryDirectory() as folder:
        folders = written(Path(folder), bases[1], options.variants, options.rank)
        with Registry.open(Path(folder) / "adapters_store", create=True) as store:
            versions = [store.add(f"v{i}", made, base=bases[1].fingerprint) for i, made in enumerate(folders)]
            banked = Scheduler(bases[1], **given)
            shelf = Shelf(store, banked, bases[1])
            targets = [shelf.take(version) for version in versions]
        plain = Scheduler(bases[0], **given)
        bare = Loaded(None, None, None, (), 0, "base", bases[0].fingerprint.weights)
        peft = Scheduler(bases[2], **given, voices=PeftVoices(bases[2], folders))
        names = [Loaded(None, None, None, (), 0, f"v{i}", f"v{i}") for i in range(options.variants)]
        sides = {
            "no adapters": Side(plain, [bare], options.clients, options.tokens),
            "the bank": Side(banked, targets, options.clients, options.tokens),
            "PEFT": Side(peft, names, options.clients, options.tokens),
        }
        rounds: dict[str, list[Round]] = {name: [] for name in sides}
        for i in range(options.rounds):
            order = list(sides)[i % 3 :] + list(sides)[: i % 3]
            for name in order:
                rounds[name].append(sides[name].measured(prompts, options.answers))
            print(", ".join(f"{name} {rounds[name][-1].rate:.0f}" for name in sides), "tokens/s", flush=True)
        for side in sides.values():
            side.scheduler.stop()
    same = total = 0
    for ours, theirs in zip(rounds["the bank"], rounds["PEFT"], strict=True):
        for key in ours.answers.keys() & theirs.answers.keys():
            total += 1
            same += ours.answers[key] == theirs.answers[key]
    print(f"answers of the bank and of PEFT that are the same, token for token: {same} of {total}")
    tell(rounds)
    met = same == total
    for against, asked in (("no adapters", 0.5), ("PEFT", 1.5)):
        pairs = list(zip(rounds["the bank"], rounds[against], strict=True))
        ratio, low, high = spread([ours.rate / other.rate for ours, other in pairs])
        cpu, *_ = spread([ours.cpu_rate / other.cpu_rate for ours, other in pairs])
        met &= ratio >= asked
        print(
            f"the bank over {against}: {ratio:.2f}x ({low:.2f} to {high:.2f}), asked at least {asked:g}x"
            f"{'' if ratio >= asked else ' MISSED'}; by CPU time {cpu:.2f}x"
        )
    return met


def endless_base(folder: Path) -> Path:
    """The built-in base, but no token ends an answer."""
    made = folder / "endless"
    shutil.copytree(base_path(), made)
    settings = made / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": []}))
    return made


@contextlib.contextmanager
def server(base: Path, store: Path, options: argparse.Namespace) -> Iterator[str]:
    """The address of a server that is ready."""
    command = [sys.executable, "-m", "inlay", "serve", "--base", str(base), "--store", str(store), "--json"]
    command += ["--port", "0", "--rows", str(options.clients), "--prefix-memory", "0"]
    threads = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--device", options.device],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **threads},
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["result"]["url"]
    finally:
        process.terminate()
        process.wait(60)


async def asked_over_http(
    url: str, models: Sequence[str], prompts: Sequence[str], options: argparse.Namespace
) -> Round:
    """One round of all clients; tokens are those that the usage of each answer counts."""
    wanted, warm, over = options.answers * options.clients, set(range(options.clients)), asyncio.Event()
    seconds: list[float] = []
    said, begun, ended = 0, 0.0, 0.0

    async def client(number: int) -> None:
        nonlocal said, begun, ended
        for turn in itertools.count():
            body = {
                "model": models[number % len(models)],
                "messages": [
                    {"role": "user", "content": prompts[(number + turn * options.clients) % len(prompts)]}
                ],
                "max_tokens": options.tokens if turn else 1 + number * options.tokens // options.clients,
                "temperature": 0,
            }
            start = time.perf_counter()
            response = await web.post(f"{url}/chat/completions", json=body)
            response.raise_for_status()
            now = time.perf_counter()
            if over.is_set():
                return
            if turn == 0:
                warm.discard(number)
                begun = now
            elif not warm:
                said += response.json()["usage"]["completion_tokens"]
                seconds.append(now - start)
                if len(seconds) >= wanted:
                    ended = now
                    over.set()

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600.0, limits=limits) as web, asyncio.TaskGroup() as group:
        for number in range(options.clients):
            group.create_task(client(number))
    return Round(said / (ended - begun), 0.0, seconds, {})


def http(options: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = endless_base(folder)
        base = load_base(path)
        with Registry.open(folder / "adapters_store", create=True) as store:
            refs = [
                store.add(f"v{i}", made, base=base.fingerprint).ref
                for i, made in enumerate(written(folder, base, options.variants, options.rank))
            ]
        prompts = read_prompts(general_prompts_path())
        rounds: dict[str, list[Round]] = {"no adapters": [], "the bank": []}
        with server(path, folder / "adapters_store", options) as url:
            for i in range(options.rounds):
                sides = [("no adapters", ["base"]), ("the bank", refs)]
                for side, models in sides if i % 2 else sides[::-1]:
                    rounds[side].append(asyncio.run(asked_over_http(url, models, prompts, options)))
                print(
                    "http:", ", ".join(f"{side} {found[-1].rate:.0f}" for side, found in rounds.items()),
                    "tokens/s", flush=True,
                )  # fmt: skip
    tell(rounds)
    pairs = zip(rounds["the bank"], rounds["no adapters"], strict=True)
    ratio, low, high = spread([ours.rate / other.rate for ours, other in pairs])
    print(f"http: the bank over no adapters: {ratio:.2f}x ({low:.2f} to {high:.2f})")
    return True


def tell(rounds: dict[str, list[Round]]) -> None:
    for name, found in rounds.items():
        seconds = list(itertools.chain(*(each.seconds for each in found)))
        print(
            f"{name}: {statistics.median(each.rate for each in found):.0f} tokens/s, a request "
            f"{percentile(seconds, 0.5):.2f} s at the median, {percentile(seconds, 0.99):.2f} s at p99"
        )


PARTS = {"throughput": throughput, "http": http}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--answers", type=int, default=2, help="counted of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    met = [PARTS[part](options) for part in options.parts or PARTS]
    raise SystemExit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
