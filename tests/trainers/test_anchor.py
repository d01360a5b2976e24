"""The anchor: how much it draws, what it costs, and every way through a model giving the same divergence."""

from __future__ import annotations

import json
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from inlay.builtin import general_prompts_path
from inlay.evals import Suite
from inlay.evals.inference import Base, base_answers, encode_pair
from inlay.trainers import anchor as anchors
from inlay.trainers.anchor import Anchor, Clock
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release
from inlay.trainers.methods.job import Anchored, tokens_of
from inlay.trainers.settings import Settings

PROMPTS = [
    "Write these words in upper case: river garden",
    "Which number is larger, 14 or 52?",
    "Copy the word: lamp",
    "Add 4 and 17",
    "What is the last word here: grass, hill, stone, far, cloud, early",
]


@pytest.fixture
def adapted(base: Base) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    yield model
    model.unload()
    base.model.eval()


def anchor_of(base: Base, **changes: Any) -> Anchor:
    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    settings = {"rows": 5, "prompt_weight": 0.5, "seed": 0, "device": "cpu", **changes}
    return Anchor(base.tokenizer, PROMPTS, answers, **settings)


def value_of(anchor: Anchor, model: Any) -> float:
    with torch.no_grad():
        value = anchor.kl(model)
    assert value is not None
    return float(value)


def naive(base: Base, model: Any, anchor: Anchor) -> float:
    """Position by position in float64, each row by itself."""
    at_answers, at_prompts = [], []
    for ids, n_prompt in anchor.pairs:
        with torch.inference_mode():
            q = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            with model.disable_adapter():
                p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        divergence = (p.exp() * (p - q)).sum(-1)[:-1].tolist()
        at_prompts += divergence[: n_prompt - 1]
        at_answers += divergence[n_prompt - 1 :]
    return sum(at_answers) / len(at_answers) + 0.5 * sum(at_prompts) / len(at_prompts)


@pytest.mark.parametrize(
    ("packed", "logits"),
    [(2048, 1 << 26), (0, 1 << 26), (2048, 1684 * 7), (0, 1684)],
    ids=["packed", "padded", "in pieces", "a position at a time"],
)
def test_every_way_gives_the_naive_divergence_and_its_gradient(
    base: Base, adapted: Any, packed: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With KEPT_BYTES at 0 nothing of the teacher is kept; the second pass is from memory."""

    def gradients(anchor: Anchor) -> tuple[float, torch.Tensor]:
        adapted.zero_grad()
        value = anchor.kl(adapted)
        assert value is not None
        value.backward()
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        return float(value.detach()), torch.cat([p.grad.flatten() for p in parameters])

    monkeypatch.setattr(anchors, "PACKED_TOKENS", 0)
    _, expected = gradients(anchor_of(base))
    monkeypatch.setattr(anchors, "PACKED_TOKENS", packed)
    monkeypatch.setattr(anchors, "LOGITS_AT_ONCE", logits)
    for kept in (0, 1 << 30):
        monkeypatch.setattr(anchors, "KEPT_BYTES", kept)
        anchor = anchor_of(base)
        for _ in range(2):
            value, found = gradients(anchor)
            assert value == pytest.approx(naive(base, adapted, anchor), rel=1e-4)
            assert torch.allclose(found, expected, atol=1e-5, rtol=1e-3)


def test_no_more_logits_exist_at_a_time_than_the_bound(
    base: Base, adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "LOGITS_AT_ONCE", 1684 * 10)
    anchor = anchor_of(base)
    anchor.kl(adapted)  # the first one looks which ways there are
    seen = []
    handle = base.model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, out: seen.append(out.numel())
    )
    try:
        value = anchor.kl(adapted)
        assert value is not None
        value.backward()
    finally:
        handle.remove()
    assert sum(len(ids) - 1 for ids, _ in anchor.pairs) > 50
    assert max(seen) == 1684 * 10


def test_a_base_that_changes_its_logits_after_the_head_is_asked_as_it_stands(
    base: Base, adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap after the head, which hidden states know nothing of; and rows that see each other when packed."""
    plain = base.model.forward

    def capped(*args: Any, **named: Any) -> Any:
        out = plain(*args, **named)
        out.logits = torch.tanh(out.logits / 5.0) * 5.0
        return out

    monkeypatch.setattr(base.model, "forward", capped, raising=False)
    anchor = anchor_of(base)
    assert value_of(anchor, adapted) == pytest.approx(naive(base, adapted, anchor), rel=1e-4)
    assert not anchor._plain and anchor._packs

    def unseeing(*args: Any, position_ids: Any = None, **named: Any) -> Any:
        return plain(*args, **named)  # rows one behind the other are one row to it

    monkeypatch.setattr(base.model, "forward", unseeing, raising=False)
    anchor = anchor_of(base)
    assert value_of(anchor, adapted) == pytest.approx(naive(base, adapted, anchor), rel=1e-4)
    assert anchor._plain and not anchor._packs


def test_a_teacher_of_its_own(base: Base, adapted: Any) -> None:
    """Against another model as the base: the same divergence as against the adapter switched off."""
    import copy

    teacher = copy.deepcopy(adapted.get_base_model())
    for module in teacher.modules():
        if hasattr(module, "disable_adapters"):
            module._disable_adapters = True
    apart = anchor_of(base, teacher=teacher)
    assert value_of(apart, adapted) == pytest.approx(naive(base, adapted, apart), rel=1e-4)


def test_ratio_is_kept_to_within_one_prompt_and_a_step_may_draw_none(base: Base) -> None:
    anchor = anchor_of(base, ratio=0.3)
    longest = max(len(ids) for ids, _ in anchor.pairs)
    draws, task = [], 0
    for tokens in (40, 7, 300, 3, 90, 11):
        task += tokens
        draws += [anchor._draw(tokens)]
        assert 0 <= anchor.tokens - 0.3 * task < longest
    assert [] in draws
    assert anchor_of(base, ratio=0.3).kl(None, 0) is None
    everything = [i for chosen in draws for i in chosen]
    counts = Counter(everything)
    assert max(counts.values()) - min(counts[i] for i in range(5)) <= 1  # each as often as any other
    rows = anchor_of(base, rows=2)
    assert [i for _ in range(9) for i in rows._draw(1000)][: len(everything)] == everything[:18]


def test_draws_go_on_where_they_were(base: Base) -> None:
    one = anchor_of(base, ratio=0.4)
    for tokens in (80, 30):
        one._draw(tokens)
    state = json.loads(json.dumps(one.state_dict()))
    other = anchor_of(base, ratio=0.4)
    other.load_state_dict(state)
    assert [one._draw(55) for _ in range(6)] == [other._draw(55) for _ in range(6)]
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(("kept", "grouped"), [(1 << 30, {5}), (90 * 192 * 4, {2, 3, 4}), (0, {0})])
def test_taken_up_it_measures_the_same_bits(
    base: Base, adapted: Any, kept: int, grouped: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of the teacher was kept before, all of it, some or none; in the second round of the draws."""
    monkeypatch.setattr(anchors, "KEPT_BYTES", kept)
    monkeypatch.setattr(anchors, "TOGETHER", 50)
    one = anchor_of(base, rows=2)
    for _ in range(3):
        value_of(one, adapted)
    other = anchor_of(base, rows=2)
    other.load_state_dict(one.state_dict())
    assert [value_of(one, adapted) for _ in range(4)] == [value_of(other, adapted) for _ in range(4)]
    assert set(one._states) == set(one._groups) and len(one._groups) in grouped


class _Slow(torch.autograd.Function):
    """The identity, whose gradient takes `seconds`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        time.sleep(ctx.seconds)
        return gradients[0], None


def test_time_of_the_anchor_is_its_own_forward_and_backward() -> None:
    """0.05 s before, 0.1 s back; the task's own 0.2 s back are not in it."""
    weight = torch.nn.Parameter(torch.ones(3))

    class Trainer:
        def __init__(self, model: Any) -> None:
            self.model, self.current_gradient_accumulation_steps = model, 1

        def compute_loss(self, *_args: Any) -> torch.Tensor:
            return _Slow.apply(weight, 0.2).sum()

    class Both(Anchored, Trainer):
        pass

    clock = Clock("cpu")

    def kl(_model: Any, task_tokens: int) -> torch.Tensor:
        assert task_tokens == 3
        clock.start()
        time.sleep(0.05)
        value = _Slow.apply(weight, 0.1).square().sum()
        clock.stop()
        value.register_hook(clock.start)
        return value

    trainer = Both(
        anchor=cast(Anchor, SimpleNamespace(clock=clock, kl=kl)), kl=2.0, model=torch.nn.Linear(1, 1)
    )
    inputs = {"input_ids": torch.ones(1, 4), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    loss = trainer.compute_loss(None, inputs)
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [1.0 + 2.0 * 2.0] * 3
    assert 0.15 <= clock.seconds < 0.3
    assert trainer.step_figures() == {"loss": 3.0, "kl": 3.0}
    assert tokens_of({"input_ids": torch.ones(2, 4)}) == 8


def test_a_run_under_a_ratio_says_what_it_took(base: Base) -> None:
    from inlay.builtin.tasks import rows
    from inlay.trainers.remembering import in_words

    answers = base_answers(base, PROMPTS, max_new_tokens=8)
    settings = Settings().replaced(max_steps=4, batch_size=4, rank=2, kl_ratio=0.5)
    fitted = fit(
        base, read_dataset(rows("ticket-queue", "train", 24, 0)), settings, general=(PROMPTS, answers)
    )
    release(fitted)
    kl = fitted.remembering["kl"]
    longest = max(len(encode_pair(base.tokenizer, p, a)[0]) for p, a in zip(PROMPTS, answers, strict=True))
    assert 0 <= kl["tokens"] - 0.5 * fitted.task_tokens < longest
    assert kl["ratio"] == pytest.approx(kl["tokens"] / fitted.task_tokens, abs=1e-4)
    assert 0.05 < kl["share"] < 0.9 and kl["seconds"] == pytest.approx(kl["share"] * fitted.seconds, abs=0.01)
    (said,) = in_words(fitted.remembering)
    assert said.startswith(f"KL to the base took {kl['ratio']:.2f} general tokens for each of the task's")


def test_six_hundred_prompts_in_a_dozen_protected_categories_ship() -> None:
    shipped = [json.loads(line) for line in general_prompts_path().read_text(encoding="utf-8").splitlines()]
    skills = Counter(row["skill"] for row in shipped)
    suite = Suite.load("general-v1")
    assert len({row["prompt"] for row in shipped}) >= 600
    assert len(skills) >= 12 and min(skills.values()) >= 20
    assert not set(skills) & {item.skill for item in suite.items if item.held_out}
    assert set(skills) <= {item.skill for item in suite.items if not item.held_out}
    assert not {row["prompt"] for row in shipped} & {item.text for item in suite.items}
