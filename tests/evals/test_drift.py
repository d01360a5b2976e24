"""Drift on a tiny random Llama against a naive float32 loop; a cache that cannot lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from evals_fakes import FakeFingerprint
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from inlay.errors import InputError
from inlay.evals.drift import Drift, bytes_of, compute_side, measure_drift, pass_over, side_of

VOCABULARY = 64
PROMPTS = ["the cat", "a much longer prompt about dogs", "x", "seven eight nine"]


def tokens(text: str) -> list[int]:
    return [ord(c) % VOCABULARY for c in text]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class TinyChat:
    """The shape of `inference.Chat` over a random Llama and a table of bytes, two items a batch."""

    model: LlamaForCausalLM
    fingerprint: Any = field(default_factory=FakeFingerprint)
    protocol: dict[str, Any] = field(default_factory=lambda: {"dtype": "float32"})
    device: str = "cpu"
    reverse: bool = False
    passes: int = 0

    def generate(
        self, prompts: Sequence[Any], *, max_new_tokens: int = 64, progress: Any = None
    ) -> list[str]:
        answers = []
        for prompt in prompts:
            ids = tokens(prompt)
            with torch.inference_mode():
                for _ in range(min(max_new_tokens, 6)):
                    ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            answers.append("".join(chr(i) for i in ids[len(prompt) :]))
        return answers

    def matches(self, prompts: Any, answers: Any, *, progress: Any = None) -> list[bool]:
        raise NotImplementedError

    def states(
        self, prompts: Sequence[Any], answers: Sequence[str]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, list[int]]]:
        self.passes += 1
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) * (-1 if self.reverse else 1))
        for start in range(0, len(order), 2):
            rows = order[start : start + 2]
            hidden, targets = [], []
            for i in rows:
                head, tail = tokens(prompts[i]), tokens(answers[i])
                with torch.inference_mode():
                    out = self.model.model(torch.tensor([head + tail])).last_hidden_state[0]
                hidden.append(out[len(head) - 1 : -1])
                targets.append(torch.tensor(tail))
            yield rows, torch.cat(hidden), torch.cat(targets), [len(t) for t in targets]

    def head(self, hidden: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.model.lm_head(hidden).float()


def tiny(seed: int, *, nudge: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    if nudge:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += nudge * torch.randn_like(parameter)
    return model


def naive(base: LlamaForCausalLM, model: LlamaForCausalLM, answers: Sequence[str]) -> Drift:
    """The same numbers, one position and one token at a time, in float32."""
    forward = reverse = disagreement = nll = 0.0
    positions = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokens(prompt) + tokens(answer)
        with torch.no_grad():
            p_all, q_all = (m(torch.tensor([ids])).logits[0].softmax(-1) for m in (base, model))
        for at in range(len(prompt) - 1, len(ids) - 1):
            p, q = p_all[at], q_all[at]
            forward += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
            reverse += sum(float(b * (b / a).log()) for a, b in zip(p, q, strict=True))
            disagreement += float(p.argmax() != q.argmax())
            nll += float(-q[ids[at + 1]].log() + p[ids[at + 1]].log())
            positions += 1
    return Drift(
        len(answers),
        positions,
        forward / positions,
        reverse / positions,
        disagreement / positions,
        nll / positions,
    )


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_drift_equals_a_naive_loop(tmp_path: Path, chunk: int) -> None:
    base, model = TinyChat(tiny(0)), TinyChat(tiny(0, nudge=0.05))
    drift = measure_drift(base, model, PROMPTS, cache=tmp_path, chunk=chunk)
    oracle = naive(base.model, model.model, base.generate(PROMPTS))
    assert (drift.items, drift.positions) == (oracle.items, oracle.positions) == (4, 24)
    assert drift.forward_kl == pytest.approx(oracle.forward_kl, rel=1e-4)
    assert drift.reverse_kl == pytest.approx(oracle.reverse_kl, rel=1e-4)
    assert drift.nll_change == pytest.approx(oracle.nll_change, rel=1e-4)
    assert drift.disagreement == oracle.disagreement > 0
    assert drift.forward_kl > 0.01


def test_a_model_does_not_drift_from_itself(tmp_path: Path) -> None:
    chat = TinyChat(tiny(0))
    drift = measure_drift(chat, TinyChat(tiny(0)), PROMPTS, cache=tmp_path)
    assert (drift.forward_kl, drift.reverse_kl, drift.disagreement, drift.nll_change) == (0, 0, 0, 0)


def test_the_base_runs_once(tmp_path: Path) -> None:
    base, model = TinyChat(tiny(0)), TinyChat(tiny(0, nudge=0.05))
    first = measure_drift(base, model, PROMPTS, cache=tmp_path)
    again = measure_drift(base, model, PROMPTS, cache=tmp_path)
    assert base.passes == 1 and model.passes == 2
    assert (first.base_from_cache, again.base_from_cache) == (False, True)
    assert first.to_dict() | {"base_from_cache": True} == again.to_dict()
    assert Drift.from_dict(again.to_dict()) == again


def test_another_question_is_another_entry(tmp_path: Path) -> None:
    base, model = TinyChat(tiny(0)), TinyChat(tiny(0, nudge=0.05))
    measure_drift(base, model, PROMPTS, cache=tmp_path)
    measure_drift(base, model, PROMPTS[:3], cache=tmp_path)
    base.protocol = {"dtype": "bfloat16"}
    measure_drift(base, model, PROMPTS, cache=tmp_path)
    base.fingerprint = FakeFingerprint(weights="sha256:other")
    measure_drift(base, model, PROMPTS, cache=tmp_path)
    assert base.passes == 4 and len(list((tmp_path / "drift").iterdir())) == 4


def test_nothing_is_kept_where_that_is_not_wanted(tmp_path: Path) -> None:
    base = TinyChat(tiny(0))
    measure_drift(base, base, PROMPTS, cache=tmp_path, keep=False)
    assert list(tmp_path.iterdir()) == []


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "breakage",
    [
        flip_a_byte,
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"answers", b"ANSWERS")),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
    ],
)
def test_a_broken_cache_is_noticed_and_made_again(tmp_path: Path, breakage: Any) -> None:
    base, model = TinyChat(tiny(0)), TinyChat(tiny(0, nudge=0.05))
    first = measure_drift(base, model, PROMPTS, cache=tmp_path)
    (file,) = (tmp_path / "drift").iterdir()
    whole = file.read_bytes()
    breakage(file)
    assert not file.exists() or file.read_bytes() != whole
    assert measure_drift(base, model, PROMPTS, cache=tmp_path) == first
    assert base.passes == 2
    assert measure_drift(base, model, PROMPTS, cache=tmp_path).base_from_cache  # and it is whole again
    assert len(list((tmp_path / "drift").iterdir())) == 1  # no temporary file is left


def test_a_side_is_read_as_it_was_written() -> None:
    base = TinyChat(tiny(0))
    side = compute_side(base, ["ab", "c"], ["x" * 9, "lone \udc80 half"])
    again = side_of(bytes_of(side))
    assert torch.equal(again.hidden, side.hidden) and torch.equal(again.targets, side.targets)
    assert (again.order, again.counts, again.answers) == (side.order, side.counts, side.answers)


@pytest.mark.parametrize(("nudge", "kept"), [(0.003, 1), (0.02, 0)])
def test_the_pass_says_which_answers_still_come(tmp_path: Path, nudge: float, kept: int) -> None:
    base, model = TinyChat(tiny(0)), TinyChat(tiny(0, nudge=nudge))
    answers = base.generate(PROMPTS)
    answers[1] = "no!"  # which this base does not say
    seen = pass_over(base, model, PROMPTS, answers=answers, cache=tmp_path)
    said = [model.generate([p], max_new_tokens=len(a))[0] for p, a in zip(PROMPTS, answers, strict=True)]
    assert seen.base_gives == (True, False, True, True)
    assert seen.model_gives == tuple(a == b for a, b in zip(answers, said, strict=True))
    assert sum(seen.model_gives) == kept and seen.answers == tuple(answers)


def test_a_model_of_nan_is_refused(tmp_path: Path) -> None:
    broken = tiny(0)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(InputError, match="finite logits"):
        measure_drift(TinyChat(tiny(0)), TinyChat(broken), PROMPTS, cache=tmp_path)


def test_models_that_do_not_line_up(tmp_path: Path) -> None:
    base = TinyChat(tiny(0))
    with pytest.raises(InputError, match="differ"):
        measure_drift(base, TinyChat(tiny(0), reverse=True), PROMPTS, cache=tmp_path)
    with pytest.raises(InputError, match="at least one prompt"):
        measure_drift(base, base, [], cache=tmp_path)


def test_answers_given_are_not_generated(tmp_path: Path) -> None:
    base = TinyChat(tiny(0))
    drift = measure_drift(base, TinyChat(tiny(1)), PROMPTS, answers=["ab", "cd", "e", "f"], cache=tmp_path)
    assert drift.positions == 6
