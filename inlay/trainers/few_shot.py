"""The best few-shot prompt that the training data gives: what an adapter must beat to be worth having.

Candidates differ in how many examples stand before the request, in how they are laid out and in how they are
drawn. One is chosen on a dev part of the training rows, never on a suite, and only the chosen one is scored
on the targets. A prompt's examples are part of the protocol of its scores (`few_shot`, `shots`), so that
these never pair with scores without examples, and no guard takes one for the other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inlay.errors import InputError
from inlay.evals.asking import needs_embedding
from inlay.evals.cache import Cache
from inlay.evals.decoding import Decoding
from inlay.evals.inference import Prompt, as_messages, encode_prompt, quiet_transformers
from inlay.evals.ledger import Say
from inlay.evals.scoring import evaluate_model, library_versions, protocol_of
from inlay.evals.suites import Item, Suite
from inlay.registry.canonical import digest_of_json
from inlay.trainers.data import Example

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.evals.inference import Chat
    from inlay.registry.fingerprint import BaseFingerprint

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of examples that are tried, as far as the context has room."""
MOST_SIZES = 5
"""So many sizes at most are tried, the largest that fit; with two layouts, a second draw and the nearest
examples that makes eight candidates."""
DEV_ROWS = 100
ROOM = 8
"""Tokens kept free for an answer beyond the longest one of the training rows."""

Layout = Literal["turns", "text"]
Draw = Literal["seeded", "nearest"]


@dataclass(frozen=True)
class Shots:
    """A way of showing `k` examples. `layout`: each a turn of the user's and one of the assistant's, or all
    in the request's own message. `draw`: the same for all requests, drawn by `seed` with the answers in turn,
    or those nearest to the request by TF-IDF, the nearest last."""

    k: int
    layout: Layout = "turns"
    draw: Draw = "seeded"
    seed: int = 0

    def __str__(self) -> str:
        drawn = f"drawn by seed {self.seed}" if self.draw == "seeded" else "nearest to the request"
        where = "as turns" if self.layout == "turns" else "in one message"
        return f"{self.k} example{'' if self.k == 1 else 's'} {where}, {drawn}"


@dataclass(frozen=True)
class Tried:
    """A candidate and its score on `n` dev rows; None where there were too few rows for any."""

    shots: Shots
    score: float | None
    n: int


@dataclass(frozen=True)
class Choice:
    """The model that answers after the chosen examples, and what it was chosen from."""

    model: FewShot
    tried: tuple[Tried, ...]
    metric: str

    def to_dict(self) -> dict[str, Any]:
        """What a run keeps of it: the choice, the digest of its examples, and every dev score."""
        return {
            **asdict(self.model.shots),
            "shots": self.model.protocol["shots"],
            "dev_metric": self.metric,
            "tried": [{**asdict(one.shots), "score": one.score, "n": one.n} for one in self.tried],
        }


class FewShot:
    """A model that is asked with examples before each request; like `chat`, a `scoring.Model`.

    Where not all examples fit beside a request and room for its answer, those furthest from the request are
    left out: `shortened` counts these requests.
    """

    def __init__(self, chat: Chat, shots: Shots, pool: Sequence[Example]) -> None:
        if not pool:
            raise InputError("a few-shot prompt needs at least one example, and the training rows leave none")
        self.chat = chat
        self.shots = shots
        self.shortened = 0
        self._drawn = _drawn(pool, shots.k, shots.seed)
        self._near = _Nearest(pool) if shots.draw == "nearest" else None
        shown = pool if self._near is not None else self._drawn
        key = [asdict(shots), [[example.messages, example.answer] for example in shown]]
        self._protocol = {"few_shot": shots.k, "shots": digest_of_json(key)}
        self.room = ROOM + max(self._tokens(example.answer) for example in pool)

    @property
    def fingerprint(self) -> BaseFingerprint:
        return self.chat.fingerprint

    @property
    def device(self) -> str:
        return self.chat.device

    @property
    def protocol(self) -> dict[str, Any]:
        return {**self.chat.protocol, **self._protocol}

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **decoding: Any,
    ) -> list[str]:
        asked = [self.prompt(prompt, max_new_tokens) for prompt in prompts]
        return self.chat.generate(asked, max_new_tokens=max_new_tokens, progress=progress, **decoding)

    def matches(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[bool]:
        return self.chat.matches(self._before(prompts, answers), answers, progress=progress)

    def likelihoods(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[float, int]]:
        return self.chat.likelihoods(self._before(prompts, answers), answers, progress=progress)

    def states(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, list[int]]]:
        return self.chat.states(self._before(prompts, answers), answers)

    def head(self, hidden: Tensor) -> Tensor:
        return self.chat.head(hidden)

    def prompt(self, request: Prompt, room: int) -> Prompt:
        """`request` behind as many of the examples as fit beside it and `room` tokens of an answer."""
        examples = self._examples(request)
        for left_out in range(len(examples) + 1):
            whole = laid_out(request, examples[left_out:], self.shots.layout)
            if self.fits(whole, room):
                break
        self.shortened += left_out > 0
        return whole

    def fits(self, prompt: Prompt, room: int) -> bool:
        """Whether a prompt and `room` tokens fit the base's context."""
        limit = getattr(self.chat.model.config, "max_position_embeddings", None)
        with quiet_transformers():  # which would warn of every prompt that is too long, as is asked here
            return limit is None or len(encode_prompt(self.chat.tokenizer, prompt)) + room <= limit

    def whole(self, request: Prompt) -> bool:
        """Whether all the examples fit before this request."""
        return self.fits(laid_out(request, self._examples(request), self.shots.layout), self.room)

    def _examples(self, request: Prompt) -> Sequence[Example]:
        return self._drawn if self._near is None else self._near(text_of(request), self.shots.k)

    def _before(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Prompt]:
        # The room depends on the answers of the training rows, not on the one that is right here, unless
        # that is longer than all of them.
        return [
            self.prompt(prompt, max(self.room, self._tokens(answer) + ROOM))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _tokens(self, text: str) -> int:
        return len(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])


def laid_out(request: Prompt, examples: Sequence[Example], layout: Layout) -> Prompt:
    """The request behind the examples; system messages of the request stay first, those of examples go."""
    if not examples:
        return request
    messages = as_messages(request)
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), 0)
    head, rest = messages[:first], messages[first:]
    if layout == "turns":
        turns = [
            turn
            for example in examples
            for turn in (
                *(m for m in as_messages(example.messages) if m["role"] != "system"),
                {"role": "assistant", "content": example.answer},
            )
        ]
        return [*head, *turns, *rest]
    shown = "\n\n".join(f"{text_of(example.messages)}\nAnswer: {example.answer}" for example in examples)
    asked = {**rest[-1], "content": f"Examples:\n\n{shown}\n\nNow:\n\n{rest[-1]['content']}\nAnswer:"}
    whole = [*head, *rest[:-1], asked]
    return asked["content"] if isinstance(request, str) else whole


def text_of(prompt: Prompt) -> str:
    """What a prompt says, without its system messages: one message a line."""
    return "\n".join(message["content"] for message in as_messages(prompt) if message["role"] != "system")


def split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(the rows that examples are drawn from, dev rows): a quarter for dev, at most `DEV_ROWS`, in an order
    that `seed` deals. No prompt stands on both sides."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    dev: list[Example] = []
    held: set[str] = set()
    wanted = min(DEV_ROWS, len(examples) // 4)
    for index in order[:wanted]:
        dev.append(examples[index])
        held.add(text_of(examples[index].messages))
    pool = [example for example in examples if text_of(example.messages) not in held]
    return (pool, dev) if pool else (list(examples), [])


def dev_suite(dev: Sequence[Example], target: Suite) -> Suite:
    """The dev rows as a suite that is scored as `target` is, where its metric can score a row's answer; else
    by exact match. Multiple choice stays so where all items of the target have the same choices."""
    choices = {item.choices for item in target.items}
    shared = choices.pop() if len(choices) == 1 else ()
    items = tuple(
        Item(f"dev-{n}", example.prompt, example.answer, choices=shared) for n, example in enumerate(dev)
    )
    # A regex or a text that must not come is not what a training row's answer is.
    readable = len(target.metrics) == 1 and target.metrics[0].name not in ("regex", "contains_not")
    if readable and not needs_embedding(target):
        try:
            return Suite("dev", items, target.metrics[0].name)
        except InputError:
            pass
    return Suite("dev", tuple(replace(item, choices=()) for item in items))


def choose(
    chat: Chat,
    examples: Sequence[Example],
    target: Suite,
    *,
    seed: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Choice:
    """The few-shot prompt that scores best on dev rows held back from `examples`, by `target`'s metric.

    First the sizes that fit, then with the best of them the other layout, the nearest examples and a second
    draw; of equals the first. Scores are kept in the cache under `cache`. With under four rows nothing is
    held back, and the largest size that fits is taken unmeasured.
    """
    pool, dev = split(examples, seed)
    made = [FewShot(chat, Shots(k, seed=seed), pool) for k in _sizes(len(pool))]
    requests = [example.messages for example in dev or examples]
    fitting = [made[0], *(model for model in made[1:] if _fits_mostly(model, requests))]
    if not dev:
        return Choice(fitting[-1], (Tried(fitting[-1].shots, None, 0),), "")
    suite = dev_suite(dev, target)
    scorer = _Scorer(suite, Cache.of_environment(cache) if cache is not None else None, say)
    for model in fitting[-MOST_SIZES:]:
        scorer(model)
    best = scorer.best.shots
    others = [replace(best, draw="nearest"), replace(best, seed=best.seed + 1), replace(best, layout="text")]
    for shots in others:
        scorer(FewShot(chat, shots, pool))
    # What answers on the target must not carry the count of dev requests that were shortened.
    return Choice(FewShot(chat, scorer.best.shots, pool), tuple(scorer.tried), suite.metric)


@dataclass
class _Scorer:
    """Scores candidates on one dev suite and remembers the best."""

    suite: Suite
    cache: Cache | None
    say: Say | None
    tried: list[Tried] = field(default_factory=list)

    def __call__(self, model: FewShot) -> None:
        self.tried.append(Tried(model.shots, self._score(model), len(self.suite)))

    @property
    def best(self) -> Tried:
        sign = 1.0 if self.suite.higher_is_better else -1.0
        return max(self.tried, key=lambda one: sign * (one.score or 0.0))

    def _score(self, model: FewShot) -> float:
        key = {
            "few-shot dev": 1,
            "base": [model.fingerprint.weights, model.fingerprint.prompt],
            "suite": self.suite.digest,
            "metric": self.suite.metric,
            "protocol": protocol_of(model, self.suite, Decoding()),
            "device": model.device,
            "versions": library_versions(),
        }
        name = digest_of_json(key).partition(":")[2]
        held = self.cache.read("few-shot", name) if self.cache is not None else None
        if held is not None:
            return float(json.loads(held))
        what, say = f"a few-shot prompt of {model.shots}", self.say
        score = evaluate_model(
            model,
            self.suite,
            label=what,
            progress=(lambda done, total: say(what, done, total)) if say else None,
        ).score
        if self.cache is not None:
            self.cache.write("few-shot", name, json.dumps(score).encode())
        return score


class _Nearest:
    """The k examples whose words are most like a request's, by the cosine of TF-IDF, the nearest last."""

    def __init__(self, pool: Sequence[Example]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.pool = pool
        self.words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        self.rows = self.words.fit_transform([text_of(example.messages) or " " for example in pool])

    def __call__(self, text: str, k: int) -> list[Example]:
        import numpy as np

        likeness = (self.rows @ self.words.transform([text]).T).toarray()[:, 0]
        # Stable, so that equals come in the order of the rows.
        nearest = np.argsort(-likeness, kind="stable")[:k]
        return [self.pool[int(index)] for index in reversed(nearest)]


def _drawn(pool: Sequence[Example], k: int, seed: int) -> list[Example]:
    """`k` examples by `seed`, the different answers in turn: classes have equal shares."""
    draws = random.Random(seed)
    groups: dict[str, list[Example]] = {}
    for example in pool:
        groups.setdefault(example.answer, []).append(example)
    for group in groups.values():
        draws.shuffle(group)
    order = list(groups)
    draws.shuffle(order)
    chosen: list[Example] = []
    while len(chosen) < min(k, len(pool)):
        for answer in order:
            if groups[answer] and len(chosen) < k:
                chosen.append(groups[answer].pop())
    draws.shuffle(chosen)
    return chosen


def _sizes(rows: int) -> list[int]:
    return [k for k in SIZES if k <= rows]


def _fits_mostly(model: FewShot, requests: Sequence[Prompt]) -> bool:
    """Whether all examples fit before at least half of the requests; else it is a smaller size in
    disguise."""
    return 2 * sum(model.whole(request) for request in requests) >= len(requests)
