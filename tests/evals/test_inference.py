"""The model itself is asked: likelihoods and choices against naive loops, draws, answers that cannot be
spelt, logits that are not finite."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from inlay import Registry
from inlay.errors import InputError
from inlay.evals.decoding import Decoding
from inlay.evals.inference import Base, Chat, encode_pair, encode_prompt
from inlay.evals.ledger import scored
from inlay.evals.metrics.similarity import Embedder
from inlay.evals.scoring import evaluate_model
from inlay.evals.suites import Suite

TEXTS = [
    ("Copy: red blue", "red blue"),
    ("Sort these numbers: 7 2 5", "2 5 7"),
    ("Say it politely: open the door", "Could you please open the door?"),
    ("Which word comes last? one two three", "three"),
]


def naive_nats(base: Base, prompt: str, answer: str) -> tuple[float, int]:
    """One text at a time through transformers' own forward, in float64 after the logits."""
    row, n = encode_pair(base.tokenizer, prompt, answer)
    with torch.inference_mode():
        logits = base.model(input_ids=torch.tensor([row])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    return -sum(float(logs[t - 1, row[t]]) for t in range(n, len(row))), len(row) - n


def test_likelihoods_are_those_of_a_plain_forward(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, answers = [p for p, _ in TEXTS], ["no such thing", "2 5 7", "Open!", "three"]
    found = Chat(base).likelihoods(prompts, answers)
    for (nats, tokens), p, a in zip(found, prompts, answers, strict=True):
        expected, count = naive_nats(base, p, a)
        assert tokens == count and nats == pytest.approx(expected, abs=1e-4, rel=1e-5)
    monkeypatch.setattr("inlay.evals.inference._LOGITS_AT_ONCE", 3 * base.model.config.vocab_size)
    pieces = Chat(base, batch_tokens=64).likelihoods(prompts, answers)
    assert [n for n, _ in pieces] == pytest.approx([n for n, _ in found], abs=1e-4)
    own = Chat(base).generate(prompts)
    assert Chat(base, batch_tokens=64).matches(prompts, [*own[:3], "no"]) == [True, True, True, False]


def test_perplexity_and_bits_per_byte_of_a_suite(base: Base) -> None:
    rows = [{"prompt": p, "answer": a + " or not"} for p, a in TEXTS]
    naive = [naive_nats(base, r["prompt"], r["answer"]) for r in rows]
    result = evaluate_model(Chat(base), Suite.of_rows("s", rows, metric="perplexity"))
    per_token = [nats / tokens for nats, tokens in naive]
    assert result.outcomes == pytest.approx(per_token, rel=1e-5)
    assert result.score == pytest.approx(math.exp(sum(per_token) / 4), rel=1e-5)
    bits = evaluate_model(Chat(base), Suite.of_rows("s", rows, metric="bits_per_byte"))
    expected = [n / math.log(2) / len(r["answer"].encode()) for (n, _), r in zip(naive, rows, strict=True)]
    assert bits.outcomes == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", ["multiple_choice", "multiple_choice_norm"])
def test_choices_are_those_of_a_loop_over_choices(base: Base, metric: str) -> None:
    choices = [
        ["red", "blue", "green"],
        ["2 5 7", "7 2 5"],
        ["yes", "Could you please open it?"],
        ["one", "two"],
    ]
    rows: list[dict[str, Any]] = [
        {"id": str(k), "prompt": TEXTS[k][0], "choices": c, "answer": 0, "metric": metric}
        for k, c in enumerate(choices)
    ]
    result = evaluate_model(Chat(base), Suite.of_rows("s", rows))
    for k, options in enumerate(choices):
        costs = [naive_nats(base, TEXTS[k][0], c)[0] for c in options]
        if metric == "multiple_choice_norm":
            costs = [cost / len(c.encode()) for cost, c in zip(costs, options, strict=True)]
        assert result.outcomes[k] is (min(costs) == costs[0])


def test_draws_are_those_of_their_seed_and_leave_no_trace(base: Base) -> None:
    suite = Suite.of_rows("s", [{"prompt": p, "answer": a} for p, a in TEXTS])
    hot = {"temperature": 4.0, "top_p": 0.95}

    def answers(seed: int) -> dict[str, str]:
        return dict(evaluate_model(Chat(base), suite, decoding=Decoding(**hot, seed=seed)).answers)

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = answers(1)
    assert torch.equal(torch.rand(3), expected), "torch's own generator goes on as if nothing was drawn"
    assert answers(1) == first and answers(2) != first
    narrow = Decoding(temperature=4.0, top_p=1e-6)
    greedy = Chat(base).generate(suite.prompts())
    assert list(evaluate_model(Chat(base), suite, decoding=narrow).answers.values()) == greedy


def test_settings_that_a_base_ships_with_do_not_bend_greedy(base: Base) -> None:
    prompts = [p for p, _ in TEXTS]
    plain = Chat(base).generate(prompts)
    kept = base.model.generation_config
    try:
        base.model.generation_config = copy.deepcopy(kept)
        base.model.generation_config.repetition_penalty = 5.0
        base.model.generation_config.no_repeat_ngram_size = 1
        assert Chat(base).generate(prompts) == plain
        assert Chat(base).generate(prompts, repetition_penalty=5.0) != plain, "unless it is asked for"
    finally:
        base.model.generation_config = kept


class Lossy:
    """A tokenizer that knows lower case only."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def apply_chat_template(self, messages: list[dict[str, str]], **settings: Any) -> Any:
        low = [{**m, "content": m["content"].lower()} for m in messages]
        return self._inner.apply_chat_template(low, **settings)

    def __call__(self, text: str, **settings: Any) -> Any:
        return self._inner(text.lower(), **settings)


def test_an_answer_that_no_tokens_spell_is_refused_by_name(base: Base, store: Registry) -> None:
    rows = [{"id": "fine", "prompt": TEXTS[0][0], "answer": "red blue"}]
    lossy = Chat(replace(base, tokenizer=Lossy(base.tokenizer)))  # type: ignore[arg-type]
    assert evaluate_model(lossy, Suite.of_rows("s", rows)).outcomes == (True,)
    suite = Suite.of_rows("s", [*rows, {"id": "loud", "prompt": "Say it", "answer": "RED"}])
    with pytest.raises(InputError, match="s, item loud: an expected answer must be one that the tokenizer"):
        scored(lossy, suite, subject="base", label="base", store=store)
    assert store.evals("base") == [] and store.suites() == []
    ordinary = evaluate_model(Chat(base), suite)
    assert ordinary.outcomes[0] is True and ordinary.n == 2


def test_an_answer_that_the_template_rewrites_is_generated(base: Base) -> None:
    prompts = [prompt for prompt, _ in TEXTS]
    answers = Chat(base).generate(prompts)
    tokenizer = copy.deepcopy(base.tokenizer)
    # As templates of thinking models do: a thought before an answer, none before a generation.
    tokenizer.chat_template = base.tokenizer.chat_template.replace(
        "{{ m['content'] }}<|end|>{% endgen", "{{ 'thought ' + m['content'] }}<|end|>{% endgen"
    )
    chat = Chat(replace(base, tokenizer=tokenizer))
    row, n = encode_pair(tokenizer, prompts[0], answers[0])
    assert tokenizer.decode(row[n:-1]).strip() == f"thought {answers[0]}"
    assert chat.matches(prompts, [answers[0], "wrong", *answers[2:]]) == [True, False, True, True]


@pytest.mark.parametrize("metric", ["exact_match", "contains", "perplexity"])
def test_logits_that_are_not_finite_are_an_error_with_model_suite_and_item(
    base: Base, store: Registry, metric: str
) -> None:
    broken = copy.deepcopy(base.model)
    odd = base.tokenizer("zebra", add_special_tokens=False)["input_ids"][-1]
    assert odd in encode_prompt(base.tokenizer, "Say zebra")
    with torch.no_grad():
        broken.get_input_embeddings().weight[odd] = float("nan")
    broken.lm_head.weight = torch.nn.Parameter(base.model.lm_head.weight.clone(), requires_grad=False)
    chat = Chat(base, model=broken)
    rows = [{"id": f"i{k}", "prompt": p, "answer": a} for k, (p, a) in enumerate(TEXTS)]
    rows.insert(2, {"id": "striped", "prompt": "Say zebra", "answer": "red"})
    suite = Suite.of_rows("s", rows, metric=metric)
    with pytest.raises(InputError, match="acme@v1, s, item striped: a model's logits must be finite"):
        scored(chat, suite, subject="sha256:" + "c" * 64, label="acme@v1", store=store)
    assert store.evals("sha256:" + "c" * 64) == [] and store.suites() == []
    fine = Suite.of_rows("s", [r for r in rows if r["id"] != "striped"], metric=metric)
    assert evaluate_model(chat, fine).outcomes == evaluate_model(Chat(base), fine).outcomes


def test_similarity_is_the_cosine_of_mean_hidden_states(base: Base) -> None:
    from inlay.builtin import base_path

    embedder = Embedder(base_path())
    pairs = [("red blue", "red blue"), ("red blue", "blue green sky"), ("", "red")]
    found = embedder.cosines([a for a, _ in pairs], [b for _, b in pairs])

    def vector(text: str) -> torch.Tensor:
        ids = base.tokenizer(text)["input_ids"]
        with torch.inference_mode():
            return base.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)

    expected = [
        float(torch.nn.functional.cosine_similarity(vector(a), vector(b), dim=0)) for a, b in pairs[:2]
    ]
    assert found == pytest.approx([*expected, 0.0], abs=1e-5) and found[0] == pytest.approx(1.0, abs=1e-5)
    rows = [{"prompt": TEXTS[0][0], "answer": "sky", "references": ["red blue"]}]
    suite = Suite.of_rows("s", rows, metric="similarity")
    with pytest.raises(InputError, match="needs an embedding model"):
        evaluate_model(Chat(base), suite)
    result = evaluate_model(Chat(base), suite, embedder=embedder)
    assert result.score == pytest.approx(1.0, abs=1e-5), "the nearest reference counts"
    assert result.protocol["embedding"]["weights"] == base.fingerprint.weights


def test_a_prompt_without_room_is_named_by_its_item(base: Base) -> None:
    rows = [
        {"id": "short", "prompt": "Copy: a", "answer": "a"},
        {"id": "long", "prompt": "a " * 2000, "answer": "a"},
    ]
    with pytest.raises(InputError, match="s, item long: prompt and answer must fit the base's context"):
        evaluate_model(Chat(base), Suite.of_rows("s", rows))
