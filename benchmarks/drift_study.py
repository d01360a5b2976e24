"""How well drift tells what was forgotten: trained adapters, their drift on a probe, accuracy lost.

Trains small adapters on the built-in base in many ways (`METHODS`), adds stacks, merges and truncations of
them, and writes one line a point to `docs/drift-points.jsonl` as it goes; interrupted, it goes on where it
stopped.
`--report` computes from those lines what docs/drift.md says, and draws its figure.

What is predicted: held-out accuracy lost, over 540 test items of the nine held-out skills. What predicts:
drift on a *probe* that shares no prompt with them nor with any training, from the base's own greedy answers:
`protected` (prompts of the other 17 skills) and `held_out` (other prompts of the same nine); norms of ΔW.

    python benchmarks/drift_study.py            # about half an hour of one core
    python benchmarks/drift_study.py --report
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from inlay.builtin import base_path, general_prompts_path
from inlay.builtin.skills import SKILLS, split_skills, unique_items
from inlay.builtin.tasks import prompt_of, rows
from inlay.evals.drift import measure_drift
from inlay.evals.inference import Base, Chat, base_answers, load_base, pad
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import library_versions
from inlay.trainers.data import read_dataset
from inlay.trainers.run import ANSWER_TOKENS
from inlay.trainers.settings import Settings
from inlay.trainers.sft import _tokenized, fit, release

POINTS = Path(__file__).parent.parent / "docs" / "drift-points.jsonl"
TASKS = ("ticket-queue", "order-slip", "case-card")
TRAIN_ROWS, SEED = 800, 7
SCORED, PROBED = 60, {"protected": 6, "held_out": 11}
"""Items a skill: 540 scored, 102 and 99 in the probes."""
INTRUDER_K, INTRUDER_BELOW = 10, 0.5
"""Shuttleworth et al. (arXiv 2410.21228): of the first ten left singular vectors of a changed weight, those
whose cosine with every left singular vector of the old one is under one half."""

Delta = dict[str, torch.Tensor]
"""What is added to each linear weight, by the module's name, (out, in)."""


@dataclass(frozen=True)
class Run:
    """One training: `method` decides what the other fields mean."""

    name: str
    method: str
    tasks: tuple[str, ...]
    rate: float
    rank: int
    steps: int
    seed: int


METHODS: dict[str, tuple[float, float]] = {
    "lora": (3e-4, 1e-2),
    "rslora": (1e-4, 4e-3),
    "attention": (5e-4, 1e-2),
    "kl": (1e-3, 2e-2),
    "kl-weak": (1e-3, 2e-2),
    "replay": (1e-3, 2e-2),
    "full": (2e-5, 1e-3),
    "mixture": (3e-4, 1e-2),
}
"""Method: the range its rate is drawn from, log-uniformly. `attention`: LoRA on q and v alone; `kl`,
`kl-weak`: the anchor with coefficient 1 and 0.1; `replay`: a third of the rows are general prompts of
protected skills with the base's own answers; `full`: every linear weight, no adapter; `mixture`: LoRA on
rows of two tasks."""
RUNS_A_METHOD = 8


def runs() -> list[Run]:
    """What is trained, the methods in turn, so that an interrupted study has seen all of them."""
    rng, found = Random(0), []
    for k in range(RUNS_A_METHOD):
        for method, (low, high) in METHODS.items():
            found.append(
                Run(
                    name=f"{method}-{k}",
                    method=method,
                    tasks=tuple(rng.sample(TASKS, 2 if method == "mixture" else 1)),
                    rate=round(math.exp(rng.uniform(math.log(low), math.log(high))), 6),
                    rank=rng.choice((2, 4, 8, 16, 32)),
                    steps=rng.choice((30, 60, 120)),
                    seed=k,
                )
            )
    return found


@dataclass
class Bench:
    """The base and everything that is asked of every point."""

    base: Base
    chat: Chat
    prompts: list[str]
    answers: list[str]
    scored: tuple[list[str], list[str]]
    probes: dict[str, tuple[list[str], list[str]]]
    before: list[bool]
    weights: Delta
    cache: Path

    @classmethod
    def make(cls, cache: Path) -> Bench:
        base = load_base(base_path(), device="cpu")
        chat = Chat(base)
        _, held_out = split_skills()
        prompts = read_prompts(general_prompts_path())
        picked: dict[str, list[Any]] = {"scored": [], "protected": [], "held_out": []}
        for skill in SKILLS:
            kind = "held_out" if skill.name in held_out else "protected"
            picked[kind] += unique_items(skill, "dev", PROBED[kind], seed=5)
            if kind == "held_out":
                picked["scored"] += unique_items(skill, "test", SCORED, seed=1)
        probes = {}
        for kind in ("protected", "held_out"):
            texts = [item.prompt for item in picked[kind]]
            assert not {*texts} & {*prompts, *(item.prompt for item in picked["scored"])}
            probes[kind] = (texts, chat.generate(texts, max_new_tokens=32))
        scored = [i.prompt for i in picked["scored"]], [i.answer for i in picked["scored"]]
        weights = {
            name: module.weight.detach().clone()
            for name, module in base.model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        }
        made = cls(
            base, chat, prompts, base_answers(base, prompts, max_new_tokens=ANSWER_TOKENS), scored, probes,
            chat.matches(*scored), weights, cache,
        )  # fmt: skip
        for texts, answers in made.task_and_probes().values():  # the base's sides, into the cache
            measure_drift(chat, chat, texts, answers=answers, cache=cache)
        return made

    def task_and_probes(self) -> dict[str, tuple[list[str], list[str]]]:
        """Every probe by its name; `task` is what RL's Razor looks at: prompts of the new tasks."""
        if "task" not in self.probes:
            texts = [prompt_of(row) for task in TASKS for row in rows(task, "dev", 32, SEED)]
            self.probes["task"] = (texts, self.chat.generate(texts, max_new_tokens=32))
        return self.probes

    def set(self, delta: Delta | None) -> None:
        """The base's weights plus `delta`; None for the base, bit for bit."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                held = self.base.model.get_submodule(name).weight
                held.copy_(weight if delta is None else weight + delta[name])

    def point(self, delta: Delta) -> dict[str, Any]:
        """What a delta does: accuracy lost, and every signal."""
        self.set(delta)
        try:
            after = self.chat.matches(*self.scored)
            signals: dict[str, float] = {}
            for kind, (texts, answers) in self.task_and_probes().items():
                drift = measure_drift(self.chat, self.chat, texts, answers=answers, cache=self.cache)
                assert drift.base_from_cache
                signals |= {
                    f"{kind}/{name}": getattr(drift, name)
                    for name in ("disagreement", "forward_kl", "reverse_kl", "nll_change")
                }
        finally:
            self.set(None)
        flips = [(was, now) for was, now in zip(self.before, after, strict=True)]
        return {
            "n": len(after),
            "lost": flips.count((True, False)),
            "gained": flips.count((False, True)),
            "signals": {k: float(f"{v:.6g}") for k, v in {**signals, **self.norms(delta)}.items()},
        }

    def norms(self, delta: Delta) -> dict[str, float]:
        """‖ΔW‖ relative to ‖W‖ over all modules; the largest ratio of spectral norms; intruder dimensions."""
        changed = sum(float(d.square().sum()) for d in delta.values())
        whole = sum(float(w.square().sum()) for w in self.weights.values())
        spectral, intruders = 0.0, 0
        for name, weight in self.weights.items():
            u, s, _ = torch.linalg.svd(weight, full_matrices=False)
            spectral = max(spectral, float(torch.linalg.matrix_norm(delta[name], 2) / s[0]))
            new, _, _ = torch.linalg.svd(weight + delta[name], full_matrices=False)
            nearest = (u.T @ new[:, :INTRUDER_K]).abs().max(dim=0).values
            intruders += int((nearest < INTRUDER_BELOW).sum())
        return {"frobenius": math.sqrt(changed / whole), "spectral": spectral, "intruders": intruders}


def train(bench: Bench, run: Run) -> Delta:
    """The delta that a run ends with."""
    data = [row for task in run.tasks for row in rows(task, "train", TRAIN_ROWS // len(run.tasks), SEED)]
    if run.method == "replay":
        kept = Random(run.seed).sample(range(len(bench.prompts)), TRAIN_ROWS // 2)
        data += [{"prompt": bench.prompts[i], "completion": bench.answers[i] or "?"} for i in kept]
    alpha = 16.0
    settings = Settings(
        learning_rate=run.rate,
        rank=run.rank,
        # rsLoRA divides by √r where LoRA divides by r.
        alpha=alpha * math.sqrt(run.rank) if run.method == "rslora" else alpha,
        max_steps=run.steps,
        target_modules=("q_proj", "v_proj") if run.method == "attention" else "all-linear",
        kl={"kl": 1.0, "kl-weak": 0.1}.get(run.method, 0.0),
        seed=run.seed,
    )
    if run.method == "full":
        return train_full(bench, data, settings)
    general = (bench.prompts, bench.answers) if settings.kl > 0 else None
    fitted = fit(bench.base, read_dataset(data, name=run.name), settings, general=general)
    delta = {name: torch.zeros_like(weight) for name, weight in bench.weights.items()}
    for name, module in fitted.model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            delta[name] = module.get_delta_weight("default").detach().clone()
    release(fitted)
    bench.base.model.requires_grad_(False)
    return delta


def train_full(bench: Bench, data: list[dict[str, str]], settings: Settings) -> Delta:
    """AdamW on every linear weight, cosine to zero after the warm-up, loss on the answers."""
    held = _tokenized(bench.base, read_dataset(data, name="full"), settings)
    parameters = [bench.base.model.get_submodule(name).weight for name in bench.weights]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    rng = Random(settings.seed)
    warm = max(1, int(settings.warmup * settings.max_steps))
    for step in range(settings.max_steps):
        done = (step - warm) / max(1, settings.max_steps - warm)
        factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        batch = rng.sample(held, settings.batch_size)
        ids, mask = pad([r["input_ids"] for r in batch], 0, side="right", device="cpu")
        labels, _ = pad([r["labels"] for r in batch], -100, side="right", device="cpu")
        loss = bench.base.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    bench.base.model.requires_grad_(False)
    delta = {
        name: bench.base.model.get_submodule(name).weight.detach() - weight
        for name, weight in bench.weights.items()
    }
    bench.set(None)
    return delta


def derived(trained: list[tuple[Run, Delta]]) -> Iterator[tuple[str, str, Delta]]:
    """Points made of trained ones: (name, method, delta)."""
    for (a, da), (b, db) in zip(trained[::2], trained[1::2], strict=False):
        yield f"stack/{a.name}+{b.name}", "stack", {k: da[k] + db[k] for k in da}
        yield f"merge/{a.name}+{b.name}", "merge", {k: 0.5 * (da[k] + db[k]) for k in da}
    for run, delta in trained:
        if run.method == "full":
            yield f"rank-8/{run.name}", "truncated", {k: truncated(d, 8) for k, d in delta.items()}


def truncated(delta: torch.Tensor, rank: int) -> torch.Tensor:
    """The best approximation of a rank."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def study(points: Path, work: Path) -> None:
    """Train and measure what `points` does not have yet. `work` keeps deltas between two calls."""
    known = {row["name"] for row in read_points(points)}
    bench = Bench.make(work / "cache")
    print(f"base: {sum(bench.before)} of {len(bench.before)} held-out items right", flush=True)

    def keep(row: Mapping[str, Any]) -> None:
        with points.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        signal = row["signals"]["protected/disagreement"]
        print(
            f"{row['name']:<32} lost {row['lost'] - row['gained']:>4}  disagreement {signal:.3f}", flush=True
        )

    trained = []
    for run in runs():
        file = work / f"{run.name}.pt"
        start = time.perf_counter()
        if not file.exists():
            torch.save(train(bench, run), file)
        trained.append((run, torch.load(file, weights_only=True)))
        if run.name not in known:
            seconds = round(time.perf_counter() - start, 1)
            keep({**asdict(run), "trained": True, "seconds": seconds, **bench.point(trained[-1][1])})
    for name, method, delta in derived(trained):
        if name not in known:
            keep({"name": name, "method": method, "trained": False, **bench.point(delta)})


def read_points(points: Path) -> list[dict[str, Any]]:
    """The lines written so far; a last line that was cut is dropped."""
    if not points.exists():
        return []
    found = []
    for line in points.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=Path, default=POINTS, help="JSONL that is written and read.")
    parser.add_argument("--work", type=Path, help="Keeps deltas, so that an interrupted study goes on.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="inlay-drift-"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("INLAY_CACHE", str(work / "cache"))
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, {library_versions()}", flush=True)
    study(arguments.points, work)


if __name__ == "__main__":
    main()
