"""Many requests in one batch answer as each would alone; what breaks one leaves the others be."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_fakes import (
    PROMPTS,
    Ear,
    ask,
    bare,
    load,
    put_adapters,
    request,
    scheduling,
    write_adapter,
)

from inlay.composer import compose, lock
from inlay.errors import InputError
from inlay.evals.inference import Base, PromptError
from inlay.registry import Registry
from inlay.serving import scheduler as scheduler_module
from inlay.serving.requests import Ended, Failed, Token
from inlay.serving.row import NotFinite
from inlay.serving.scheduler import QueueFull, Scheduler, Stopping
from inlay.serving.shelf import Loaded

LONG = "Say the following again: " + "leaf working river garden " * 6
Served = tuple[Scheduler, dict[str, Loaded]]
RECIPES: dict[str, Any] = {
    "stacked": {"stack": ["a0@v1", {"use": "a1@v1", "weight": 0.5}]},
    "named": {"route": {"by": "request", "experts": ["a0@v1", "a2@v1"]}},
    "probed": {"route": {"by": "probe", "experts": ["a0@v1", "a1@v1", "a2@v1"]}},
    "worded": {"route": {"by": "words", "experts": ["a1@v1", "a2@v1"]}},
    "arrows": {"route": {"by": "arrow", "experts": ["a0@v1", "a2@v1"]}},
}


@pytest.fixture(scope="module")
def filled(shared_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Four random adapters, and a variant of each sort of recipe."""
    folder = tmp_path_factory.mktemp("filled")
    with Registry.open(folder / "adapters_store", create=True) as store:
        put_adapters(store, shared_base, folder, ["a0", "a1", "a2", "a3"])
        for name, recipe in RECIPES.items():
            lock(store, name, recipe, base=shared_base)
        yield store


REFS = [*(f"a{i}@v1" for i in range(4)), *(f"{name}@v1" for name in RECIPES)]


@pytest.fixture
def served(filled: Registry, base: Base) -> Iterator[Served]:
    with scheduling(base, filled, REFS) as made:
        yield made


@pytest.fixture
def endless(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Answers are as long as they may be."""
    monkeypatch.setattr(served[0], "_ends", frozenset())
    return served


def alone(store: Registry, base: Base, ref: str, prompt: str, max_tokens: int, **asked: Any) -> str:
    """The oracle: the composed model, one prompt."""
    if ref == "base":
        from inlay.evals.inference import Chat

        return Chat(base).generate([prompt], max_new_tokens=max_tokens)[0]
    model = compose(ref, store=store, base=base)
    try:
        given = {f"{name}s" if name == "expert" else name: [value] for name, value in asked.items()}
        return model.generate([prompt], max_new_tokens=max_tokens, **given)[0]
    finally:
        model.detach()


CASES: list[tuple[str, dict[str, Any]]] = [
    *((ref, {}) for ref in ("base", *REFS)),
    ("stacked@v1", {"weights": {"a0@v1": 1.0}}),
    ("stacked@v1", {"weights": {"a1@v1": -0.5, "a0@v1": 0.25}}),
    ("stacked@v1", {"weights": {}}),
    ("named@v1", {"expert": "a2"}),
    ("named@v1", {"expert": "a0@v1"}),
    ("probed@v1", {"weights": {"a2@v1": 1.0}}),
]


def test_a_mixed_batch_answers_as_each_alone(filled: Registry, base: Base) -> None:
    draw = random.Random(0)
    asked = [
        (ref, prompt, draw.randrange(1, 24), wishes)
        for i, (ref, wishes) in enumerate(CASES)
        for prompt in (PROMPTS[i % len(PROMPTS)], LONG if i % 4 == 0 else PROMPTS[(3 * i + 1) % len(PROMPTS)])
    ]
    expected = [alone(filled, base, ref, p, n, **wishes) for ref, p, n, wishes in asked]
    assert len(set(expected)) > len(asked) // 2, "the adapters must be heard"
    with scheduling(base, filled, REFS, rows=12) as (scheduler, loaded):
        ears: list[Ear] = []
        most = 0
        for ref, prompt, tokens, wishes in asked:
            wanted = request(base, prompt, max_tokens=tokens, tenant=f"t{draw.randrange(3)}", **wishes)
            ears.append(ask(scheduler, loaded[ref], wanted))
            most = max(most, scheduler.running)
            time.sleep(draw.random() * 0.02)
        ends = [ear.wait() for ear in ears]
    assert most > 1, "requests must have been answered side by side"
    for (ref, prompt, tokens, wishes), ear, end, text in zip(asked, ears, ends, expected, strict=True):
        assert ear.text.strip() == text, (ref, prompt, wishes)
        assert end.completion == len(ear.ids) <= tokens
        assert end.reason == ("length" if end.completion == tokens else "stop")
        assert end.prompt == len(request(base, prompt).ids)
        assert ear.text == base.tokenizer.decode(ear.ids, skip_special_tokens=True)


def test_a_router_reads_the_prompt_once_where_the_base_answers(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    wanted = request(base, "Which number is larger, 14 or 52?", max_tokens=4)
    first = ask(scheduler, loaded["base"], wanted)
    first.wait()
    read: list[int] = []
    forward = scheduler._reader.model.forward

    def counting(*args: Any, **given: Any) -> Any:
        read.append(given["input_ids"].numel())
        return forward(*args, **given)

    monkeypatch.setattr(scheduler._reader.model, "forward", counting)
    routed = ask(scheduler, loaded["probed@v1"], wanted)
    routed.wait()
    assert routed.ids == first.ids, "the base was chosen"
    assert read == [len(wanted.ids), 1, 1, 1]


def test_a_seeded_request_draws_the_same_tokens_alone_and_in_company(endless: Served, base: Base) -> None:
    scheduler, loaded = endless
    wanted = request(base, PROMPTS[1], max_tokens=20, temperature=1.2, top_p=0.9, seed=7)
    first = ask(scheduler, loaded["a1@v1"], wanted)
    first.wait()
    company = [
        ask(scheduler, loaded[ref], request(base, PROMPTS[i], max_tokens=30, temperature=0.7 * (i % 2)))
        for i, ref in enumerate(REFS[:6])
    ]
    again = ask(scheduler, loaded["a1@v1"], wanted)
    again.wait()
    other = ask(
        scheduler,
        loaded["a1@v1"],
        request(base, PROMPTS[1], max_tokens=20, temperature=1.2, top_p=0.9, seed=8),
    )
    for ear in (*company, other):
        ear.wait()
    assert again.ids == first.ids and other.ids != first.ids


def test_logprobs_and_stop_texts(endless: Served, base: Base) -> None:
    scheduler, loaded = endless
    plain = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=12))
    plain.wait()
    with_logprobs = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=12, logprobs=3))
    with_logprobs.wait()
    tokens = [event for event in with_logprobs.events if isinstance(event, Token)]
    assert [token.id for token in tokens] == plain.ids
    for token in tokens:
        assert len(token.top) == 3 and token.top[0] == (token.id, token.logprob) and token.top[0][1] <= 0
    stop = plain.text[len(plain.text) // 2 :][:3]
    stopped = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=12, stop=(stop,)))
    end = stopped.wait()
    assert end.reason == "stop" and stopped.text == plain.text[: plain.text.find(stop)]
    assert end.completion < 12


def test_a_request_that_asks_for_what_is_not_fails_alone(served: Served, base: Base) -> None:
    scheduler, loaded = served
    good = [ask(scheduler, loaded["named@v1"], request(base, p, expert="a0")) for p in PROMPTS[:3]]
    for ref, wishes, said in (
        ("named@v1", {"expert": "a3"}, "must name one expert"),
        ("stacked@v1", {"expert": "a0"}, "has none"),
        ("stacked@v1", {"weights": {"a3@v1": 1.0}}, "'a3@v1' is none"),
        ("stacked@v1", {"weights": {"a0@v1": float("nan")}}, "finite"),
        ("stacked@v1", {"weights": {"a0@v1": 1e300}}, "finite"),
        ("base", {"weights": {"a0@v1": 1.0}}, "the base has none"),
        ("base", {"expert": "a0"}, "the base has none"),
    ):
        with pytest.raises(InputError, match=said):
            ask(scheduler, loaded[ref], request(base, PROMPTS[0], **wishes)).wait()
    texts = [(ear.wait(), ear.text)[1] for ear in good]
    assert len(set(texts)) > 1
    again = ask(scheduler, loaded["named@v1"], request(base, PROMPTS[0], expert="a0"))
    again.wait()
    assert again.text == texts[0]


def test_logits_that_are_not_finite_fail_their_row_only(endless: Served, base: Base) -> None:
    """Weights that are finite, and overflow in the first layer."""
    scheduler, loaded = endless
    asked = [request(base, p, max_tokens=20) for p in PROMPTS[:4]]
    before = [ask(scheduler, loaded["a2@v1"], each) for each in asked]
    for ear in before:
        ear.wait()
    during = [ask(scheduler, loaded["a2@v1"], each) for each in asked]
    broken = ask(scheduler, loaded["stacked@v1"], request(base, LONG, weights={"a0@v1": 1e38}))
    with pytest.raises(NotFinite, match=r"those of stacked@v1 are NaN or infinite"):
        broken.wait()
    after = [ask(scheduler, loaded["a2@v1"], each) for each in asked]
    for first, second, third in zip(before, during, after, strict=True):
        second.wait()
        third.wait()
        assert first.ids == second.ids == third.ids


def test_logits_that_break_on_the_way_fail_their_row_only(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    step = scheduler._reader.step

    def breaking(rows: Any, tokens: Any) -> torch.Tensor:
        logits = step(rows, tokens)
        for i, row in enumerate(scheduler._running):
            if row.request.id == "broken" and len(row.said) == 5:
                logits[i] = float("nan")
        return logits

    monkeypatch.setattr(scheduler._reader, "step", breaking)
    plain = request(base, PROMPTS[0], max_tokens=12)
    bad = scheduler_module.replace(plain, id="broken")
    ears = [ask(scheduler, loaded[ref], plain) for ref in ("a0@v1", "a1@v1")]
    broken = ask(scheduler, loaded["a0@v1"], bad)
    with pytest.raises(NotFinite):
        broken.wait()
    for ear in ears:
        assert ear.wait().completion == 12
    assert broken.ids == ears[0].ids[:5]


def test_a_step_that_fails_ends_its_rows_and_the_thread_lives_on(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    expected = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0]))
    expected.wait()
    step, calls = scheduler._reader.step, []

    def failing(rows: Any, tokens: Any) -> torch.Tensor:
        calls.append(len(tokens))
        if len(calls) == 5:
            raise MemoryError("no memory for this step")
        return step(rows, tokens)

    monkeypatch.setattr(scheduler._reader, "step", failing)
    ears = [ask(scheduler, loaded[ref], request(base, PROMPTS[1], max_tokens=30)) for ref in REFS[:3]]
    for ear in ears:
        with pytest.raises(MemoryError):
            ear.wait()
    again = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0]))
    again.wait()
    assert again.ids == expected.ids and scheduler.alive
    scheduler.between_steps(lambda: None).result(30)
    assert scheduler.running == 0


def test_prompts_that_cannot_be_read_fail_and_those_that_run_go_on(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    running = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=60))
    assert running.first.wait(30)
    read = scheduler._reader.read

    def failing(*given: Any, **named: Any) -> Any:
        raise MemoryError("no memory for this prompt")

    monkeypatch.setattr(scheduler._reader, "read", failing)
    with pytest.raises(MemoryError):
        ask(scheduler, loaded["a1@v1"], request(base, PROMPTS[1])).wait()
    with pytest.raises(MemoryError):
        ask(scheduler, loaded["probed@v1"], request(base, PROMPTS[1])).wait()
    monkeypatch.setattr(scheduler._reader, "read", read)
    assert running.wait().completion == len(running.ids) > 1


def test_who_cannot_hear_leaves_and_the_others_stay(served: Served, base: Base) -> None:
    scheduler, loaded = served
    heard = []

    def deaf(event: object) -> None:
        heard.append(event)
        raise ConnectionError("nobody there")

    scheduler.submit(loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=200), deaf)
    ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0])).wait()
    assert len(heard) == 1


def test_cancelled_rows_leave_at_the_next_token(endless: Served, base: Base) -> None:
    scheduler, loaded = endless
    expected = ask(scheduler, loaded["a1@v1"], request(base, PROMPTS[1], max_tokens=40))
    expected.wait()
    ears = [ask(scheduler, loaded[ref], request(base, LONG, max_tokens=300)) for ref in REFS[:5]]
    kept = ask(scheduler, loaded["a1@v1"], request(base, PROMPTS[1], max_tokens=40))
    for ear in ears:
        assert ear.ticket is not None
        ear.first.wait(30)
        ear.ticket.cancel()
        ear.ticket.cancel()
    kept.wait()
    assert kept.ids == expected.ids
    scheduler.between_steps(lambda: None).result(30)
    counts = [len(ear.events) for ear in ears]
    assert scheduler.running == scheduler.waiting == 0
    assert not any(ear.done.is_set() for ear in ears), "who has left hears no end"
    assert counts == [len(ear.events) for ear in ears] and max(counts) < 300


def test_who_is_cancelled_while_waiting_is_never_read(filled: Registry, base: Base) -> None:
    with scheduling(base, filled, ["a0@v1"], rows=1, queue=2) as (scheduler, loaded):
        running = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=60))
        running.first.wait(30)
        ears = [ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[1])) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests may wait"):
            ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[1]))
        assert ears[0].ticket is not None and scheduler.waiting == 2
        ears[0].ticket.cancel()
        last = ask(scheduler, loaded["base"], request(base, PROMPTS[1]))
        for ear in (running, ears[1], last):
            ear.wait()
        assert not ears[0].events


def test_deeds_are_done_between_two_tokens_and_their_errors_are_theirs(
    endless: Served, filled: Registry, base: Base
) -> None:
    """An adapter is brought and another taken away while rows run; what they say is not disturbed."""
    scheduler, loaded = endless
    wanted = request(base, PROMPTS[2], max_tokens=60)
    expected = ask(scheduler, loaded["a0@v1"], wanted)
    expected.wait()
    running = ask(scheduler, loaded["a0@v1"], wanted)
    running.first.wait(30)
    inside: list[str] = []

    def bring() -> Loaded:
        inside.append(threading.current_thread().name)
        assert scheduler.between_steps(lambda: 3).result() == 3, "a deed may do another"
        return load(scheduler, filled, "a3@v1")

    brought = scheduler.between_steps(bring).result(30)
    own = ask(scheduler, brought, wanted)
    same = ask(scheduler, loaded["a3@v1"], wanted)
    with pytest.raises(InputError, match="speaks, and what speaks cannot be unloaded"):
        scheduler.between_steps(lambda: scheduler.bank.unload(loaded["a0@v1"].slots[0])).result(30)
    own.wait()
    same.wait()
    scheduler.between_steps(lambda: [scheduler.bank.unload(slot) for slot in brought.slots]).result(30)
    running.wait()
    scheduler.between_steps(lambda: scheduler.bank.unload(loaded["a0@v1"].slots[0])).result(30)
    assert inside == ["inlay-scheduler"]
    assert running.ids == expected.ids and own.ids == same.ids != running.ids


def test_a_prompt_must_leave_room_in_the_context(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    wanted = request(base, PROMPTS[0], max_tokens=1)
    assert scheduler.context == 512
    monkeypatch.setattr(scheduler, "context", 48)
    room = scheduler.context - len(wanted.ids)
    with pytest.raises(PromptError, match="context of 48 tokens, and need 49"):
        ask(scheduler, loaded["base"], request(base, PROMPTS[0], max_tokens=room + 1))
    with pytest.raises(InputError, match="a token at least"):
        ask(scheduler, loaded["base"], request(base, PROMPTS[0], max_tokens=0))
    full = ask(scheduler, loaded["a3@v1"], request(base, PROMPTS[0], max_tokens=room))
    assert full.wait().completion == room


def test_what_was_computed_before_is_not_computed_again(served: Served, filled: Registry, base: Base) -> None:
    scheduler, loaded = served
    for ref in ("a0@v1", "base", "probed@v1", "stacked@v1"):
        first = ask(scheduler, loaded[ref], request(base, LONG, max_tokens=12))
        end = first.wait()
        assert end.cached == 0
        talk = [
            {"role": "user", "content": LONG},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": PROMPTS[1]},
        ]
        wanted = request(base, talk, max_tokens=12)
        elsewhere = ask(scheduler, loaded[ref], request(base, talk, max_tokens=12, tenant="other"))
        assert elsewhere.wait().cached == 0, "nothing crosses tenants"
        again = ask(scheduler, loaded[ref], wanted)
        cached = again.wait().cached
        assert again.ids == elsewhere.ids
        known = [*request(base, LONG).ids, *first.ids]
        known = known[:-1] if end.reason == "length" else known  # the last was never read
        shared = 0
        while shared < len(known) and known[shared] == wanted.ids[shared]:
            shared += 1
        # A router that reads states reads all of the prompt; where it chose the base that was all there is.
        assert cached == (0 if ref == "probed@v1" and cached == 0 else shared)
        assert shared > len(request(base, LONG).ids) - 8
    weighed = request(base, LONG, max_tokens=2, weights={"a0@v1": 1.0})
    assert ask(scheduler, loaded["stacked@v1"], weighed).wait().cached == 0, "another gate"
    once_more = request(base, LONG, max_tokens=2)
    assert ask(scheduler, loaded["a0@v1"], once_more).wait().cached == len(once_more.ids) - 1
    scheduler.forget_prefixes(loaded["a0@v1"].digest)
    assert ask(scheduler, loaded["a0@v1"], once_more).wait().cached == 0


def test_stopping_fails_what_is_left_and_takes_nothing_more(filled: Registry, base: Base) -> None:
    with scheduling(base, filled, ["a0@v1"], rows=2) as (scheduler, loaded):
        ears = [ask(scheduler, loaded["a0@v1"], request(base, LONG, max_tokens=300)) for _ in range(4)]
        ears[0].first.wait(30)
        scheduler.stop()
        for ear in ears:
            assert ear.done.is_set() and isinstance(ear.events[-1], Failed)
            assert isinstance(ear.events[-1].error, Stopping)
        with pytest.raises(Stopping):
            ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0]))
        assert not scheduler.alive and scheduler.running == scheduler.waiting == 0
        assert scheduler.between_steps(lambda: 5).result(1) == 5, "deeds are done by who brings them"
        scheduler.start()
        assert ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0])).wait().completion > 0


def test_draining_answers_what_was_taken(filled: Registry, base: Base) -> None:
    with scheduling(base, filled, ["a0@v1"], rows=2) as (scheduler, loaded):
        ears = [ask(scheduler, loaded["a0@v1"], request(base, p, max_tokens=8)) for p in PROMPTS]
        scheduler.stop(drain=60.0)
        assert all(isinstance(ear.events[-1], Ended) for ear in ears)
        assert not scheduler.alive


def test_requests_from_many_threads_all_end(served: Served, base: Base) -> None:
    scheduler, loaded = served
    wanted = {ref: request(base, PROMPTS[i % 8], max_tokens=6) for i, ref in enumerate(REFS)}
    expected = {}
    for ref in REFS:
        ear = ask(scheduler, loaded[ref], wanted[ref])
        ear.wait()
        expected[ref] = ear.ids
    wrong: list[str] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(6):
            ref = draw.choice(REFS)
            ear = ask(scheduler, loaded[ref], wanted[ref])
            if draw.random() < 0.2:
                assert ear.ticket is not None
                ear.ticket.cancel()
                continue
            ear.wait()
            if ear.ids != expected[ref]:
                wrong.append(ref)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    scheduler.between_steps(lambda: None).result(30)
    assert scheduler.running == scheduler.waiting == 0


def test_the_gate_stands_still_while_the_rows_do(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    set_: list[int] = []
    checked = scheduler.bank.gate._checked

    def counting(*given: Any) -> Any:
        set_.append(1)
        return checked(*given)

    monkeypatch.setattr(scheduler.bank.gate, "_checked", counting)
    ear = ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[0], max_tokens=30))
    assert ear.wait().completion > 4
    assert len(set_) == 2, "once to read the prompt, once for all of its tokens"


def test_rows_of_a_full_batch_change_together_and_nobody_waits_long(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that end one by one: rows leave and join eight tokens late at most, not at every token."""
    scheduler, loaded = endless
    changes, steps, late = [], [], []
    leave, step = scheduler._leave, scheduler._reader.step

    def leaving() -> None:
        changes.append(len(steps))
        leave()

    def stepping(rows: Any, tokens: Any) -> torch.Tensor:
        steps.append(len(tokens))
        late.append(scheduler.waiting)
        return step(rows, tokens)

    monkeypatch.setattr(scheduler, "_leave", leaving)
    monkeypatch.setattr(scheduler._reader, "step", stepping)
    held = scheduler.between_steps(lambda: time.sleep(0.5))  # so that all join at once
    ears = [
        ask(scheduler, loaded["a0@v1"], request(base, PROMPTS[1], max_tokens=20 + 2 * i)) for i in range(32)
    ]
    held.result(30)
    ears[0].wait()
    more = [ask(scheduler, loaded["a1@v1"], request(base, PROMPTS[2], max_tokens=4)) for _ in range(6)]
    for ear in (*ears, *more):
        ear.wait()
    assert all(ear.ids == ears[-1].ids[: len(ear.ids)] for ear in ears)
    assert len({tuple(ear.ids) for ear in more}) == 1
    assert max(steps) == 32 and len(changes) < 30 < len(steps)
    waited = longest = 0
    for waiting in late:
        waited = waited + 1 if waiting else 0
        longest = max(longest, waited)
    assert longest <= 9


def test_a_row_that_has_ended_never_outgrows_the_context(
    endless: Served, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, loaded = endless
    monkeypatch.setattr(scheduler, "context", 64)
    room = scheduler.context - len(request(base, PROMPTS[0]).ids)
    long = [ask(scheduler, loaded["base"], request(base, PROMPTS[0], max_tokens=room)) for _ in range(2)]
    others = [ask(scheduler, loaded["base"], request(base, PROMPTS[1], max_tokens=room)) for _ in range(20)]
    lengths = []
    while not all(ear.done.is_set() for ear in (*long, *others)):
        kv = scheduler._kv
        lengths.append(kv.end - min(kv.starts, default=kv.end))
        time.sleep(0.005)
    assert [ear.wait().completion for ear in (*long, *others)] == [room] * 22
    assert max(lengths) <= scheduler.context


def test_rows_may_have_heads_of_their_own(store: Registry, base: Base, tmp_path: Path) -> None:
    """Adapters of the output head and of other modules, in one batch."""
    for seed, name in enumerate(("one", "two"), 7):
        folder = write_adapter(tmp_path / name, base, seed=seed, targets=("q_proj", "lm_head"))
        store.add(name, folder, base=base.fingerprint)
    put_adapters(store, base, tmp_path, ["plain"])
    refs = ["one@v1", "two@v1", "plain@v1"]
    expected = {ref: alone(store, base, ref, PROMPTS[3], 8) for ref in refs}
    assert len(set(expected.values())) == 3
    with scheduling(base, store, refs) as (scheduler, loaded):
        ears = {ref: ask(scheduler, loaded[ref], request(base, PROMPTS[3], max_tokens=8)) for ref in refs}
        assert {ref: (ear.wait(), ear.text.strip())[1] for ref, ear in ears.items()} == expected


def test_the_base_is_bare_where_only_it_is_asked(base: Base) -> None:
    from inlay.evals.inference import Chat

    expected = Chat(base).generate(list(PROMPTS), max_new_tokens=10)
    with scheduling(base) as (scheduler, loaded):
        ears = [ask(scheduler, loaded["base"], request(base, p, max_tokens=10)) for p in PROMPTS]
        assert [(ear.wait(), ear.text.strip())[1] for ear in ears] == expected
        assert bare(base).digest == base.fingerprint.weights
