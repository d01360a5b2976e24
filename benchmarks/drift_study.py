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
from inlay.evals.calibration import HARM
from inlay.evals.drift import measure_drift
from inlay.evals.inference import Base, Chat, base_answers, load_base, pad
from inlay.evals.prompts import read_prompts
from inlay.evals.scoring import library_versions
from inlay.evals.statistics import Paired
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.methods.sft import prepared
from inlay.trainers.run import ANSWER_TOKENS
from inlay.trainers.settings import Settings

POINTS = Path(__file__).parent.parent / "docs" / "drift-points.jsonl"
FIGURE = POINTS.with_name("drift.svg")
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
RUNS_A_METHOD, PAIRS = 7, 6


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
    held = prepared(bench.base, read_dataset(data, name="full"), settings)
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
    """Points made of trained ones, `PAIRS` stacks and merges among them: (name, method, delta)."""
    drawn = Random(1).sample(trained, 2 * PAIRS)
    for (a, da), (b, db) in zip(drawn[::2], drawn[1::2], strict=True):
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


SHOWN = (
    ("held_out/disagreement", "top-1 disagreement, held-out probe"),
    ("held_out/forward_kl", "forward KL, held-out probe"),
    ("held_out/reverse_kl", "reverse KL, held-out probe"),
    ("held_out/nll_change", "NLL change, held-out probe"),
    ("protected/disagreement", "top-1 disagreement, protected probe"),
    ("protected/forward_kl", "forward KL, protected probe"),
    ("protected/reverse_kl", "reverse KL, protected probe"),
    ("protected/nll_change", "NLL change, protected probe"),
    ("task/disagreement", "top-1 disagreement, the new tasks' prompts"),
    ("task/forward_kl", "forward KL, the new tasks' prompts"),
    ("frobenius", "‖ΔW‖ / ‖W‖, Frobenius"),
    ("spectral", "‖ΔW‖ / ‖W‖, spectral, largest module"),
    ("intruders", "intruder dimensions"),
)
"""Signals in the order of the table, and what it calls them."""
NEAR = 0.10
"""Loss below which a point counts as near the base."""


def lost(row: Mapping[str, Any]) -> float:
    """Net fraction of the held-out items lost."""
    return (row["lost"] - row["gained"]) / row["n"]


def report(points: list[dict[str, Any]]) -> None:
    """Prints the tables of docs/drift.md."""
    trained = [row for row in points if row["trained"]]
    near = [row for row in trained if lost(row) < NEAR]
    made = len(points) - len(trained)
    print(f"{len(trained)} trained, {made} made of them; {len(near)} trained ones near the base")
    print("| signal | R² line | R² monotone | Spearman | near: Spearman | new method: R² |")
    for key, name in SHOWN:
        x, y = columns(trained, key)
        rank, close = ranked(trained, key), ranked(near, key)
        cells = [
            f"{r2_line(x, y):.2f}",
            f"{r2_monotone(x, y):.2f}",
            rank,
            close,
            f"{unseen(trained, key):.2f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    x, y = columns(points, "held_out/disagreement")
    print(
        f"all {len(points)} points, held-out disagreement: {r2_line(x, y):.2f}, {ranked(points, SHOWN[0][0])}"
    )
    for key in ("held_out/disagreement", "protected/disagreement", "held_out/forward_kl", "frobenius"):
        alarms(trained, points, key)


def columns(rows: list[dict[str, Any]], key: str) -> tuple[Any, Any]:
    """A signal and the loss, as arrays."""
    import numpy as np

    return np.array([row["signals"][key] for row in rows]), np.array([lost(row) for row in rows])


def r2_line(x: Any, y: Any) -> float:
    """R² of the straight line through the points: Pearson's correlation, squared."""
    import numpy as np

    return float(np.corrcoef(x, y)[0, 1] ** 2)


def r2_monotone(x: Any, y: Any) -> float:
    """R² of the best non-decreasing function of the signal, equal signals pooled."""
    return 1 - float(((y - monotone(x, y, x)) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def monotone(x: Any, y: Any, at: Any) -> Any:
    """Isotonic regression of y on x, read at other points; constant beyond both ends."""
    import numpy as np
    from scipy.optimize import isotonic_regression

    places, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(where, weights=y) / counts
    return np.interp(at, places, isotonic_regression(means, weights=counts).x)


def ranked(rows: list[dict[str, Any]], key: str, draws: int = 2000) -> str:
    """Spearman's correlation with its 95% interval, by bootstrap over adapters."""
    import numpy as np
    from scipy.stats import rankdata

    x, y = columns(rows, key)
    rng = np.random.default_rng(0)

    def rho(pick: Any) -> float:
        a, b = rankdata(x[pick]), rankdata(y[pick])
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0

    found = [rho(rng.integers(0, len(x), len(x))) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{rho(np.arange(len(x))):.2f} [{low:.2f}, {high:.2f}]"


def unseen(rows: list[dict[str, Any]], key: str) -> float:
    """R² of predicting each method's losses by a monotone function fitted on the other methods."""
    import numpy as np

    x, y = columns(rows, key)
    methods = np.array([row["method"] for row in rows])
    predicted = np.empty_like(y)
    for method in np.unique(methods):
        out = methods == method
        predicted[out] = monotone(x[~out], y[~out], x[out])
    return 1 - float(((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def alarms(trained: list[dict[str, Any]], points: list[dict[str, Any]], key: str) -> None:
    """The threshold that catches every harmful trained adapter, what it says falsely, and what it misses
    of a method it was not taken from."""

    def split(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        harmful = [Paired(r["n"], r["lost"], r["gained"], 0).loss_lower > HARM for r in rows]
        value = [r["signals"][key] for r in rows]
        return [v for v, h in zip(value, harmful, strict=True) if h], [
            v for v, h in zip(value, harmful, strict=True) if not h
        ]

    harmful, others = split(trained)
    threshold = min(harmful)
    missed = false = quiet = 0
    for method in METHODS:
        mine, rest = (
            split([r for r in trained if (r["method"] == method) is same]) for same in (True, False)
        )
        missed += sum(v < min(rest[0]) for v in mine[0])
        false += sum(v >= min(rest[0]) for v in mine[1])
        quiet += len(mine[1])
    wrong = sum(v >= threshold for v in others)
    print(
        f"{key}: threshold {threshold:.4g}; false alarms {wrong} of {len(others)}; "
        f"method left out: missed {missed} of {len(harmful)}, false {false} of {quiet}"
    )
    made = split([r for r in points if not r["trained"]])
    print(
        f"  points made of them: missed {sum(v < threshold for v in made[0])} of {len(made[0])}, "
        f"false {sum(v >= threshold for v in made[1])} of {len(made[1])}"
    )
    for at in (0.0025, 0.005, 0.01, 0.02):
        print(
            f"  at {at}: missed {sum(v < at for v in harmful)} of {len(harmful)}, "
            f"false {sum(v >= at for v in others)} of {len(others)}"
        )


def draw(points: list[dict[str, Any]], file: Path) -> None:
    """The figure of docs/drift.md: loss against three signals, a mark for each way of training."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "drift", "svg.fonttype": "none", "font.family": "sans-serif"}
    import matplotlib.pyplot as plt

    shown = (SHOWN[0], SHOWN[4], SHOWN[10])
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), sharey=True, layout="constrained")
    groups = (
        ("without an anchor", "o", "#b5482a", ("lora", "rslora", "attention", "full", "mixture")),
        ("KL to the base", "s", "#1f6f8b", ("kl", "kl-weak")),
        ("replay", "^", "#5b8c2a", ("replay",)),
        ("made of others", "x", "#999999", ("stack", "merge", "truncated")),
    )
    for axis, (key, name) in zip(axes, shown, strict=True):
        for label, mark, colour, methods in groups:
            rows = [r for r in points if r["method"] in methods]
            x, y = columns(rows, key)
            axis.scatter(100 * x, 100 * y, s=16, marker=mark, color=colour, label=label, linewidths=0.8)
        axis.set_xscale("symlog", linthresh=0.3 if key != "frobenius" else 1.0)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{name}, %", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("held-out accuracy lost, points", fontsize=8)
    axes[0].legend(fontsize=7, loc="upper left")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=Path, default=POINTS, help="JSONL that is written and read.")
    parser.add_argument("--work", type=Path, help="Keeps deltas, so that an interrupted study goes on.")
    parser.add_argument("--report", action="store_true", help="Only compute and draw, from the points.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.report:
        points = read_points(arguments.points)
        report(points)
        draw(points, FIGURE)
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="inlay-drift-"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("INLAY_CACHE", str(work / "cache"))
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, {library_versions()}", flush=True)
    study(arguments.points, work)


if __name__ == "__main__":
    main()
